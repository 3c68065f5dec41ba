"""Forgetting the packs of chains that have ended, when no shard has a record in them any more."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from contextlib import suppress

from holdfast import limits
from holdfast.cluster import packs
from holdfast.cluster.epochs import Epochs
from holdfast.engines.base import Engine
from holdfast.errors import NoQuorum, Unknown


async def run(engine: Engine, epochs: Epochs, cells: Mapping[str, range], owned: Collection[int]) -> None:
    """Look now and then, for ever. ``cells``: with their shards; the owner of a cell's first shard sweeps it."""
    while True:
        await asyncio.sleep(limits.SWEEP_SECONDS)
        for cell, numbers in cells.items():
            if numbers[0] in owned and cell in epochs.position:
                with suppress(NoQuorum, Unknown):
                    await _sweep(engine, epochs, cell, numbers)


async def _sweep(engine: Engine, epochs: Epochs, cell: str, numbers: range) -> None:
    # Whoever wrote a pack before this position had claimed its shards before it too, so those claims are known here.
    position = epochs.position[cell]
    needed = set[str]().union(*map(epochs.packs, numbers))
    shown = await engine.log.subjects(cell, [packs.filter_of(cell)])
    for name in sorted(set(map(packs.chain_of, shown.subjects if shown else ())) - needed):
        await engine.log.purge(cell, packs.filter_of(cell, name), position)
