"""The ownership records of all shards, as the log has them: every node follows all of them.

A record's sequence is the shard's epoch. It only grows, so what lags is recognised.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

import msgspec

from holdfast import codec, ids
from holdfast.engines.base import Engine, Expect, Record, Stored
from holdfast.errors import DataLoss, NoQuorum, Unknown
from holdfast.records import subjects

_logger = logging.getLogger(__name__)


class EpochRecord(msgspec.Struct, array_like=True):
    """Who owns a shard; nobody where ``owner`` is empty, and then ``next`` may name who should
    claim it."""

    owner: str
    host: str
    nonce: str
    at: float
    next: str = ""
    chain: str = ""
    """Of the owner: see `holdfast.cluster.fence_chain`."""
    packs: list[str] = []
    """Other chains in whose packs there may be records of the shard."""
    released: int = 0
    """The newest epoch of the shard that ended in order; owners that come after it say so too."""
    ended: list[tuple[int, str]] = []
    """The last epochs that ended otherwise, with their owners. Of the newest record's owner it is
    not known yet."""
    interrupted: tuple[int, float] = (0, 0.0)
    """See `Epoch.interrupted`; a sequence of -1 stands for this record's own, with its time."""

    def inherit(self, before: Epoch) -> None:
        """What is known of owners that ended goes on from record to record."""
        self.ended, self.interrupted = before.record.ended, before.interrupted


class Claim(NamedTuple):
    """A shard that was claimed: its epoch, whether the owner before let go of it, the chain that
    fences it, and whether nothing of it can be in the packs of other chains. ``before``: the epoch
    in which it was served before, 0 where that is not known; ``owner``: who owned it then, where
    that owner did not let go of it; ``released``: the newest epoch that ended in order, 0 where
    none is known to; ``ended``: the last epochs that ended otherwise, with their owners;
    ``interrupted``: see `Epoch`."""

    epoch: int
    clean: bool
    chain: str
    settled: bool
    before: int = 0
    owner: str = ""
    released: int = 0
    ended: tuple[tuple[int, str], ...] = ()
    interrupted: tuple[int, float] = (0, 0.0)

    def owner_in(self, epoch: int) -> str:
        """Who did not let go of the shard in an epoch before; empty where that is not known."""
        return next((owner for ended, owner in self.ended if ended == epoch), "")


class Epoch(msgspec.Struct, frozen=True):
    """A shard's newest epoch record and its sequence. Sequence 0: it never had one."""

    sequence: int
    record: EpochRecord

    @property
    def interrupted(self) -> tuple[int, float]:
        """A sequence and a time: what came before, and timers due by then, may have been in the
        hands of a process that ended. Owners that let go of the shard in order change nothing about
        that."""
        before, due = self.record.interrupted
        return (self.sequence, self.record.at) if before < 0 else (before, due)


NOBODY: Final = Epoch(0, EpochRecord("", "", "", 0.0))
_decode = msgspec.msgpack.Decoder(EpochRecord).decode
_decode_settled = msgspec.msgpack.Decoder(int).decode


def settled(cell: str, number: int, epoch: int) -> Record:
    """Says that since this epoch no record of the shard is in the packs of other chains than the
    owner's."""
    return Record(subjects.settled(cell, number), codec.seal(codec.encode_raw(epoch)))


def successor(cell: str, number: int, before: int, record: EpochRecord) -> Record:
    """An epoch record that is written only if the one before is still the newest."""
    name = subjects.epoch(cell, number)
    return Record(name, codec.seal(codec.encode_raw(record)), Expect(name, before))


class Epochs:
    """The newest epoch that this node knows of each shard. ``on_newer`` hears of those that the log
    shows."""

    def __init__(self, engine: Engine, on_newer: Callable[[int, int], None]) -> None:
        self.newest: dict[int, Epoch] = {}
        self._settled: dict[int, int] = {}
        self.heard: set[str] = set()
        """The cells whose epochs have been read up to their present end."""
        self._engine = engine
        self._on_newer = on_newer

    def get(self, number: int) -> Epoch:
        """A shard's newest epoch."""
        return self.newest.get(number, NOBODY)

    def holders(self) -> Mapping[int, str]:
        """Per shard its owner, or who was named to be the next."""
        return {
            number: epoch.record.owner or epoch.record.next for number, epoch in self.newest.items()
        }

    def hosts(self) -> Mapping[str, str]:
        """Per owner its host."""
        return {epoch.record.owner: epoch.record.host for epoch in self.newest.values()}

    def packs(self, number: int) -> set[str]:
        """The chains in whose packs records of the shard may be. A view that lags names too many,
        never too few."""
        newest = self.get(number)
        found = {newest.record.chain} - {""}
        return (
            found
            if self._settled.get(number) == newest.sequence
            else found.union(newest.record.packs)
        )

    def release(
        self, number: int, epoch: int, host: str, at: float, next_owner: str
    ) -> EpochRecord:
        """The record by which the owner of this epoch lets go of a shard in order."""
        record = EpochRecord("", host, ids.new_id("r"), at, next_owner, released=epoch)
        record.inherit(self.get(number))
        return record

    def note(self, number: int, sequence: int, record: EpochRecord) -> None:
        """Take what is known of a shard; an older one changes nothing."""
        if sequence > self.get(number).sequence:
            self.newest[number] = Epoch(sequence, record)

    async def follow(self, cell: str, wake: Callable[[], None]) -> None:
        """Follow a cell's epochs for ever."""
        filters = [subjects.epoch(cell, subjects.ANY), subjects.settled(cell, subjects.ANY)]
        async for chunk in self._engine.log.tail(cell, filters):
            for stored in chunk.records:
                try:
                    number = subjects.shard_of(stored.subject)
                    if subjects.kind_of(stored.subject) == subjects.SETTLED:
                        self._settled[number] = _decode_settled(
                            codec.unseal(stored.payload, stored.subject)
                        )
                        continue
                    self._take(number, stored)
                except (ValueError, msgspec.MsgspecError, DataLoss) as error:
                    _logger.error("%s is no ownership record: %s", stored.subject, error)
                    continue
                self._on_newer(number, stored.sequence)
            if chunk.caught_up:
                self.heard.add(cell)
            wake()

    async def refresh(self, cell: str, numbers: Iterable[int]) -> None:
        """Read some epochs, for a tail that lags; a read that lags itself changes nothing."""
        for number in numbers:
            try:
                stored = await self._engine.log.read(cell, subjects.epoch(cell, number))
            except (NoQuorum, Unknown):
                return
            if stored is not None:
                self._take(number, stored)

    def _take(self, number: int, stored: Stored) -> None:
        self.note(number, stored.sequence, _decode(codec.unseal(stored.payload, stored.subject)))
