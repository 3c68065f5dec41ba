"""Whether what a backup says makes sense: its head, its subjects, and the numbers in them.

Checksums tell that a file is as it was written. They do not tell who wrote it, or with which error.
A file with 2**60 shards, a subject with a line feed, or a record of a cluster's manifest would be
restored, and the nodes that then serve would loop for ever, or take one cluster's records for
another's. So each frame is compared with what Holdfast writes. Creating, verifying and restoring a
backup check the same.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from math import isfinite
from typing import Final

import msgspec

from holdfast import codec, ids, limits
from holdfast.admin.backup.archive import PART_BYTES, Head, Item, Part
from holdfast.admin.backup.places import is_passing
from holdfast.cluster.facts import manifest as manifests
from holdfast.cluster.facts.manifest import Manifest, registry_cell
from holdfast.cluster.facts.placement import read_table
from holdfast.engines.base import Stored
from holdfast.engines.checks import check_subject
from holdfast.errors import ConfigError, DataLoss, InvalidName
from holdfast.records import subjects
from holdfast.records.agent_record import RECORD_VERSION_MIN, AgentRecord

_VERSION: Final = re.compile(r"[0-9A-Za-z.+!_-]{1,64}")
_WORD: Final = re.compile(r"[a-z]{1,16}")
_SHARD: Final = re.compile(r"0|[1-9][0-9]{0,9}")
_TOKENS: Final = {
    subjects.RECORD: 4, subjects.INBOX: 5, subjects.OUTBOX: 5, subjects.DEAD_LETTER: 5,
}  # fmt: skip
_decode_outbox = msgspec.msgpack.Decoder(tuple[str, bytes]).decode


def check_head(head: Head) -> None:
    """Raises `DataLoss` that names what no backup has in its head, `ConfigError` for records of
    another time."""
    if head.record_version < 1:
        raise DataLoss(f"its records have version {head.record_version}, which there never was")
    if head.record_version < RECORD_VERSION_MIN:
        raise ConfigError(
            f"its records have version {head.record_version}, this code reads from "
            f"{RECORD_VERSION_MIN} on"
        )
    if not _VERSION.fullmatch(head.version):
        raise DataLoss(f"it names {head.version[:40]!r} as the version of Holdfast that wrote it")
    manifests.check(
        Manifest(
            head.cluster_id,
            head.generation,
            head.cells,
            head.shards,
            head.record_version,
            head.created_at,
        )
    )
    if head.registry != registry_cell(head.generation):
        raise DataLoss(
            f"it names {head.registry[:40]!r} as its registry, not {registry_cell(head.generation)}"
        )
    if len(head.cuts) != len(head.cells) + 1:
        raise DataLoss(f"it names {len(head.cuts)} sequences for {len(head.cells) + 1} cells")
    top = (head.generation + 1) << limits.GENERATION_BITS
    for cell, sequence in zip([*head.cells, head.registry], head.cuts, strict=True):
        if not 0 <= sequence < top:
            raise DataLoss(f"it names {sequence} as the last sequence of {cell}")


class Sense:
    """What the frames after the head are compared with."""

    def __init__(self, head: Head) -> None:
        check_head(head)
        self._head = head
        self._cells = [*head.cells, head.registry]
        self._shards = head.shards
        """How many there are, as far as the table of pools was read: it is in the registry, which
        comes last."""
        self._highest = (-1, "")
        self._seen: set[bytes] = set()

    def item(self, item: Item) -> None:
        """Raises `DataLoss` for a record that no backup of this cluster holds."""
        if (
            not 0 <= item.cell < len(self._cells)
            or not 1 <= item.sequence <= self._head.cuts[item.cell]
        ):
            raise DataLoss(f"{item.subject[:80]!r}: its record {item.sequence} lies behind the cut")
        cell = self._subject(item.subject)
        if cell != self._cells[item.cell]:
            raise DataLoss(
                f"{item.subject[:80]!r} is not a subject of {self._cells[item.cell]}, where it "
                "stands"
            )
        if is_passing(item.subject) or subjects.word_of(item.subject) == subjects.RELAY:
            raise DataLoss(f"{item.subject[:80]!r} is of the moment: no backup holds it")
        self._record(item.subject)
        # an agent that is there twice is found by its shard's digest
        if (kind := subjects.kind_of(item.subject)) != subjects.RECORD:
            digest = blake2b(item.subject.encode(), digest_size=12).digest()
            if digest in self._seen:
                raise DataLoss(f"{item.subject[:80]!r} is there twice")
            self._seen.add(digest)
        if kind == subjects.OUTBOX:
            self._outgoing(item)
        if item.subject == subjects.placement(self._head.registry):
            self._shards = max(
                self._shards, read_table(Stored(item.subject, item.sequence, item.payload)).shards
            )

    def record(self, subject: str, record: AgentRecord) -> None:
        """Raises `DataLoss` for an agent's record with numbers that none has."""
        if record.blob:
            self._blob(record.blob)
        numbers = (
            record.commit,
            record.previous,
            record.count,
            record.version,
            record.consumed,
            record.generation,
        )
        if min(numbers) < 0 or max(numbers) >= 1 << 63 or not 0 <= record.digest < 1 << 64:
            raise DataLoss(f"{subject[:80]!r}: its record has numbers that none has")
        if not isfinite(record.at) or not all(isfinite(timer.due) for timer in record.timers):
            raise DataLoss(f"{subject[:80]!r}: its record names a moment that is not one")

    def part(self, part: Part) -> None:
        """Raises `DataLoss` for a part of a blob that no backup holds."""
        self._blob(part.key)
        whole = part.offset + len(part.data) == part.size
        if (
            not 0 <= part.size <= limits.BLOB_BYTES_MAX
            or part.offset < 0
            or part.offset + len(part.data) > part.size
        ):
            raise DataLoss(
                f"the blob {part.key[:80]!r}: a part of {len(part.data)} bytes at {part.offset} "
                f"of {part.size}"
            )
        if len(part.data) != PART_BYTES and not whole:
            raise DataLoss(f"the blob {part.key[:80]!r}: a part of it has {len(part.data)} bytes")

    def end(self) -> None:
        """Raises `DataLoss` for shards that are in no pool."""
        shard, subject = self._highest
        if shard >= self._shards:
            raise DataLoss(f"{subject[:80]!r} is of shard {shard}; there are {self._shards}")

    def _subject(self, subject: str) -> str:
        """The cell of a subject. Raises `DataLoss` for one that cannot be."""
        try:
            check_subject(subject)
        except InvalidName as error:
            raise DataLoss(str(error)) from None
        cell, *tokens = subject.split(".")
        if cell not in self._cells or not tokens:
            raise DataLoss(f"{subject[:80]!r} is in none of its cells")
        if _WORD.fullmatch(tokens[0]):
            return cell  # of the whole cell, perhaps of a later version
        if cell == self._head.registry or not _SHARD.fullmatch(tokens[0]):
            raise DataLoss(
                f"{subject[:80]!r} names {tokens[0][:20]!r} as a shard, or as what a cell has"
            )
        shard = subjects.shard_of(subject)
        if self._head.cells[shard % len(self._head.cells)] != cell:
            raise DataLoss(f"{subject[:80]!r}: shard {shard} is not in {cell}")
        self._highest = max(self._highest, (shard, subject))
        return cell

    def _blob(self, key: str) -> None:
        self._subject(key)
        tokens = key.split(".")
        if len(tokens) != 4 or subjects.shard_of(key) < 0:
            raise DataLoss(f"{key[:80]!r} is not the key of a blob")
        self._agent(key, tokens[2])

    def _record(self, subject: str) -> None:
        """A record's subject, beyond its cell."""
        tokens = subject.split(".")
        if subjects.shard_of(subject) < 0:
            if tokens[1] == subjects.ENTRY:
                self._agent(subject, ".".join(tokens[2:]))
            return
        kind = tokens[2] if len(tokens) > 2 else ""
        if not _WORD.fullmatch(kind):
            raise DataLoss(f"{subject[:80]!r} names {kind[:20]!r} as what a shard has")
        if len(tokens) != _TOKENS.get(kind, len(tokens)):
            raise DataLoss(f"{subject[:80]!r} has {len(tokens)} parts, not {_TOKENS[kind]}")
        if kind == subjects.OUTBOX:
            if tokens[3] not in self._head.cells:
                raise DataLoss(f"{subject[:80]!r} is for a cell that is not there")
        elif kind in _TOKENS:
            self._agent(subject, tokens[3])

    def _agent(self, subject: str, token: str) -> None:
        try:
            if ids.agent_token(*ids.from_agent_token(token)) != token:
                raise InvalidName(f"{token[:80]!r} is not how its name is written")
        except InvalidName as error:
            raise DataLoss(f"{subject[:80]!r}: {error}") from None

    def _outgoing(self, item: Item) -> None:
        """What becomes an inbox message of another cell."""
        try:
            subject, _ = _decode_outbox(codec.unseal(item.payload, item.subject))
        except codec.ERRORS as error:
            raise DataLoss(
                f"{item.subject[:80]!r}: not a message for another cell: {error}"
            ) from None
        cell = self._subject(subject)
        self._record(subject)
        if cell != subjects.target_of(item.subject) or subjects.kind_of(subject) != subjects.INBOX:
            raise DataLoss(
                f"{item.subject[:80]!r} is a message for {subject[:80]!r}, which is another cell's"
            )
