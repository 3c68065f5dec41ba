"""Packs: the records of many agents in one record of the log.

What a record costs the servers does not depend on its size, as long as it is small. So a node that
has many small records to write puts them into one, ``<cell>.pk.<chain>.<slot>``. Each of them
counts as if it stood alone, under its agent's own subject and with the pack's sequence: `unfold` is
all that a reader needs.

A slot is written again only when each agent of its pack has a newer record elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

import msgspec

from holdfast import codec
from holdfast.engines.base import Record, Stored
from holdfast.errors import DataLoss
from holdfast.records import subjects

_decode: Final = msgspec.msgpack.Decoder(list[tuple[int, str, bytes]]).decode


class Packed(Stored):
    """An agent's record that lies in a pack: the subject is the agent's, the sequence is the
    pack's."""

    __slots__ = ()


def filter_of(cell: str, chain: str = "*") -> str:
    """The subjects of one chain's packs, or of all."""
    return subjects.pack(cell, chain, subjects.ANY)


def record(cell: str, chain: str, slot: int, entries: list[tuple[int, str, bytes]]) -> Record:
    """A pack of (shard, agent, the agent's record)."""
    return Record(subjects.pack(cell, chain, slot), codec.seal(codec.encode_raw(entries)))


def entries(stored: Stored) -> list[tuple[int, str, bytes]]:
    """What is in a pack. Raises `DataLoss` where it is damaged."""
    return decode(stored.payload, f"{stored.subject} {stored.sequence}")


def decode(payload: bytes, what: str) -> list[tuple[int, str, bytes]]:
    """What is in a pack's payload. ``what`` names it in the error. Raises `DataLoss` where it is
    damaged."""
    try:
        return _decode(codec.unseal(payload, what))
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DataLoss(f"{what}: not a pack of records: {error}") from None


def unfold(
    records: Iterable[Stored], on_damage: Callable[[Stored, DataLoss], None] | None = None
) -> Iterator[Stored]:
    """The records, and in place of each pack the agents' records in it.

    A damaged pack is passed over, and told to ``on_damage``; where that is not given, it raises
    `DataLoss`.
    """
    for stored in records:
        if subjects.is_pack(stored.subject):
            cell = subjects.cell_of(stored.subject)
            try:
                found = entries(stored)
            except DataLoss as error:
                if on_damage is None:
                    raise
                on_damage(stored, error)
                continue
            for number, token, payload in found:
                yield Packed(subjects.record(f"{cell}.{number}", token), stored.sequence, payload)
        else:
            yield stored
