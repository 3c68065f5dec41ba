"""A cut shows one moment or fails: whoever writes without holding, and however late the tails are.

A writer changes a record in one cell, then one in the other, then the first again, each after the
acknowledgement of the one before. So whatever moment a copy shows, the first cell is at most one
change ahead, and each key has its newest value.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.agents.kinds import Append
from tests.patience import again

from holdfast import limits
from holdfast.admin.backup import cut
from holdfast.admin.backup.spool import Spool
from holdfast.cluster.facts.write_pause import WritePause
from holdfast.engines.base import Chunk, Record
from holdfast.engines.gate import Gate
from holdfast.engines.nats.engine import NatsEngine
from holdfast.errors import Overloaded
from holdfast.host.server.nats_server import LocalServers

pytestmark = pytest.mark.cluster
_numbers = itertools.count(1)
_KEYS = 5


class Writer:
    """See the module. It writes through a gate, as nodes do."""

    def __init__(self, engine: NatsEngine, cells: Sequence[str]) -> None:
        self.gate = Gate(engine.log)
        self.cells = cells
        self.acknowledged = 0
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        for number in itertools.count(1):
            for cell in self.cells:
                record = Record(f"{cell}.1.st.{number % _KEYS}", b"%d" % number)
                await again(partial(self.gate.append, cell, [record]))
            self.acknowledged = number

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@pytest.fixture
async def engines(servers: LocalServers) -> AsyncIterator[tuple[NatsEngine, NatsEngine, list[str]]]:
    """The writer's engine, the backup's, and two new cells."""
    made = NatsEngine(servers.urls), NatsEngine(servers.urls)
    for engine in made:
        await engine.open()
    cells = [f"cut{os.getpid()}-{next(_numbers)}" for _ in range(2)]
    await made[0].ensure_cells(cells, 3)
    yield *made, cells
    for engine in made:
        await engine.close()


def check(spool: Spool, cuts: list[int], least: int, most: int) -> None:
    """Whether what is in the spool is what the cells held at one moment."""
    newest = []
    for place, cut_at in enumerate(cuts):
        found = {
            int(one.subject.rpartition(".")[2]): int(one.payload) for one in spool.in_order(place)
        }
        assert all(one.sequence <= cut_at for one in spool.in_order(place))
        newest.append(max(found.values()))
        assert found == {
            n % _KEYS: n for n in range(max(1, newest[-1] - _KEYS + 1), newest[-1] + 1)
        }
    assert 0 <= newest[0] - newest[1] <= 1
    assert least <= newest[1] and newest[0] <= most + 1


def after_writes(
    append: Append, writer: Writer, wanted: Callable[[], bool] = lambda: True
) -> Append:
    """An append of marks, after which the writer writes to both cells, however slow it is."""

    async def mark(cell: str, records: Sequence[Record]) -> range:
        sequences = await append(cell, records)
        before = writer.acknowledged
        while wanted() and writer.acknowledged < before + 2:
            await asyncio.sleep(0.005)
        return sequences

    return mark


async def some(writer: Writer) -> None:
    async with asyncio.timeout(240):
        while writer.acknowledged < 2 * _KEYS:
            await asyncio.sleep(0.01)


async def test_who_holds_is_cut_at_once(
    engines: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HOLD_SECONDS", 40.0)
    monkeypatch.setattr(cut, "_ANSWER_SECONDS", 30.0)
    ours, backup, cells = engines
    writer = Writer(ours, cells)
    holding = WritePause(ours, writer.gate, lambda: "writer")
    await holding.start()
    await some(writer)
    for number in range(5):
        events: list[tuple[str, dict[str, Any]]] = []
        seen: dict[str, int] = {}

        def report(
            event: str, facts: dict[str, Any], seen: Any = seen, events: Any = events
        ) -> None:
            events.append((event, facts))
            seen[event] = writer.acknowledged

        with Spool(tmp_path / str(number)) as spool:
            cuts = await cut.take(backup, cells, lambda: ["writer"], spool, report)
            check(spool, cuts, seen["read"], seen["cut"])
        assert ("held", {"silent": []}) in events
        before = writer.acknowledged
        # released, and not only by the end of the hold
        async with asyncio.timeout(limits.HOLD_SECONDS / 2):
            while writer.acknowledged == before:
                await asyncio.sleep(0.005)
    await holding.close()
    await writer.stop()


async def test_who_does_not_hold_makes_attempts_fail(
    engines: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CUT_ATTEMPTS_MAX", 4)
    monkeypatch.setattr(cut, "_ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(limits, "HOLD_SECONDS", 40.0)
    ours, backup, cells = engines
    writer = Writer(ours, cells)
    await some(writer)
    backup.log.append = after_writes(backup.log.append, writer)
    events: list[tuple[str, dict[str, Any]]] = []
    with Spool(tmp_path / "spool") as spool, pytest.raises(Overloaded, match="was not still"):
        await cut.take(
            backup, cells, lambda: ["writer"], spool, lambda *event: events.append(event)
        )
    assert events.count(("held", {"silent": ["writer"]})) == 4
    assert any(
        "was written to" in str(facts.get("why")) for event, facts in events if event == "again"
    )
    await writer.stop()


async def test_tails_that_are_late_miss_nothing(
    engines: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come by when what the cut should hold was replaced: then there is no cut, until a hold
    is long enough."""
    monkeypatch.setattr(limits, "CUT_ATTEMPTS_MAX", 12)
    monkeypatch.setattr(limits, "HOLD_SECONDS", 40.0)
    monkeypatch.setattr(cut, "_ANSWER_SECONDS", 30.0)
    ours, backup, cells = engines
    writer = Writer(ours, cells)
    holding = WritePause(ours, writer.gate, lambda: "writer")
    await holding.start()
    await some(writer)
    real, late = backup.log.tail, 0.3

    async def tail(
        cell: str, subjects: Sequence[str], from_sequence: int = 1
    ) -> AsyncIterator[Chunk]:
        async with aclosing(real(cell, subjects, from_sequence)) as chunks:
            async for chunk in chunks:
                if cell == cells[0]:
                    await asyncio.sleep(late)
                yield chunk

    backup.log.tail = tail
    hold = writer.gate.hold
    holds: list[float] = []

    def short(seconds: float, cell: str) -> None:
        holds.append(0.02 if len(holds) < 3 else seconds)
        hold(holds[-1], cell)

    monkeypatch.setattr(writer.gate, "hold", short)
    backup.log.append = after_writes(backup.log.append, writer, lambda: len(holds) <= 3)
    events: list[str] = []
    with Spool(tmp_path / "spool") as spool:
        cuts = await cut.take(
            backup, cells, lambda: ["writer"], spool, lambda event, _: events.append(event)
        )
        check(spool, cuts, 0, writer.acknowledged)
    assert events.count("again") >= 3
    await holding.close()
    await writer.stop()


