"""What a cell has is much to list for a leader that is busy: a node asks for little at a time, and
with patience."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

import msgspec
import pytest

from holdfast.engines.nats.log import NatsLog
from holdfast.errors import Unknown


class _Busy:
    """A connection to a leader that answers no question before it was asked ``patience`` times."""

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.waits: dict[str, list[float]] = defaultdict(list)
        self.under_way = self.most_under_way = 0

    async def ask(
        self, subject: str, payload: bytes, timeout_seconds: float
    ) -> tuple[bytes, bytes]:
        assert subject == "$JS.API.STREAM.INFO.g1c0"
        wanted: dict[str, Any] = msgspec.json.decode(payload)
        waits = self.waits[wanted["subjects_filter"]]
        waits.append(timeout_seconds)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await asyncio.sleep(0)
        self.under_way -= 1
        if len(waits) < self.patience:
            raise Unknown(f"no answer within {timeout_seconds} s")
        subject = wanted["subjects_filter"].replace(">", "st.a/b")
        return b"", msgspec.json.encode(
            {
                "config": {},
                "cluster": {"leader": "s1"},
                "total": 1,
                "state": {"subjects": {subject: 1}},
            }
        )


async def test_the_subjects_of_many_shards_are_asked_for_a_few_at_a_time_and_longer_each_time() -> (
    None
):
    leader = _Busy(patience=3)
    filters = [f"g1c0.{shard}.>" for shard in range(16)]
    # it only asks
    shown = await NatsLog(leader, leader).subjects("g1c0", filters)  # type: ignore[arg-type]
    assert shown is not None
    assert shown.server == "s1" and shown.subjects == {
        f"g1c0.{shard}.st.a/b" for shard in range(16)
    }
    assert leader.most_under_way == 4
    for waits in leader.waits.values():
        assert len(waits) == 3 and waits[0] < waits[2]


async def test_a_leader_that_never_answers_is_given_up() -> None:
    leader = _Busy(patience=1000)
    with pytest.raises(Unknown, match="no answer"):
        # it only asks
        await NatsLog(leader, leader).subjects("g1c0", ["g1c0.1.>"])  # type: ignore[arg-type]
    assert sum(leader.waits["g1c0.1.>"]) < 15
