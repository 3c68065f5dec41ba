"""A server that is frozen is said and started again; one that is only slow is left alone."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast import limits
from holdfast.host.frozen import FrozenWatch
from holdfast.host.processes import Progress, progress_of
from holdfast.host.server.nats_config import ServerSettings
from holdfast.host.server.nats_server import free_ports
from holdfast.host.settings import HostSettings
from holdfast.host.supervisor import Host


@pytest.mark.cluster
@pytest.mark.timeout(900)
async def test_a_frozen_server_is_said_and_started_again(tmp_path: Path) -> None:
    said: list[tuple[str, dict[str, Any]]] = []
    (port,) = free_ports(1)
    server = ServerSettings("alone", str(tmp_path / "alone"), port=port)
    host = Host(
        HostSettings("alone", server, [], nodes=0), lambda event, facts: said.append((event, facts))
    )

    async def heard(event: str, count: int = 1) -> dict[str, Any]:
        async with asyncio.timeout(240):
            while len(found := [facts for name, facts in said if name == event]) < count:
                await asyncio.sleep(0.1)
        return found[-1]

    await host.start()
    try:
        assert host.server is not None
        pid = host.server.pid
        os.kill(pid, signal.SIGSTOP)
        assert (await heard("server-frozen"))["server_pid"] == pid
        os.kill(pid, signal.SIGCONT)
        assert (await heard("server-back"))["server_pid"] == pid
        os.kill(pid, signal.SIGSTOP)
        await heard("server-frozen", 2)
        await heard("server-ended")
        assert (await heard("server", 2))["server_pid"] not in (0, pid)
        assert await host.server.answers()
    finally:
        await host.stop()


def test_the_kernel_shows_how_a_process_does() -> None:
    found = progress_of(os.getpid())
    assert found is not None and found.state in "RS" and found.ticks >= 0
    assert progress_of(2**22 + 1) is None


LOOKS = st.lists(
    st.tuples(st.booleans(), st.sampled_from(["T", "R", "S", "D"]), st.booleans()), max_size=60
)


@given(LOOKS)
def test_only_who_answers_nobody_and_does_nothing_is_ended(
    looks: list[tuple[bool, str, bool]],
) -> None:
    watch, ticks, still = FrozenWatch(), 100, 0
    for answers, state, works in looks:
        ticks += works
        verdict = watch.look(7, answers, Progress(state, ticks))
        idle = not answers and (state == "T" or not works)
        still = still + 1 if idle else 0
        if verdict == "end":
            assert still >= limits.SERVER_FROZEN_LOOKS_MAX
        if verdict == "said":
            assert still >= limits.SERVER_FROZEN_LOOKS
        if verdict == "back":
            assert answers


def test_a_stopped_server_is_ended_and_a_busy_one_never() -> None:
    watch = FrozenWatch()
    stopped = [
        watch.look(7, False, Progress("T", 5)) for _ in range(limits.SERVER_FROZEN_LOOKS_MAX + 1)
    ]
    assert stopped.count("said") == 1 and stopped[-1] == "end"
    watch = FrozenWatch()
    assert {watch.look(7, False, Progress("R", n)) for n in range(100)} == {""}
    assert {watch.look(7, True, Progress("S", 100)) for _ in range(100)} == {""}
    watch = FrozenWatch()
    seen = [watch.look(7, False, Progress("T", 5)) for _ in range(limits.SERVER_FROZEN_LOOKS + 1)]
    seen += [watch.look(7, False, Progress("R", 6)), watch.look(7, True, Progress("S", 7))]
    assert seen[-3:] == ["said", "", "back"], "it works before it answers"
    unseen = [FrozenWatch().look(7, True, None), *(watch.look(8, False, None) for _ in range(30))]
    assert "end" in unseen, "where the kernel shows nothing, silence alone counts"