async def append(gate: Gate, cell: str, name: str) -> range:
    """Append a record, through elections."""
    return await again(lambda: gate.append(cell, [Record(f"{cell}.{name}", b"")]))


async def test_a_hold_ends_by_itself(engines: Any) -> None:
    ours, _, cells = engines
    gate = Gate(ours.log)
    gate.hold(0.05)
    waiting = asyncio.create_task(append(gate, cells[0], "a"))
    await asyncio.sleep(0)
    assert not waiting.done()
    async with asyncio.timeout(240):
        assert len(await waiting) == 1


async def test_a_hold_of_one_cell_lets_the_others_pass(engines: Any) -> None:
    ours, _, cells = engines
    gate = Gate(ours.log)
    gate.hold(600.0, cells[0])
    held = asyncio.create_task(append(gate, cells[0], "b"))
    async with asyncio.timeout(240):
        await append(gate, cells[1], "b")
    assert not held.done()
    gate.hold(0.05)
    others = asyncio.create_task(append(gate, cells[1], "b"))
    await asyncio.sleep(0)
    assert not others.done() and not held.done()
    async with asyncio.timeout(240):
        await asyncio.gather(held, others)


async def test_blobs_are_kept_while_a_backup_asks_for_it(engines: Any) -> None:
    ours, _, _ = engines
    gate = Gate(ours.log)
    await gate.may_delete()
    loop = asyncio.get_running_loop()
    began_at = loop.time()
    gate.keep_blobs(0.1)
    await gate.may_delete()
    assert loop.time() - began_at >= 0.1
