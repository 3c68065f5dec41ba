"""Cells come and go: listed, made with a first sequence, and removed with everything that they
held."""

from __future__ import annotations

import os

import pytest
from tests.engines.test_log import eventually, put, replicas_agree, take

from holdfast.engines.base import Engine, Record
from holdfast.errors import HoldfastError, InvalidName


async def test_cells_are_listed(engine: Engine, cell: str) -> None:
    assert cell in await engine.cells()
    assert await engine.cells() == sorted(await engine.cells())


async def test_a_cell_begins_where_it_is_told_to(engine: Engine) -> None:
    name, first = f"first{os.getpid()}", 5 << 40
    replicas = 3 if engine.name == "nats" else 1
    await engine.ensure_cells([name], replicas, first)
    assert await put(engine, name, "a") == first
    await engine.ensure_cells([name], replicas)  # it is there: nothing changes
    assert await put(engine, name, "a", expect=first) == first + 1
    await replicas_agree(engine, name)
    assert [one.sequence for one in await take(engine, name, [f"{name}.>"], 1)] == [first + 1]
    await engine.drop_cells([name])


async def test_a_removed_cell_takes_nothing_and_shows_nothing(engine: Engine, cell: str) -> None:
    other = f"{cell}-other"
    replicas = 3 if engine.name == "nats" else 1
    await engine.ensure_cells([other], replicas)
    await put(engine, cell, "a", b"old")
    kept = await put(engine, other, "a", b"kept")
    await engine.drop_cells([cell])
    assert cell not in await engine.cells()
    with pytest.raises(HoldfastError):
        await engine.log.append(cell, [Record(f"{cell}.a", b"x")])
    await engine.drop_cells([cell])  # again is harmless
    assert (await eventually(engine, other, "a", kept)).payload == b"kept"
    await engine.ensure_cells([cell], replicas)
    assert await engine.log.read(cell, f"{cell}.a") is None
    sequence = await put(engine, cell, "a", b"new", expect=0)
    assert [one.payload for one in await take(engine, cell, [f"{cell}.>"], 1)] == [b"new"]
    assert (await eventually(engine, cell, "a", sequence)).payload == b"new"


async def test_an_unusable_name_is_refused(engine: Engine) -> None:
    with pytest.raises(InvalidName):
        await engine.drop_cells(["a b"])
