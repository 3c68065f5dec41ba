"""The manifest: the cluster's facts, written once by whoever founds it. Everybody else reads them.

The cells' names begin with the cluster's **generation** (``g1reg``, ``g1c0``), which a restore
raises. So a process of the time before finds no cell to write to, and a process that starts finds
the newest generation by its registry cell, where the manifest is. While a restore runs, that
manifest says so, and nobody else can write another.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Iterable
from typing import Final

import msgspec

from holdfast import chance, codec, ids, limits
from holdfast.core import backoff
from holdfast.engines.base import Engine, Expect, Record
from holdfast.errors import ConfigError, Conflict, DataLoss, NoQuorum, OutcomeUnknown, Unknown
from holdfast.records import subjects
from holdfast.records.agent_record import RECORD_VERSION, RECORD_VERSION_MIN

_REGISTRY_CELL: Final = re.compile(r"g([0-9]{1,6})reg", re.ASCII)
_CLUSTER_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_CELLS_MAX: Final = 100
_MOMENT_MAX: Final = 253_402_300_800.0  # the year 10000: no calendar shows later ones
_PATIENCE_SECONDS: Final = 2.0


def registry_cell(generation: int) -> str:
    """The cell of a generation's manifest and registry."""
    return f"g{generation}reg"


def data_cells(generation: int, count: int) -> list[str]:
    """The cells of a generation's agents."""
    return [f"g{generation}c{index}" for index in range(count)]


def generations(cells: Iterable[str]) -> list[int]:
    """Those that have a registry cell, oldest first."""
    return sorted(int(found[1]) for cell in cells if (found := _REGISTRY_CELL.fullmatch(cell)))


def newest_generation(cells: Iterable[str]) -> int:
    """The one to join: 1 where there is none yet."""
    return max(generations(cells), default=1)


class Manifest(msgspec.Struct, frozen=True, array_like=True):
    """A cluster's facts. ``generation`` is raised by a restore, so that old nodes are fenced off.

    ``shards``: how many parts the main pool has; shard ``s`` is in cell ``cells[s % len(cells)]``.
    ``record_version``: of the records that are written; raised when all nodes can read a newer one.
    """

    cluster_id: str
    generation: int
    cells: list[str]
    shards: int
    record_version: int
    created_at: float
    restoring: str = ""
    """What is being restored here; nobody may serve before that is done."""

    @classmethod
    def new(cls, *, cells: list[str], shards: int, now: float, generation: int = 1) -> Manifest:
        """A new cluster's manifest."""
        return cls(ids.new_id("c"), generation, cells, shards, RECORD_VERSION, now)


async def read(engine: Engine, cell: str) -> Manifest | None:
    """The cluster's manifest, None where none was written. Raises `ConfigError` for one that this
    code cannot read, and while a restore runs; `NoQuorum`, `Unknown`, `InvalidName` without such a
    cell.
    """
    started = asyncio.get_running_loop().time()
    random = chance.random()
    for attempt in itertools.count(1):
        stored = await engine.log.read(cell, subjects.manifest(cell))
        if stored is None:
            return None
        manifest = decode(stored.payload)
        if not manifest.restoring:
            return manifest
        # What was read may be older than the end of the restore.
        if asyncio.get_running_loop().time() > started + _PATIENCE_SECONDS:
            raise ConfigError(
                f"a restore of {manifest.restoring} runs here, or did not come to its end: wait "
                "for it, or run it again"
            )
        await asyncio.sleep(backoff.delay_seconds(attempt, random))
    raise AssertionError("not reached")


async def ensure(engine: Engine, cell: str, wanted: Manifest) -> Manifest:
    """The cluster's manifest; where there is none, ``wanted`` becomes it, for one of all that try.

    Raises `ConfigError` for one that this code cannot read, and while a restore runs; `NoQuorum`,
    `Unknown`.
    """
    random = chance.random()
    attempt = 0
    end = asyncio.get_running_loop().time() + limits.QUORUM_WAIT_SECONDS
    while True:
        attempt += 1
        try:
            if (manifest := await read(engine, cell)) is not None:
                return manifest
            await write(engine, cell, wanted, 0)
            return wanted
        except (Conflict, Unknown, NoQuorum):
            # Another was first, or this very one arrived: the next read tells.
            if asyncio.get_running_loop().time() > end:
                raise
        await asyncio.sleep(backoff.delay_seconds(attempt, random))


