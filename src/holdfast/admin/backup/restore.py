"""A backup into a fresh cluster, or a fresh embedded log.

What is restored is a new **generation** of the cluster. It has cells of its own (``g2reg``,
``g2c0``, …), so nothing of the time before can write to it: those cells are gone, or were never
there. Its sequences begin above those of all generations before (`holdfast.admin.backup.rewrite`).

An interrupted restore is no half cluster. The first thing that is written is a manifest that says
that a restore runs; no node serves with that one, and none can write another. The last thing is the
manifest without it. A second try takes another generation and removes what the first left behind,
so a first one that is not dead after all finds no cells.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from holdfast import chance, limits
from holdfast.admin.backup import rewrite
from holdfast.admin.backup.archive import Head, Item, Part
from holdfast.admin.backup.cut import Report
from holdfast.admin.backup.places import Places, is_passing
from holdfast.admin.backup.rewrite import Batches
from holdfast.admin.backup.verify import BackupFacts, checked, verify
from holdfast.admin.presence import Presence, look
from holdfast.cluster.facts import manifest as manifests
from holdfast.cluster.facts.cohort import SIZES
from holdfast.cluster.facts.manifest import Manifest, data_cells, generations, registry_cell
from holdfast.cluster.members.beats import BEAT_SUBJECT, beat_door
from holdfast.core import backoff
from holdfast.engines.base import Engine, Message, Record, Stored
from holdfast.engines.checks import HEADER_BYTES
from holdfast.errors import ConfigError, Conflict, DataLoss, NoQuorum, Unknown
from holdfast.records import subjects

_OURS: Final = re.compile(r"g([0-9]{1,6})(?:reg|c[0-9]{1,2})", re.ASCII)
_FOUNDING: Final = frozenset({subjects.PLACEMENT, subjects.EVENT, subjects.RELAY})
"""What a cluster that nobody has used yet may have beside what is of the moment."""

_LISTEN_SECONDS: Final = 3 * limits.BEAT_SECONDS


async def restore(
    engine: Engine,
    path: Path,
    *,
    generation: int | None = None,
    replicas: int | None = None,
    cells: int | None = None,
    report: Report | None = None,
) -> BackupFacts:
    """Restore a backup, and return what it holds, with the new generation and cells.

    ``engine``: open; no node may serve there. ``generation``: of the restored cluster, higher than
    those before; by default the next one. ``replicas``: by default as many as there are servers.
    ``cells``: by default as many.

    Raises `DataLoss` where the backup is damaged, `ConfigError` where the target is not empty or is
    served, `NoQuorum`, `Unknown`. After each of them the same can be tried again.
    """
    say = report or _silent
    facts = await asyncio.to_thread(verify, path)
    await _nobody_serves(engine)
    there = await engine.cells()
    known = await _empty(engine, there)
    newest = max([facts.generation, *known, *map(rewrite.generation_of, facts.cuts.values())])
    generation = newest + 1 if generation is None else generation
    if not newest < generation <= limits.GENERATION_MAX:
        raise ConfigError(
            f"the generation {generation} is none of a restored cluster: it is {newest + 1} or "
            "higher"
        )
    replicas = replicas or await _copies(engine)
    registry = registry_cell(generation)
    names = data_cells(generation, cells or replicas)
    first = rewrite.first_sequence(generation)
    await engine.ensure_cells([registry], replicas, first)
    manifest = Manifest(
        facts.cluster,
        generation,
        names,
        facts.shards,
        facts.record_version,
        facts.created_at,
        path.name,
    )
    try:
        begun = await manifests.write(engine, registry, manifest, 0)
    except Conflict:
        raise ConfigError("somebody else restores here: wait for that one to end") from None
    say("begun", {"generation": generation, "cells": names, "copies": replicas})
    await _remove(engine, [cell for cell in there if _OURS.fullmatch(cell)])
    await engine.ensure_cells(names, replicas, first)
    await _Copy(engine, path, names, registry, say).run()
    await _finish(engine, registry, msgspec.structs.replace(manifest, restoring=""), begun)
    facts.generation, facts.cuts = (
        generation,
        {cell: await engine.log.last_sequence(cell) for cell in names},
    )
    say("restored", {})
    return facts


async def _copies(engine: Engine) -> int:
    """As many as there are hosts that vote; on servers that no host runs, as many as are known."""
    seen = Presence() if engine.name == "local" else await look(engine.bus)
    count = (
        engine.servers() if seen.record is None else len(seen.record.target or seen.record.members)
    )
    return max(size for size in SIZES if size <= max(count, 1))


# The target ---------------------------------------------------------------------------------------


async def _nobody_serves(engine: Engine) -> None:
    """Raises `ConfigError` where nodes beat that serve agents."""
    if engine.name == "local":
        return  # whoever has it open keeps everybody else out
    found: dict[str, str] = {}
    door = beat_door()

    def heard(message: Message) -> None:
        beat = door.read(message)
        if beat is not None and beat.kinds and not beat.leaving:
            found[beat.incarnation] = beat.name

    subscription = await engine.bus.subscribe(BEAT_SUBJECT, heard)
    await asyncio.sleep(_LISTEN_SECONDS)
    await subscription.close()
    if found:
        names = ", ".join(sorted(found.values()))
        raise ConfigError(
            f"{names} serve here: a restore needs servers without nodes (`holdfast up --nodes 0`)"
        )


async def _read_manifest(engine: Engine, registry: str) -> Stored | None:
    """The manifest; servers that were just started have no leaders for a while."""
    random = chance.random()
    end = asyncio.get_running_loop().time() + limits.QUORUM_WAIT_SECONDS
    attempt = 0
    while True:
        attempt += 1
        try:
            return await engine.log.read(registry, subjects.manifest(registry))
        except NoQuorum:
            if asyncio.get_running_loop().time() > end:
                raise
        await asyncio.sleep(backoff.delay_seconds(attempt, random))


async def _empty(engine: Engine, there: Sequence[str]) -> list[int]:
    """The generations that were founded here. Raises `ConfigError` where one of them was used."""
    found = generations(there)
    for generation in found:
        registry = registry_cell(generation)
        stored = await _read_manifest(engine, registry)
        if stored is not None and manifests.decode(stored.payload).restoring:
            continue  # what an interrupted restore left behind
        for cell in there:
            ours = _OURS.fullmatch(cell)
            if (
                ours
                and int(ours[1]) == generation
                and (subject := await _first_of_use(engine, cell))
            ):
                raise ConfigError(
                    f"the target is not empty: it has {subject}. Restore into servers with empty "
                    "directories, or into an embedded log that is not there yet"
                )
    return found


async def _first_of_use(engine: Engine, cell: str) -> str:
    """The first subject that says that the cell was used; empty where there is none."""
    tail = engine.log.tail(cell, [f"{cell}.>"])
    try:
        async with asyncio.timeout(limits.QUORUM_WAIT_SECONDS):
            async for chunk in tail:
                for stored in chunk.records:
                    if (
                        not is_passing(stored.subject)
                        and subjects.word_of(stored.subject) not in _FOUNDING
                    ):
                        return stored.subject
                if chunk.caught_up:
                    return ""
    except TimeoutError:
        raise NoQuorum(f"the cell {cell} cannot be read: no server sends anything") from None
    finally:
        await tail.aclose()  # type: ignore[attr-defined]  # tails are async generators
    return ""


async def _remove(engine: Engine, cells: Sequence[str]) -> None:
    """Remove cells that nobody used, or that are half of a restore, with their blobs."""
    for cell in cells:
        for key in await engine.blobs.keys(cell):
            await engine.blobs.delete(key)
    await engine.drop_cells(cells)


async def _finish(engine: Engine, registry: str, manifest: Manifest, begun: int) -> None:
    """Write the manifest with which nodes may serve."""
    random = chance.random()
    end = asyncio.get_running_loop().time() + limits.QUORUM_WAIT_SECONDS
    for attempt in range(1, 1_000_000):
        try:
            await manifests.write(engine, registry, manifest, begun)
            return
        except (Conflict, NoQuorum, Unknown) as error:
            # An attempt of ours may have been written all the same.
            stored = None
            with suppress(NoQuorum, Unknown):
                stored = await engine.log.read(registry, subjects.manifest(registry))
            if stored is not None and stored.sequence > begun:
                if manifests.decode(stored.payload) == manifest:
                    return
                raise ConfigError("somebody else restored here meanwhile") from None
            if asyncio.get_running_loop().time() > end:
                raise error
        await asyncio.sleep(backoff.delay_seconds(attempt, random))


# The copy -----------------------------------------------------------------------------------------


class _Copy:
    """All of a backup's records and blobs into the new cells."""

    def __init__(
        self, engine: Engine, path: Path, cells: list[str], registry: str, say: Report
    ) -> None:
        self._engine = engine
        self._path = path
        self._cells = cells
        self._registry = registry
        self._say = say
        self._writers: dict[str, _CellWriter] = {}
        self._blob: list[bytes] = []

    async def run(self) -> None:
        """Copy. Raises what `Log.append` and `Blobs.put` raise, and `DataLoss`."""
        places: Places | None = None
        try:
            for frame in checked(self._path):
                if isinstance(frame, Head):
                    places = Places(frame.cells, frame.registry, self._cells, self._registry)
                    for cell in (*self._cells, self._registry):
                        self._writers[cell] = _CellWriter(self._engine, cell, Batches(places))
                    continue
                assert places is not None, "the head comes first"
                if isinstance(frame, Item):
                    await self._item(frame, places)
                elif isinstance(frame, Part):
                    await self._part(frame, places)
            for writer in self._writers.values():
                await writer.finish()
        finally:
            for writer in self._writers.values():
                await writer.stop()

    async def _item(self, item: Item, places: Places) -> None:
        if subjects.is_record(item.subject):
            await self._writers[places.move(item.subject)[0]].agent(item)
        else:
            cell, record = rewrite.moved(item, places)
            await self._writers[cell].record(record)

    async def _part(self, part: Part, places: Places) -> None:
        self._blob.append(part.data)
        if part.offset + len(part.data) == part.size:
            await self._engine.blobs.put(places.move(part.key)[1], b"".join(self._blob))
            self._blob = []


