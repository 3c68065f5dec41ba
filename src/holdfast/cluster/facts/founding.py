"""Who may found a cluster, and with how many copies: whoever was told so, and nobody else.

The naive answer is that the first process to come makes the streams, with as many copies as it sees
servers. Then a client that asks for the status while three hosts start sees one server, and founds
a cluster that keeps one copy for ever. So founding is a mandate: a host of the cohort has it, a
program asks for it, and both say how many copies there are to be. Everybody else only looks, and
makes nothing on servers that may be somebody else's.

The manifest is written last, when all cells are there. So a cluster that has a manifest is
complete.
"""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple

from holdfast import chance, limits
from holdfast.cluster.facts import manifest as manifests
from holdfast.cluster.facts.cohort import SIZES
from holdfast.cluster.facts.manifest import (
    Manifest,
    data_cells,
    generations,
    newest_generation,
    registry_cell,
)
from holdfast.core import backoff
from holdfast.engines.base import Engine
from holdfast.errors import ConfigError, InvalidName, NoQuorum, NotFound, Unknown

_LOOK_SECONDS: Final = 0.5

NOWHERE: Final = (
    "there is no cluster here yet: start its hosts with `holdfast up`; on servers of your own, "
    "found one with `holdfast found --at URL --replicas N`. Node.join(..., wait=True) waits for one"
)


def check_mandate(engine: Engine, found: bool, replicas: int | None) -> None:
    """Raises `ConfigError` for a number of copies that cannot be, or that is not said."""
    if replicas is not None and (isinstance(replicas, bool) or replicas not in SIZES):
        raise ConfigError(f"a cluster keeps 1, 3 or 5 copies, not {replicas!r}")
    if engine.name == "local" and replicas not in (None, 1):
        raise ConfigError(
            f"the local engine keeps one copy, not {replicas}: leave replicas out, or run a cluster"
        )
    if found and replicas is None and engine.name != "local":
        raise ConfigError(
            "whoever founds a cluster says how many copies it keeps: give replicas=1, 3 or 5 "
            "together with found=True"
        )


class Mandate(NamedTuple):
    """What a process that joins was told. See `Node.join`; ``serves``: whether agents live in
    it."""

    found: bool
    replicas: int | None
    wait: bool
    serves: bool


async def settle(engine: Engine, shards: int, now: float, mandate: Mandate) -> Manifest:
    """The manifest of the cluster that a process joins, or founds; it keeps enough copies for one
    that serves.

    Raises what `find`, `find_or_found` and `check_copies` raise.
    """
    check_mandate(engine, mandate.found, mandate.replicas)
    wanted = mandate.replicas or 1
    if mandate.found or engine.name == "local":
        manifest = await find_or_found(engine, wanted, shards, now)
    else:
        manifest = await find(engine, mandate.wait)
    await check_copies(engine, manifest, wanted if mandate.serves else 1)
    return manifest


async def look(engine: Engine) -> Manifest | None:
    """The manifest of the newest generation, None where no cluster was founded. It makes nothing.

    Servers that were just started have no leaders for a while: it is asked again. Raises what
    `manifests.read` and `Engine.cells` raise.
    """
    random = chance.random()
    attempt = 0
    end = asyncio.get_running_loop().time() + limits.QUORUM_WAIT_SECONDS
    while True:
        cells = await engine.cells()
        if not generations(cells):
            return None
        try:
            return await manifests.read(engine, registry_cell(newest_generation(cells)))
        except InvalidName:  # the registry was removed in between
            return None
        except (NoQuorum, Unknown):
            if asyncio.get_running_loop().time() > end:
                raise
        attempt += 1
        await asyncio.sleep(backoff.delay_seconds(attempt, random))


async def find(engine: Engine, wait: bool) -> Manifest:
    """The manifest of the cluster that is there. ``wait``: for one that is not founded yet, or
    without a majority, for as long as it takes.

    Raises `NotFound` where there is none, `NoQuorum`, and `ConfigError` for one that this code
    cannot join.
    """
    random = chance.random()
    attempt = 0
    while True:
        try:
            if (manifest := await look(engine)) is not None:
                return manifest
            if not wait:
                raise NotFound(NOWHERE)
        except (NoQuorum, Unknown):
            if not wait:
                raise
        attempt += 1
        await asyncio.sleep(backoff.delay_seconds(attempt, random, _LOOK_SECONDS))


async def find_or_found(engine: Engine, replicas: int, shards: int, now: float) -> Manifest:
    """The manifest of the cluster that is there; where there is none, of the one that is founded
    here.

    ``replicas``: how many copies it is to keep. A cluster that keeps another number is left as it
    is. Raises what `find` and `Engine.ensure_cells` raise.
    """
    manifest = await look(engine)
    if manifest is not None:
        # founded by code that wrote the manifest first
        await engine.ensure_cells(manifest.cells, replicas)
        return manifest
    generation = newest_generation(await engine.cells())
    registry, cells = registry_cell(generation), data_cells(generation, replicas)
    await engine.ensure_cells([registry, *cells], replicas)
    wanted = Manifest.new(cells=cells, shards=shards, now=now, generation=generation)
    manifest = await manifests.ensure(engine, registry, wanted)
    if manifest.cells != cells:  # somebody who was told another number was faster
        await engine.ensure_cells(manifest.cells, replicas)
    return manifest


async def check_copies(engine: Engine, manifest: Manifest, wanted: int) -> int:
    """How many copies the cluster keeps of everything. Raises `ConfigError` where they are fewer
    than ``wanted``."""
    copies = await engine.check_cells([registry_cell(manifest.generation), *manifest.cells])
    if copies < wanted:
        raise ConfigError(too_few(copies, wanted))
    return copies


def too_few(copies: int, wanted: int) -> str:
    """What is wrong with a cluster that keeps fewer copies than it was told to."""
    many = f"{copies} cop{'y' if copies == 1 else 'ies'}"
    return (
        f"this cluster keeps {many} of everything, and is to keep {wanted}: one lost disk may lose "
        "data. Raise the copies with `holdfast cohort set HOST,HOST,HOST` (`holdfast hosts` shows "
        f"the names); on servers of your own with `holdfast found --at URL --replicas {wanted}`"
    )
