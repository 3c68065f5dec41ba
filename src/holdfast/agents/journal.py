"""The packs that a committer wrote and that are still needed, and the records that have to leave packs.

An agent whose newest record is in a pack is *packed*; its shard keeps that record in memory. Most agents that are packed
are written again soon, in a newer pack, and cost the log no record of their own. What is left of a pack when it gets old,
or when slots run short, is written as records of their own, and the slot is free again. So is what a shard has in the
packs of owners before, and all that a shard has when it is about to be let go of.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from holdfast import limits

if TYPE_CHECKING:
    from holdfast.agents.shard import Shard


class _Pack(NamedTuple):
    slot: int
    sequence: int
    at: float
    agents: list[tuple[Shard, str]]


class Journal:
    """One committer's packs, oldest first. Times are the loop's, in seconds."""

    def __init__(self) -> None:
        self._packs: deque[_Pack] = deque()
        self._free: list[int] = []
        self._slots = 0
        self._leaving: dict[Shard, None] = {}
        """Shards that are about to be let go of, or that have records in the packs of owners before."""

    def slot(self) -> int | None:
        """Where the next pack may be written; None where all slots are needed."""
        if self._free:
            return self._free[-1]
        return self._slots if self._slots < limits.PACKS_MAX else None

    def hot_from(self) -> int:
        """Agents whose newest record has a lower sequence are not worth a place in a pack: slots run short, and they would
        leave it before they are written again."""
        return self._packs[0].sequence if len(self._packs) >= _short() else 0

    def written(self, slot: int, sequence: int, at: float, agents: list[tuple[Shard, str]]) -> None:
        """A pack was acknowledged."""
        if self._free and self._free[-1] == slot:
            self._free.pop()
        else:
            self._slots = slot + 1
        self._packs.append(_Pack(slot, sequence, at, agents))

    def leave(self, shard: Shard) -> None:
        """Have all records of a shard leave the packs, or those in the packs of owners before."""
        self._leaving[shard] = None

    def next_at(self, now: float) -> float | None:
        """When something is to be moved, if nothing is written before; None for never."""
        if self._leaving:
            return now
        self._tidy()
        return self._packs[0].at + limits.PACKED_SECONDS if self._packs else None

    def due(self, now: float) -> Iterator[tuple[Shard, str]]:
        """The agents whose records are to leave their packs, the most urgent first."""
        for shard in list(self._leaving):
            if not shard.active or not (shard.settling or shard.unsettled):
                del self._leaving[shard]
                continue
            for token in list(shard.packed if shard.settling else shard.foreign()):
                if _rests(shard, token):
                    yield shard, token
        self._tidy()
        short = len(self._packs) - _short()
        for place, pack in enumerate(self._packs):
            if place >= short and pack.at + limits.PACKED_SECONDS > now:
                return
            for shard, token in pack.agents:
                if shard.active and shard.index.get(token) == pack.sequence and _rests(shard, token):
                    yield shard, token

    def settled(self) -> list[Shard]:
        """The shards of which nothing is in the packs of owners before any more, and of which that is not known yet."""
        return [one for one in self._leaving if one.active and one.unsettled and not one.settling and not one.foreign()]

    def _tidy(self) -> None:
        """Free the slots of the oldest packs, as far as nothing in them is needed."""
        while self._packs:
            pack = self._packs[0]
            while pack.agents:
                shard, token = pack.agents[-1]
                if shard.active and shard.index.get(token) == pack.sequence:
                    return
                pack.agents.pop()
            self._free.insert(0, pack.slot)
            self._packs.popleft()


def _short() -> int:
    """With so many packs, old ones have to go."""
    return limits.PACKS_MAX * 3 // 4


def _rests(shard: Shard, token: str) -> bool:
    """Whether the agent is not about to be written anyway."""
    activation = shard.activations.get(token)
    return activation is None or (activation.loaded and not activation.pending and not activation.in_batch)
