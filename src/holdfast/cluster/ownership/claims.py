"""Writing a claim: the epochs of the shards, and the ends of the chains of those who did not let go
of them.

All of it is one batch, so that nothing of an owner before comes behind the claim of the next one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Final

from holdfast import ids
from holdfast.clock import Clock
from holdfast.cluster import fence_chain
from holdfast.cluster.members.liveness import Liveness, base
from holdfast.cluster.ownership import epochs
from holdfast.cluster.ownership.epochs import Claim, Epoch, EpochRecord, Epochs
from holdfast.engines.base import Engine, Record
from holdfast.errors import Conflict, StorageFailed, Unknown
from holdfast.records import subjects

_logger = logging.getLogger(__name__)

_TRIES: Final = 4
"""Attempts at a claim that others disturb, who break the same chains."""
_ENDED_MAX: Final = 4
"""Owners that are remembered, as they ended without letting go: a mark that one of them wrote is
judged by how it ended."""


class Claims:
    """One node's claims. ``reclaim``: stop all shards of a cell, and end this node's chain there.
    ``failures``: takes, for each cell, why it cannot be claimed."""

    def __init__(
        self,
        engine: Engine,
        clock: Clock,
        known: Epochs,
        life: Liveness,
        host: str,
        reclaim: Callable[[str], None],
        failures: dict[str, str],
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._epochs = known
        self._life = life
        self._host = host
        self._reclaim = reclaim
        self._failures = failures
        self._broken: set[tuple[str, str]] = set()
        """Chains that are known to be broken, with their cells."""

    async def append(self, cell: str, before: Mapping[int, Epoch]) -> dict[int, Claim]:
        """Claim shards of one cell whose epochs are these. One claim of a cell at a time.

        Raises `Conflict` where an epoch is another by now, `NoQuorum`, `Unknown`.
        """
        mine = self._life.chains[cell]
        if any(mine.name in self._epochs.packs(number) for number in before):
            # A batch of these shards may be under way, or some of its packs may be needed for them.
            self._reclaim(cell)
        breaks = await self._breaks(cell, before)
        for attempt in range(1, _TRIES + 1):
            name, begins = mine.name, not mine.link and not self._life.embedded
            claims = self._records(name, before)
            records = [
                epochs.successor(cell, number, before[number].sequence, claims[number])
                for number in before
            ]
            first = [mine.next_link()] if begins else []
            highest = self._life.highest(cell)
            try:
                sequences = await self._engine.log.append(cell, [*records, *breaks, *first])
            except StorageFailed as error:
                self._failed(cell, error)
                raise
            except (Conflict, Unknown) as error:
                if begins and mine.name == name:
                    mine.end()
                if isinstance(error, Unknown):
                    raise
                others, breaks = breaks, await self._breaks(cell, before)
                if others == breaks or attempt == _TRIES:
                    raise
            else:
                self._life.wrote(cell, sequences[-1], highest)
                break
        self._broken.update((cell, subjects.chain_of(record.subject)) for record in breaks)
        if begins and mine.name == name:
            mine.link = sequences[-1]
        for number, sequence in zip(before, sequences, strict=False):
            self._epochs.note(number, sequence, claims[number])
        return {
            number: self._claim(Epoch(sequence, claims[number]), before[number], name)
            for number, sequence in zip(before, sequences, strict=False)
        }

    def _failed(self, cell: str, error: StorageFailed) -> None:
        """A node whose disk was full before it began says so, as no call can: nothing of it is
        served yet."""
        if self._failures.get(cell) != str(error):
            _logger.error("%s cannot be served: %s", cell, error)
        self._failures[cell] = str(error)

    def _claim(self, now: Epoch, before: Epoch, chain: str) -> Claim:
        record, clean = now.record, self._let_go(before)
        last = (record.released, "") if clean else (before.sequence, before.record.owner)
        ended = tuple(record.ended)
        return Claim(
            now.sequence,
            clean,
            chain,
            not record.packs,
            *last,
            record.released,
            ended,
            now.interrupted,
        )

    def _let_go(self, epoch: Epoch) -> bool:
        """Whether its owner did not end with it in hand."""
        return not epoch.record.owner or base(epoch.record.owner) == base(self._life.incarnation)

    def _records(self, name: str, before: Mapping[int, Epoch]) -> dict[int, EpochRecord]:
        claims, nonce, now = {}, ids.new_id("c"), self._clock.now()
        for number, epoch in before.items():
            claim = EpochRecord(self._life.incarnation, self._host, nonce, now)
            claim.released = epoch.record.released
            claim.inherit(epoch)
            if not self._let_go(epoch):
                claim.ended = [*claim.ended, (epoch.sequence, epoch.record.owner)][-_ENDED_MAX:]
                claim.interrupted = (-1, 0.0)
            if not self._life.embedded:
                claim.chain, claim.packs = name, sorted(self._epochs.packs(number))
            claims[number] = claim
        return claims

    async def _breaks(self, cell: str, before: Mapping[int, Epoch]) -> list[Record]:
        """The records that break the chains of those that did not let go. Raises `NoQuorum`,
        `Unknown`."""
        names = {
            epoch.record.chain
            for epoch in before.values()
            if epoch.record.owner and epoch.record.chain
        }
        found = []
        for name in sorted(names):
            if (cell, name) not in self._broken:
                newest = await self._engine.log.read(cell, subjects.link(cell, name))
                if fence_chain.is_broken(newest):
                    self._broken.add((cell, name))
                else:
                    found.append(fence_chain.breaking(cell, name, newest))
        return found
