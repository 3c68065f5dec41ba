"""The replicas of one cell, compared record by record, while the cluster goes on writing.

All replicas are read side by side in the order of their sequences; what is compared is forgotten at
once, so memory stays flat. A cell that is written to is another thing a moment later: a record that
one replica shows may have been replaced before the next one was read. So what differs is only a
*candidate*. The replicas are given the time to reach the same sequence, and the candidates are read
again, several times. A replica that differs from the others in the same records in every round has
diverged; what was replaced, purged or late agrees by the next round.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Final
from zlib import crc32

import msgspec

from holdfast import codec, ids
from holdfast.core.replicas import Mark
from holdfast.engines.base import Stored
from holdfast.engines.nats.blobs import Whole
from holdfast.engines.nats.connection import Connection
from holdfast.engines.nats.replica import Replica, ends, open_replicas
from holdfast.errors import DataLoss
from holdfast.records import subjects

CANDIDATES_MAX: Final = 100_000
"""Sequences that are looked at again; a replica that lost more is known by these."""

_ROUNDS_MIN: Final = 4
_ROUNDS_MAX: Final = 12
_PAUSE_SECONDS: Final = 0.5
_REACH_SECONDS: Final = 10.0

_SEALED: Final = frozenset(
    {
        subjects.RECORD,
        subjects.INBOX,
        subjects.OUTBOX,
        subjects.DEAD_LETTER,
        subjects.EPOCH,
        subjects.SETTLED,
    }
)
_SEALED_OF_A_CELL: Final = frozenset(
    {subjects.RELAY, subjects.MANIFEST, subjects.ENTRY, subjects.PACK, "whole"}
)
_decode_whole = msgspec.msgpack.Decoder(Whole).decode


class Difference(msgspec.Struct):
    """A record of which the replicas show different things, or one that is damaged on all.
    ``marks``: by server."""

    subject: str
    marks: dict[str, Mark | None]


class Contents(msgspec.Struct):
    """What a comparison found. ``blobs``: keys of blobs whose parts do not add up, the same on all
    replicas."""

    records: int = 0
    bytes: int = 0
    rounds: int = 0
    differences: dict[int, Difference] = {}
    more: bool = False
    """There were more differences than are looked at again."""
    blobs: set[str] = set()


def is_sealed(subject: str) -> bool:
    """Whether records of this subject end in a checksum. Proofs of life and the parts of blobs do
    not."""
    tokens = subject.split(".")
    if len(tokens) < 2:
        return False
    if tokens[1].isdigit():
        return len(tokens) > 2 and tokens[2] in _SEALED
    return tokens[1] in _SEALED_OF_A_CELL


def is_intact(subject: str, payload: bytes) -> bool:
    """Whether a record's checksum agrees, or it has none."""
    if is_sealed(subject):
        try:
            codec.unseal(payload, subject)
        except DataLoss:
            return False
    return True


async def compare(connection: Connection, cell: str, servers: Sequence[str]) -> Contents:
    """Compare the replicas on these servers. Raises `NoQuorum` or `Unknown` where one cannot be
    read to its end."""
    until = await _reached(connection, cell, servers, _REACH_SECONDS)
    found = await _scan(connection, cell, servers, 1, until, None)
    while found.differences and found.rounds < _ROUNDS_MAX:
        before = dict(found.differences)
        await asyncio.sleep(_PAUSE_SECONDS * min(found.rounds, 4))
        await _reached(connection, cell, servers, _REACH_SECONDS)
        again = await _scan(connection, cell, servers, min(before), max(before), set(before))
        found.differences = again.differences
        found.rounds += 1
        if found.rounds >= _ROUNDS_MIN and found.differences == before:
            break
    return found


async def _reached(
    connection: Connection, cell: str, servers: Sequence[str], timeout_seconds: float
) -> int:
    """Wait until every replica is where the furthest was; return that sequence. One that does not
    get there is late."""
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout_seconds
    goal = 0
    while True:
        found = await ends(connection, cell, servers)
        goal = goal or max(found.values())
        if loop.time() > end or min(found.values()) >= goal:
            return goal
        await asyncio.sleep(0.1)


