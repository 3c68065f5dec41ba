"""The packs that a committer wrote and that are still needed, and the records that have to leave
packs.

An agent whose newest record is in a pack is *packed*: the sequence of its newest record is the
pack's. So nothing more is kept of it in memory than of others, and the pack as it was written. Most
agents that are packed are written again soon, in a newer pack, and cost the log no record of their
own. What is left of a pack when it gets old, or when slots run short, is written as records of
their own, and the slot is free again. So is what a shard has in the packs of owners before
(*foreign* to it), and all that a shard has when it is about to be let go of.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from holdfast import limits
from holdfast.records import packs

if TYPE_CHECKING:
    from holdfast.serving.shards.shard import Shard


class Pack:
    """A pack in the log. ``needed``: how many agents have their newest record in it, or more."""

    __slots__ = ("_payload", "_records", "at", "needed", "sequence", "slot")

    def __init__(self, slot: int, sequence: int, at: float, payload: bytes) -> None:
        self.slot = slot
        self.sequence = sequence
        self.at = at
        self.needed = 0
        self._payload = payload
        self._records: dict[tuple[int, str], bytes] = {}

    def records(self) -> dict[tuple[int, str], bytes]:
        """The records in it, by shard and agent."""
        if self._payload:
            self._records = {
                (number, token): record
                for number, token, record in packs.decode(self._payload, "a pack")
            }
            self._payload = b""
        return self._records


class PackTable:
    """One committer's packs. ``shards``: those served here, by number. Times are the loop's, in
    seconds."""

    def __init__(self, shards: Mapping[int, Shard]) -> None:
        self.packs: dict[int, Pack] = {}
        """By their sequences, oldest first."""
        self._shards = shards
        self._free: list[int] = []
        self._slots = 0
        self._leaving: dict[Shard, None] = {}
        """Shards that are about to be let go of, or that have records in the packs of owners
        before."""

    def slot(self) -> int | None:
        """Where the next pack may be written; None where all slots are needed."""
        if self._free:
            return self._free[-1]
        return self._slots if self._slots < limits.PACKS_MAX else None

    def hot_from(self) -> int:
        """Agents whose newest record has a lower sequence are not worth a place in a pack: slots
        run short, and they would leave it before they are written again."""
        return next(iter(self.packs)) if len(self.packs) >= _short() else 0

    def written(self, slot: int, sequence: int, at: float, payload: bytes) -> Pack:
        """A pack was acknowledged."""
        if self._free and self._free[-1] == slot:
            self._free.pop()
        else:
            self._slots = slot + 1
        pack = self.packs[sequence] = Pack(slot, sequence, at, payload)
        return pack

    def leave(self, shard: Shard) -> None:
        """Have all records of a shard leave the packs, or those in the packs of owners before."""
        self._leaving[shard] = None

    def next_at(self, now: float) -> float | None:
        """When something is to be moved, if nothing is written before; None for never."""
        if self._leaving:
            return now
        self._tidy()
        return next(iter(self.packs.values())).at + limits.PACKED_SECONDS if self.packs else None

    def due(self, now: float) -> Iterator[tuple[Shard, str]]:
        """The agents whose records are to leave their packs, the most urgent first."""
        settling: set[Shard] = set()
        for shard in list(self._leaving):
            if not shard.active or not (shard.settling or shard.unsettled):
                del self._leaving[shard]
                continue
            for token in list(shard.foreign):
                if _rests(shard, token):
                    yield shard, token
            if shard.settling and shard.packed > len(shard.foreign):
                settling.add(shard)
        for pack in [pack for pack in self.packs.values() if settling and pack.needed]:
            for shard, token in self._of(pack):
                if shard in settling and _rests(shard, token):
                    yield shard, token
        self._tidy()
        short = len(self.packs) - _short()
        for place, pack in enumerate(list(self.packs.values())):
            if place >= short and pack.at + limits.PACKED_SECONDS > now:
                return
            needed = list(self._of(pack))
            pack.needed = len(needed)  # what was lost with its shard needs it no more
            for shard, token in needed:
                if _rests(shard, token):
                    yield shard, token

    def settled(self) -> list[Shard]:
        """The shards of which nothing is in the packs of owners before any more, and of which that
        is not known yet."""
        return [
            one
            for one in self._leaving
            if one.active and one.unsettled and not one.settling and not one.foreign
        ]

    def _of(self, pack: Pack) -> Iterator[tuple[Shard, str]]:
        """The agents that are served here and have their newest record in a pack."""
        for number, token in pack.records():
            shard = self._shards.get(number)
            if shard is not None and shard.active and shard.index.get(token) == pack.sequence:
                yield shard, token

    def _tidy(self) -> None:
        """Free the slots of the oldest packs, as far as nothing in them is needed."""
        while self.packs:
            oldest = next(iter(self.packs.values()))
            if oldest.needed:
                return
            self._free.insert(0, oldest.slot)
            del self.packs[oldest.sequence]


def _short() -> int:
    """With so many packs, old ones have to go."""
    return limits.PACKS_MAX * 3 // 4


def _rests(shard: Shard, token: str) -> bool:
    """Whether the agent is not about to be written anyway."""
    activation = shard.activations.get(token)
    return activation is None or (
        activation.loaded and not activation.pending and not activation.in_batch
    )
