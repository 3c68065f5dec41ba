"""What is wrong with an embedded log: the file, every record's and blob's checksum, every shard's
digest, the disk.

It holds the log's own lock meanwhile, so that no process opens it, and changes nothing.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from zlib import crc32

from holdfast.admin.doctor.doctor import Diagnosis, disk
from holdfast.admin.doctor.findings import Finding, finding, ordered
from holdfast.admin.scrub.contents import is_intact
from holdfast.admin.scrub.digests import ShardReading
from holdfast.core.replicas import spans
from holdfast.engines.base import Stored
from holdfast.engines.local.lock import InUse, Lock
from holdfast.errors import ConfigError, DataLoss
from holdfast.records import subjects

_SPANS_MAX: Final = 20
_LINES_MAX: Final = 5


async def examine_file(path: Path) -> Diagnosis:
    """Look at the whole file, in a thread. Raises `ConfigError` where there is none."""
    if not path.exists():
        raise ConfigError(f"there is no file {path}")
    return Diagnosis(await asyncio.to_thread(lambda: ordered(_examine(path))), 0, 0, 0)


def _examine(path: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(path.parent)
    yield from disk(str(path), str(path.parent), free.free, free.total)
    try:
        with _locked(path) as owner:
            if owner:
                yield finding("file-in-use", str(path), f"process {owner} has it open")
                return
            # Not by mode=ro: what a crash left in the -wal file belongs to the log.
            connection = sqlite3.connect(f"file:{path}?mode=rw", uri=True)
            try:
                connection.execute("PRAGMA query_only = ON")
                yield from _look(path, connection)
            finally:
                connection.close()
    except OSError as error:
        yield finding("file-unreadable", str(path), str(error))
    except sqlite3.DatabaseError as error:
        damaged = getattr(error, "sqlite_errorname", "").startswith(
            ("SQLITE_CORRUPT", "SQLITE_NOTADB")
        )
        yield finding("file-damaged" if damaged else "file-unreadable", str(path), str(error))


@contextmanager
def _locked(path: Path) -> Iterator[str]:
    """Keep every log out; yields the process that has it open, empty where none has."""
    if not os.access(path, os.R_OK | os.W_OK):
        raise PermissionError(f"{path} may not be read and written by this user")
    lock = Lock(path)
    try:
        lock.take()
    except InUse as error:
        yield error.owner
        return
    try:
        yield ""
    finally:
        lock.release()


def _look(path: Path, connection: sqlite3.Connection) -> Iterator[Finding]:
    lines = [str(row[0]) for row in connection.execute(f"PRAGMA quick_check({_LINES_MAX})")]
    if lines != ["ok"]:
        yield finding("file-damaged", str(path), "; ".join(lines))
    shards: dict[str, ShardReading] = {}
    damaged: list[int] = []
    rows = connection.execute(
        "SELECT records.subject, records.sequence, records.payload FROM records ORDER BY "
        "records.sequence"
    )
    for subject, sequence, payload in rows:
        try:
            if not is_intact(subject, payload):
                raise DataLoss(subject)
            if subjects.is_record(subject):
                prefix = subjects.shard(subjects.cell_of(subject), subjects.shard_of(subject))
                shards.setdefault(prefix, ShardReading(prefix)).add(
                    Stored(subject, sequence, payload)
                )
        except DataLoss:
            damaged.append(sequence)
    if damaged:
        text = f"{len(damaged)} records, at {', '.join(spans(damaged, _SPANS_MAX))}"
        yield finding("record-damaged", str(path), text)
    bad = [str(key) for key, checksum, value in _blobs(connection) if crc32(value) != checksum]
    if bad:
        yield finding(
            "record-damaged", str(path), f"{len(bad)} blobs: {', '.join(bad[:_SPANS_MAX])}"
        )
    for shard in shards.values():
        try:
            shard.check()
        except DataLoss as error:
            yield finding("shard-digest", str(path), str(error))


def _blobs(connection: sqlite3.Connection) -> Iterator[tuple[str, int, bytes]]:
    yield from connection.execute("SELECT key, checksum, value FROM blobs")