class _CellWriter:
    """One new cell: one batch is under way while the next one fills."""

    def __init__(self, engine: Engine, cell: str, batches: Batches) -> None:
        self._engine = engine
        self._cell = cell
        self._batches = batches
        self._agents: list[Item] = []
        self._others: list[Record] = []
        self._size = 0
        self._writing: asyncio.Task[None] | None = None
        self._random = chance.random()

    async def agent(self, item: Item) -> None:
        """Take an agent's record."""
        await self._room(len(item.payload) + len(item.subject) + 64)
        self._agents.append(item)

    async def record(self, record: Record) -> None:
        """Take another record; they are written in the order in which they come."""
        await self._room(len(record.payload) + len(record.subject))
        self._others.append(record)

    async def _room(self, size: int) -> None:
        size += HEADER_BYTES
        count = len(self._agents) + len(self._others)
        if count and (
            count >= limits.BATCH_RECORDS_MAX or self._size + size > limits.BATCH_BYTES_MAX
        ):
            await self._flush()
        self._size += size

    async def _flush(self) -> None:
        if self._writing is not None:
            await self._writing
        agents, others = self._agents, self._others
        self._agents, self._others, self._size = [], [], 0
        if agents or others:
            self._writing = asyncio.create_task(self._write(self._batches.make(agents, others)))

    async def _write(self, records: list[Record]) -> None:
        """Append, for as long as it takes to know that it is written."""
        end = asyncio.get_running_loop().time() + 2 * limits.QUORUM_WAIT_SECONDS
        for attempt in range(1, 1_000_000):
            try:
                self._batches.written(await self._engine.log.append(self._cell, records))
                return
            except Conflict:
                # Only these very records can be in the way.
                with suppress(NoQuorum, Unknown):
                    stored = await self._engine.log.read(self._cell, records[0].subject)
                    if stored is not None and stored.payload == records[0].payload:
                        self._batches.written(
                            range(stored.sequence, stored.sequence + len(records))
                        )
                        return
            except (NoQuorum, Unknown):
                if asyncio.get_running_loop().time() > end:
                    raise
            if asyncio.get_running_loop().time() > end:
                raise DataLoss(
                    f"{records[0].subject} is in {self._cell}, with another content than it was "
                    "given"
                )
            await asyncio.sleep(backoff.delay_seconds(attempt, self._random))

    async def finish(self) -> None:
        """Write what waits, and wait for it."""
        await self._flush()
        if self._writing is not None:
            await self._writing

    async def stop(self) -> None:
        """Leave nothing running."""
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)


def _silent(_event: str, _facts: dict[str, Any]) -> None:
    pass
