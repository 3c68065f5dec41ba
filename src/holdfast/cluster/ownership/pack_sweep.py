"""Forgetting the packs of chains that have ended, when no shard has a record in them any more.

Whether a shard needs a chain is said by its newest epoch record, and by whether it is settled
since. A view of them that is late, or that was read from a replica that lost some, could miss a
need. So the sweep writes a batch that expects every epoch to be the one that it knows, and purges
only what lies before that batch; and a chain is only swept when it was not needed a sweep before
either.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

from holdfast import limits
from holdfast.cluster.ownership.epochs import Epochs
from holdfast.engines.base import Engine, Expect, Record
from holdfast.errors import Conflict, NoQuorum, Unknown
from holdfast.records import packs, subjects


class PackSweep:
    """One node's part. ``shards``: how many there are now. Of each cell, the owner of the first
    shard that has one sweeps."""

    def __init__(
        self,
        engine: Engine,
        known: Epochs,
        cells: Sequence[str],
        shards: Callable[[], int],
        owned: Collection[int],
    ) -> None:
        self._engine = engine
        self._epochs = known
        self._cells = cells
        self._shards = shards
        self._owned = owned
        self._idle: dict[str, set[str]] = {}
        """Per cell the chains that were not needed at the last sweep."""

    async def run(self) -> None:
        """Sweep now and then, for ever."""
        while True:
            await asyncio.sleep(limits.SWEEP_SECONDS)
            for index, cell in enumerate(self._cells):
                known = set(range(self._shards())).union(self._epochs.newest)
                numbers = sorted(number for number in known if number % len(self._cells) == index)
                first = next(
                    (number for number in numbers if self._epochs.get(number).record.owner), None
                )
                if first in self._owned:
                    with suppress(Conflict, NoQuorum, Unknown):
                        await self._sweep(cell, numbers)
                else:
                    self._idle.pop(cell, None)

    async def _sweep(self, cell: str, numbers: Sequence[int]) -> None:
        shown = await self._engine.log.subjects(cell, [packs.filter_of(cell)])
        there = set(map(subjects.chain_of, shown.subjects if shown else ()))
        needed = set[str]().union(*map(self._epochs.packs, numbers))
        before, self._idle[cell] = self._idle.get(cell, set()), there - needed
        if swept := before & self._idle[cell]:
            records = [
                Record(
                    subjects.sweep(cell, n),
                    b"",
                    Expect(subjects.epoch(cell, n), self._epochs.get(n).sequence),
                )
                for n in numbers
            ]
            sequences = [
                await self._engine.log.append(
                    cell, records[start : start + limits.BATCH_RECORDS_MAX]
                )
                for start in range(0, len(records), limits.BATCH_RECORDS_MAX)
            ]
            for name in sorted(swept):
                await self._engine.log.purge(cell, packs.filter_of(cell, name), sequences[0][0])