async def _scan(
    connection: Connection,
    cell: str,
    servers: Sequence[str],
    first: int,
    until: int,
    only: set[int] | None,
) -> Contents:
    """Compare the records from one sequence up to another, of all or of ``only`` these
    sequences."""
    found = Contents(rounds=1)
    readers = await open_replicas(connection, cell, servers, from_sequence=first)
    heads: dict[str, deque[Stored]] = {server: deque() for server in servers}
    more = set(servers)
    parts: dict[str, tuple[int, int, int]] = {}
    try:
        while more or any(heads.values()):
            await _fill(readers, heads, more, until)
            bound = min((heads[server][-1].sequence for server in more), default=until)
            for records in _aligned(heads, bound):
                if (
                    only is None
                    or next(s.sequence for s in records.values() if s is not None) in only
                ):
                    _compare(records, found, parts)
            await asyncio.sleep(0)
    finally:
        for reader in readers.values():
            reader.close()
    return found


async def _fill(
    readers: Mapping[str, Replica], heads: dict[str, deque[Stored]], more: set[str], until: int
) -> None:
    """Read on where nothing waits; who has no more up to the end leaves ``more``."""
    empty = [server for server in more if not heads[server]]
    for server, chunk in zip(
        empty, await asyncio.gather(*(readers[one].next() for one in empty)), strict=True
    ):
        heads[server].extend(stored for stored in chunk if stored.sequence <= until)
        if not chunk or chunk[-1].sequence >= until:
            more.discard(server)
            # What it has read is still to be compared; nothing more will come.


def _aligned(heads: Mapping[str, deque[Stored]], bound: int) -> Iterable[dict[str, Stored | None]]:
    """What the replicas have of each sequence, in order, as far as all of them were read."""
    while True:
        firsts = [queue[0].sequence for queue in heads.values() if queue]
        if not firsts or (sequence := min(firsts)) > bound:
            return
        yield {
            server: queue.popleft() if queue and queue[0].sequence == sequence else None
            for server, queue in heads.items()
        }


def _compare(
    records: Mapping[str, Stored | None], found: Contents, parts: dict[str, tuple[int, int, int]]
) -> None:
    shown = [stored for stored in records.values() if stored is not None]
    first = shown[0]
    found.records += 1
    found.bytes += len(first.payload)
    intact = is_intact(first.subject, first.payload)
    if len(shown) == len(records) and intact and all(stored == first for stored in shown):
        _follow_blob(first, found, parts)
    elif len(found.differences) < CANDIDATES_MAX:
        marks = {
            server: None if stored is None else _mark(stored) for server, stored in records.items()
        }
        found.differences[first.sequence] = Difference(first.subject, marks)
    else:
        found.more = True


def _mark(stored: Stored) -> Mark:
    digest = ids.digest64(stored.subject.encode() + b"\0" + stored.payload)
    return Mark(digest, is_intact(stored.subject, stored.payload))


def _follow_blob(stored: Stored, found: Contents, parts: dict[str, tuple[int, int, int]]) -> None:
    """Add up a blob's parts, which lie in order before the record that makes it whole."""
    tokens = stored.subject.split(".", 2)
    if len(tokens) < 3 or not tokens[0].endswith("blobs"):
        return
    _, number, key = tokens
    if number == "whole":
        whole = _decode_whole(codec.unseal(stored.payload, stored.subject))
        if parts.pop(key, (0, 0, 0)) != (whole.parts, whole.size, whole.checksum):
            found.blobs.add(key)
        return
    count, size, checksum = parts.get(key, (0, 0, 0)) if number != "0" else (0, 0, 0)
    parts[key] = (count + 1, size + len(stored.payload), crc32(stored.payload, checksum))
