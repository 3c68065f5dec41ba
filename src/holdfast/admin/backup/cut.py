"""A cut through all cells of a running cluster: everything that was acknowledged before one moment,
and nothing later.

Each cell has an order of its own, but what happens in two of them is one story: a turn in one cell
puts a message into the other, a client hears of a change here and makes another there. Cells that
are copied one after the other hold an effect without its cause, or a message twice, or not at all.

**The moment.** A *mark* is appended to every cell (the first marks); when all are acknowledged,
another to every cell (the second marks). Take any moment between the last acknowledgement of a
first mark and the first append of a second one. What was acknowledged before that moment lies
before the second mark of its cell; what was begun after it lies behind the first. So where
**nothing lies between the two marks** of any cell, the records before the first marks are exactly
the state of the whole cluster at that moment. Nobody's clock, nobody's obedience, and no reading of
"the last sequence" from a server that may be behind is part of this: sequences are given by
appends.

**Reading it.** The log keeps the newest record of each subject, so a copy made afterwards would
miss what was replaced meanwhile. So tails of all cells run from the beginning, into a spool that
keeps the newest of each subject. A tail leaves out a record that was replaced or purged before it
came by. Therefore the second marks are appended only when every tail is past its first mark, and
between the marks each tail must have seen *every sequence*, and there nothing but what changes
nothing (proofs of life and the like). Whatever replaces a record of the cut lies behind the second
marks, so the tails were past that record before it was replaced. A tail that was replaced itself,
because a server died, changes nothing in this: it goes on at the next sequence, and a gap between
the marks is seen. What is purged was handled before, which the records that remain tell
(`holdfast.admin.backup.backup` leaves it out); a dead letter that is done leaves a mark instead.

**The hold.** Under load there is always something between two marks. So every process is asked to
hold its writes for a moment (`holdfast.cluster.facts.write_pause`): the calls that come meanwhile
wait. Who does not answer, dies, or holds for too short a time cannot spoil a backup: it can only
make an attempt fail, and the next one is made half a second later.

On an embedded log nobody else writes, and what is there is the cut.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

from holdfast import chance, limits
from holdfast.admin.backup.places import changes_nothing, is_passing
from holdfast.admin.backup.spool import Spool
from holdfast.cluster.facts import write_pause
from holdfast.engines.base import Engine, Record
from holdfast.errors import NoQuorum, Overloaded, Unknown
from holdfast.records import subjects
from holdfast.records.packs import unfold

Report = Callable[[str, dict[str, Any]], None]
_ANSWER_SECONDS: Final = 1.0
"""How long a process may take to finish the batches that are under way."""


class _Reading:
    """The tail of one cell, into the spool."""

    def __init__(self, engine: Engine, cell: str, place: int, spool: Spool) -> None:
        self.cell = cell
        self.position = 0
        """The highest sequence read."""
        self.disturbed_at = 0
        """Above it every sequence up to ``position`` was seen, and none changes anything."""
        self.disturbed_by = ""
        self.caught_up = False
        self.moved = asyncio.Event()
        self._engine = engine
        self._place = place
        self._spool = spool
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        tail = self._engine.log.tail(self.cell, [f"{self.cell}.>"])
        try:
            async for chunk in tail:
                for subject, sequence, _ in chunk.records:
                    if not changes_nothing(subject):
                        self.disturbed_at, self.disturbed_by = sequence, subject
                    elif sequence != self.position + 1:
                        self.disturbed_at, self.disturbed_by = (
                            sequence - 1,
                            "a record that was replaced at once",
                        )
                    self.position = sequence
                self._spool.put(
                    self._place,
                    [one for one in unfold(chunk.records) if not is_passing(one.subject)],
                )
                self.caught_up = self.caught_up or chunk.caught_up
                self.moved.set()
        finally:
            await tail.aclose()  # type: ignore[attr-defined]  # tails are async generators

    async def until(self, fits: Callable[[], bool], patience_seconds: float) -> None:
        """Wait for something to become true by reading. Raises `NoQuorum` where nothing comes for
        so long."""
        while not fits():
            self.moved.clear()
            moved = asyncio.ensure_future(self.moved.wait())
            await asyncio.wait(
                {moved, self._task}, timeout=patience_seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if self._task.done():
                moved.cancel()
                await self._task
            if not moved.done():
                moved.cancel()
                raise NoQuorum(f"the cell {self.cell} cannot be read on: no server sends anything")

    def end(self) -> None:
        """Read no more, from now on."""
        self._task.cancel()

    async def stop(self) -> None:
        """`end`, and wait for it."""
        self.end()
        await asyncio.gather(self._task, return_exceptions=True)


async def take(
    engine: Engine,
    cells: Sequence[str],
    processes: Callable[[], list[str]],
    spool: Spool,
    report: Report,
) -> list[int]:
    """Fill the spool with everything up to a cut; return the cut: per cell the sequence of its
    first mark.

    ``processes``: those that are asked to hold. Raises `Overloaded` where no attempt succeeds,
    `NoQuorum`.
    """
    readings = [_Reading(engine, cell, place, spool) for place, cell in enumerate(cells)]
    began_at = asyncio.get_running_loop().time()
    try:
        for reading in readings:
            await reading.until(lambda r=reading: r.caught_up, limits.QUORUM_WAIT_SECONDS)  # type: ignore[misc]
        report("read", {"seconds": asyncio.get_running_loop().time() - began_at})
        if engine.name == "local":
            return [
                max(reading.position, await engine.log.last_sequence(reading.cell))
                for reading in readings
            ]
        why = ""
        random = chance.random()
        for _ in range(limits.CUT_ATTEMPTS_MAX):
            first, why = await _attempt(engine, readings, processes(), report)
            if first:
                return first
            report("again", {"why": why})
            await asyncio.sleep(random.uniform(0.2, 0.8))
        raise Overloaded(
            f"in {limits.CUT_ATTEMPTS_MAX} attempts the cluster was not still for a moment; the "
            f"last time: {why}. Try again, when less is going on"
        )
    finally:
        await asyncio.gather(*(reading.stop() for reading in readings))


async def _attempt(
    engine: Engine, readings: list[_Reading], processes: list[str], report: Report
) -> tuple[list[int], str]:
    """The first marks, where nothing lies between them and the second; else why not."""
    loop = asyncio.get_running_loop()
    began_at = loop.time()
    silent = await write_pause.hold(engine, processes, _ANSWER_SECONDS)
    report("held", {"silent": sorted(silent)})
    try:
        async with asyncio.timeout(limits.HOLD_SECONDS):
            first = await _mark(engine, readings)
            second = await _mark(engine, readings)
    except (TimeoutError, NoQuorum, Unknown) as error:
        return [], f"{type(error).__name__} {error}"
    finally:
        write_pause.release(engine)
    # Also what was read behind the second mark is in the spool by now: it may have replaced a
    # record of the cut.
    for reading, mark in zip(readings, first, strict=True):
        if reading.disturbed_at > mark:
            return [], f"{reading.disturbed_by} was written to {reading.cell}"
    report("cut", {"held_seconds": loop.time() - began_at, "marks": [first, second]})
    for reading in readings:
        reading.end()
    return first, ""


async def _mark(engine: Engine, readings: list[_Reading]) -> list[int]:
    """Append a mark to every cell, and wait until the tails are past them."""
    written = await asyncio.gather(
        *(engine.log.append(one.cell, [Record(subjects.mark(one.cell), b"")]) for one in readings)
    )
    marks = [sequences[0] for sequences in written]
    for reading, mark in zip(readings, marks, strict=True):
        await reading.until(lambda r=reading, m=mark: r.position >= m, limits.HOLD_SECONDS)  # type: ignore[misc]
    return marks
