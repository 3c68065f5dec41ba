"""Is a backup whole? Every byte of it, each agent's record, each shard's digest, and each blob that
a record names.

The digest is the one that owners write with their batches (`holdfast.core.digest`): it shows that
no agent is missing from a shard, and none is older than it should be, whatever replica the backup
was read from.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from holdfast.admin.backup import archive
from holdfast.admin.backup.archive import Frame, Head, Item, Part
from holdfast.admin.backup.sense import Sense
from holdfast.cluster.facts.registry import is_freed
from holdfast.core.digest import before, entry
from holdfast.engines.base import Stored
from holdfast.errors import ConfigError, DataLoss
from holdfast.records import agent_record, subjects
from holdfast.records.agent_record import RECORD_VERSION, AgentRecord


class BackupFacts(msgspec.Struct):
    """What a backup holds. ``created_at``: the moment that it shows, in seconds since 1970;
    ``size`` is in bytes.

    ``messages``: durable ones that were not handled yet. ``cuts``: per cell the sequence up to
    which it has everything.
    """

    path: str
    size: int
    created_at: float
    version: str
    record_version: int
    cluster: str
    generation: int
    shards: int
    cuts: dict[str, int]
    agents: int = 0
    messages: int = 0
    dead_letters: int = 0
    registered: int = 0
    records: int = 0
    blobs: int = 0

    def count(self, item: Item) -> None:
        """Note a record."""
        kind = subjects.kind_of(item.subject)
        self.records += 1
        self.agents += kind == subjects.RECORD
        self.messages += kind in (subjects.INBOX, subjects.OUTBOX)
        self.dead_letters += kind == subjects.DEAD_LETTER
        if subjects.word_of(item.subject) == subjects.ENTRY:
            self.registered += not is_freed(Stored(item.subject, item.sequence, item.payload))


def facts_of(path: Path, head: Head) -> BackupFacts:
    """What the head says; the rest is counted."""
    return BackupFacts(
        str(path),
        0,
        head.created_at,
        head.version,
        head.record_version,
        head.cluster_id,
        head.generation,
        head.shards,
        dict(zip([*head.cells, head.registry], head.cuts, strict=True)),
    )


class ShardCheck:
    """The agents of one shard, added in the order of their sequences, against the digest of its
    newest batch."""

    __slots__ = ("_batch", "_commit", "_count", "_digest", "_said")

    def __init__(self) -> None:
        self._digest = self._count = self._commit = 0
        self._batch: list[tuple[str, int, int]] = []
        self._said = (0, 0)

    def add(self, token: str, sequence: int, record: AgentRecord) -> None:
        """Take an agent's newest record."""
        self._digest ^= entry(token, sequence)
        self._count += 1
        if record.commit > self._commit:
            self._commit, self._batch, self._said = record.commit, [], (0, 0)
        if record.commit == self._commit:
            if record.count:
                self._said = record.digest, record.count
            self._batch.append((token, sequence, record.previous))

    def problem(self) -> str:
        """What is wrong with the shard; empty where nothing is."""
        if self._count == 0 or before(self._digest, self._count, self._batch) == self._said:
            return ""
        return (
            f"its {self._count} agents are not those of its batch {self._commit}, which counted "
            f"{self._said[1]} before it"
        )


class Checks:
    """All that is checked of a backup's records beyond their bytes."""

    def __init__(self, head: Head) -> None:
        self._sense = Sense(head)
        self._shards: dict[int, ShardCheck] = {}
        self._last = [0] * len(head.cuts)
        self.blobs: dict[str, None] = {}
        """The blobs that records name, and that were not shown yet."""
        self._open: Part | None = None

    def item(self, item: Item) -> None:
        """Check a record. Raises `DataLoss`."""
        self._sense.item(item)
        if subjects.is_record(item.subject):
            if item.sequence < self._last[item.cell]:  # those of one pack have the same
                raise DataLoss(f"{item.subject}: its record {item.sequence} is out of order")
            self._last[item.cell] = item.sequence
            token = subjects.agent_of(item.subject)
            record = agent_record.decode(item.payload, f"{item.subject} {item.sequence}")
            self._sense.record(item.subject, record)
            if record.blob:
                self.blobs[record.blob] = None
            shard = subjects.shard_of(item.subject)
            self._shards.setdefault(shard, ShardCheck()).add(token, item.sequence, record)

    def part(self, part: Part) -> None:
        """Check a blob's part. Raises `DataLoss`."""
        self._sense.part(part)
        expected = 0 if self._open is None else self._open.offset + len(self._open.data)
        if part.offset != expected or (self._open is not None and part.key != self._open.key):
            raise DataLoss(f"the blob {part.key}: a part of it is missing")
        if part.offset == 0 and part.key not in self.blobs:
            raise DataLoss(f"the blob {part.key} is there, but no record names it")
        self._open = part
        if part.offset + len(part.data) == part.size:
            del self.blobs[part.key]
            self._open = None

    def shards(self) -> None:
        """Check every shard's digest, when all records were shown. Raises `DataLoss`."""
        self._sense.end()
        for shard, check in sorted(self._shards.items()):
            if problem := check.problem():
                raise DataLoss(f"shard {shard}: {problem}: something of it is missing")

    def end(self) -> None:
        """Check what should have been there. Raises `DataLoss`."""
        self.shards()
        if self._open is not None or self.blobs:
            raise DataLoss(f"the blob {next(iter(self.blobs))} is missing")


def verify(path: Path) -> BackupFacts:
    """Read all of a backup, and check it. Raises `DataLoss` naming the place, `ConfigError` for
    what cannot be read."""
    facts: BackupFacts | None = None
    for frame in checked(path):
        if isinstance(frame, Head):
            facts = facts_of(path, frame)
            continue
        assert facts is not None, "the head comes first"
        if isinstance(frame, Item):
            facts.count(frame)
        elif isinstance(frame, Part):
            facts.blobs += frame.offset == 0
    assert facts is not None, "a file that ends well has a head"
    facts.size = path.stat().st_size
    return facts


def checked(path: Path) -> Iterator[Frame]:
    """The frames of a backup, each checked before it is given. Raises what `verify` raises."""
    checks: Checks | None = None
    try:
        for frame in archive.read(path):
            if isinstance(frame, Head):
                if frame.record_version > RECORD_VERSION:
                    raise ConfigError(
                        f"its records have version {frame.record_version}, this code reads up to "
                        f"{RECORD_VERSION}: use a newer Holdfast"
                    )
                checks = Checks(frame)
            else:
                assert checks is not None, "the head comes first"
                if isinstance(frame, Item):
                    checks.item(frame)
                elif isinstance(frame, Part):
                    checks.part(frame)
                else:
                    checks.end()
            yield frame
    except (DataLoss, ConfigError) as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error}") from None
