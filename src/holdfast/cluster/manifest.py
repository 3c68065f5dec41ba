"""The manifest: the cluster's facts, written once by whoever comes first. Everybody else reads them."""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from holdfast import chance, codec, ids, limits
from holdfast.core import backoff
from holdfast.engines.base import Engine, Expect, Record
from holdfast.errors import ConfigError, Conflict, DataLoss, NoQuorum, OutcomeUnknown, Unknown

RECORD_VERSION: Final = 2
"""The newest form of records that this code can write; it reads no later one."""

RECORD_VERSION_MIN: Final = 1
"""The oldest form that it reads. Releases that follow each other have one in common, so that they can run side by side."""


class Manifest(msgspec.Struct, frozen=True, array_like=True):
    """A cluster's facts. ``generation`` is raised by a restore, so that old nodes are fenced off.

    ``shards``: how many parts the main pool has; shard ``s`` is in cell ``cells[s % len(cells)]``. ``record_version``: the
    form in which records are written, raised when all nodes can read a newer one.
    """

    cluster_id: str
    generation: int
    cells: list[str]
    shards: int
    record_version: int
    created_at: float

    @classmethod
    def new(cls, *, cells: list[str], shards: int, now: float) -> Manifest:
        """A new cluster's manifest."""
        return cls(ids.new_id("c"), 1, cells, shards, RECORD_VERSION, now)


async def ensure(engine: Engine, cell: str, wanted: Manifest) -> Manifest:
    """The cluster's manifest; where there is none, ``wanted`` becomes it, for one of all that try.

    Raises `ConfigError` for one that this code cannot read, `NoQuorum`, `Unknown`.
    """
    subject = f"{cell}.manifest"
    payload = codec.seal(codec.encode_raw(wanted))
    random = chance.random()
    attempt = 0
    end = asyncio.get_running_loop().time() + limits.QUORUM_WAIT_SECONDS
    while True:
        attempt += 1
        try:
            stored = await engine.log.read(cell, subject)
            if stored is not None:
                return decode(stored.payload)
            await engine.log.append(cell, [Record(subject, payload, Expect(subject, 0))])
            return wanted
        except (Conflict, Unknown, NoQuorum):
            # Another was first, or this very one arrived: the next read tells.
            if asyncio.get_running_loop().time() > end:
                raise
        await asyncio.sleep(backoff.delay_seconds(attempt, random))


async def raise_version(engine: Engine, cell: str, version: int) -> Manifest:
    """Have records written in a newer form from now on; the manifest as it is then.

    Raises `ConfigError` for a version that does not follow the present one, `NoQuorum`, `OutcomeUnknown`.
    """
    subject = f"{cell}.manifest"
    random = chance.random()
    end = asyncio.get_running_loop().time() + limits.QUORUM_WAIT_SECONDS
    for attempt in range(1, 1000):
        try:
            stored = await engine.log.read(cell, subject)
            now = None if stored is None else decode(stored.payload)
            if stored is None or now is None:
                raise ConfigError("there is no manifest: nothing was ever stored here")
            if now.record_version == version:
                return now
            if now.record_version != version - 1:
                raise ConfigError(f"records have version {now.record_version}, which {version} does not follow")
            wanted = msgspec.structs.replace(now, record_version=version)
            payload = codec.seal(codec.encode_raw(wanted))
            await engine.log.append(cell, [Record(subject, payload, Expect(subject, stored.sequence))])
            return wanted
        except Conflict:
            pass
        except (NoQuorum, Unknown) as error:
            if asyncio.get_running_loop().time() > end:
                if isinstance(error, Unknown):
                    raise OutcomeUnknown(f"the version of records may have been raised: {error}") from None
                raise
        await asyncio.sleep(backoff.delay_seconds(attempt, random))
    raise AssertionError("not reached")


def decode(payload: bytes) -> Manifest:
    """The manifest of a record. Raises `DataLoss`, and `ConfigError` for one that this code cannot go along with."""
    try:
        manifest: Manifest = codec.decoder(Manifest).decode(codec.unseal(payload, "the manifest"))
    except codec.ERRORS as error:
        raise DataLoss(f"the manifest cannot be read: {error}") from None
    if manifest.record_version > RECORD_VERSION:
        raise ConfigError(
            f"the cluster's records have version {manifest.record_version}, this code reads up to {RECORD_VERSION}: "
            "upgrade Holdfast on this host"
        )
    if manifest.record_version < RECORD_VERSION_MIN:
        raise ConfigError(
            f"the cluster's records have version {manifest.record_version}, this code reads from {RECORD_VERSION_MIN} on: "
            "upgrade to a release in between first, and `holdfast upgrade --finalize` there"
        )
    return manifest
