"""The manifest: the cluster's facts, written once by whoever comes first. Everybody else reads them."""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from holdfast import chance, codec, ids, limits
from holdfast.core import backoff
from holdfast.engines.base import Engine, Expect, Record
from holdfast.errors import ConfigError, Conflict, DataLoss, NoQuorum, Unknown

RECORD_VERSION: Final = 1
"""The form of all records that this code writes; it reads no later one."""


class Manifest(msgspec.Struct, frozen=True, array_like=True):
    """What never changes in a cluster's life. ``generation`` is raised by a restore, so that old nodes are fenced off.

    ``shards``: how many parts the space of agents has; shard ``s`` is in cell ``cells[s % len(cells)]``.
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
                return _decode(stored.payload)
            await engine.log.append(cell, [Record(subject, payload, Expect(subject, 0))])
            return wanted
        except (Conflict, Unknown, NoQuorum):
            # Another was first, or this very one arrived: the next read tells.
            if asyncio.get_running_loop().time() > end:
                raise
        await asyncio.sleep(backoff.delay_seconds(attempt, random))


def _decode(payload: bytes) -> Manifest:
    try:
        manifest: Manifest = codec.decoder(Manifest).decode(codec.unseal(payload, "the manifest"))
    except codec.ERRORS as error:
        raise DataLoss(f"the manifest cannot be read: {error}") from None
    if manifest.record_version > RECORD_VERSION:
        raise ConfigError(
            f"the cluster's records have version {manifest.record_version}, this code reads up to {RECORD_VERSION}: "
            "upgrade Holdfast on this host"
        )
    return manifest