async def write(engine: Engine, cell: str, manifest: Manifest, expected: int) -> int:
    """Write it over the one with a sequence (0: there is none), and return its own. Raises what
    `Log.append` raises."""
    subject = subjects.manifest(cell)
    payload = codec.seal(codec.encode_raw(manifest))
    return (await engine.log.append(cell, [Record(subject, payload, Expect(subject, expected))]))[0]


async def raise_version(engine: Engine, cell: str, version: int) -> Manifest:
    """Have records of a newer version written from now on; return the manifest as it is then.

    Raises `ConfigError` for a version that does not follow the present one, `NoQuorum`,
    `OutcomeUnknown`.
    """
    subject = subjects.manifest(cell)
    random = chance.random()
    end = asyncio.get_running_loop().time() + limits.QUORUM_WAIT_SECONDS
    for attempt in range(1, 1000):
        try:
            stored = await engine.log.read(cell, subject)
            if stored is None:
                raise ConfigError("there is no manifest: nothing was ever stored here")
            now = decode(stored.payload)
            if now.record_version == version:
                return now
            if now.record_version != version - 1:
                raise ConfigError(
                    f"records have version {now.record_version}, which {version} does not follow"
                )
            wanted = msgspec.structs.replace(now, record_version=version)
            await write(engine, cell, wanted, stored.sequence)
            return wanted
        except Conflict:
            pass
        except (NoQuorum, Unknown) as error:
            if asyncio.get_running_loop().time() > end:
                if isinstance(error, Unknown):
                    raise OutcomeUnknown(
                        f"the version of records may have been raised: {error}"
                    ) from None
                raise
        await asyncio.sleep(backoff.delay_seconds(attempt, random))
    raise AssertionError("not reached")


def decode(payload: bytes) -> Manifest:
    """The manifest of a record. Raises `DataLoss`, and `ConfigError` for one that this code cannot
    go along with."""
    try:
        manifest: Manifest = codec.decoder(Manifest).decode(codec.unseal(payload, "the manifest"))
    except codec.ERRORS as error:
        raise DataLoss(f"the manifest cannot be read: {error}") from None
    if manifest.record_version > RECORD_VERSION:
        raise ConfigError(
            f"the cluster's records have version {manifest.record_version}, this code reads up to "
            f"{RECORD_VERSION}: upgrade Holdfast on this host"
        )
    if manifest.record_version < RECORD_VERSION_MIN:
        raise ConfigError(
            f"the cluster's records have version {manifest.record_version}, this code reads from "
            f"{RECORD_VERSION_MIN} on: upgrade to a release in between first, and `holdfast "
            "upgrade --finalize` there"
        )
    check(manifest)
    return manifest


def check(manifest: Manifest) -> None:
    """Whether it is the manifest of a cluster that can be. Raises `DataLoss` that names what is
    wrong.

    The numbers in it are counts of what nodes make at their start, so one that is far too large
    would never come to an end.
    """
    wrong = ""
    if not _CLUSTER_ID.fullmatch(manifest.cluster_id):
        wrong = f"the cluster's id {manifest.cluster_id[:40]!r}"
    elif not 1 <= manifest.generation <= limits.GENERATION_MAX:
        wrong = f"the generation {manifest.generation}"
    elif not 1 <= manifest.shards <= limits.POOL_SHARDS_MAX:
        wrong = f"{manifest.shards} shards"
    elif not 1 <= len(manifest.cells) <= _CELLS_MAX:
        wrong = f"{len(manifest.cells)} cells"
    elif manifest.cells != data_cells(manifest.generation, len(manifest.cells)):
        wrong = (
            f"the cells {', '.join(map(repr, manifest.cells))[:80]} of generation "
            f"{manifest.generation}"
        )
    elif not 0 <= manifest.created_at < _MOMENT_MAX:
        wrong = f"the moment {manifest.created_at}"
    if wrong:
        raise DataLoss(
            f"it names {wrong}, which no cluster has: it is damaged, or was not written by Holdfast"
        )
