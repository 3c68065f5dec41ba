"""The registry: unique names, found by what they can do, on both engines."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest

from holdfast import (
    AlreadyExists,
    BadMessage,
    InvalidName,
    NotFound,
    OutcomeUnknown,
    TooLarge,
    Unknown,
    Where,
    limits,
)
from holdfast.clock import SYSTEM_CLOCK
from holdfast.cluster.facts.registry import Registry
from holdfast.engines.base import Engine, Record

_numbers = itertools.count()


@pytest.fixture
async def registry(engine: Engine) -> AsyncIterator[Registry]:
    cell = f"reg{os.getpid()}-{next(_numbers)}"
    await engine.ensure_cells([cell], 3 if engine.name == "nats" else 1)
    made = Registry(engine, cell, SYSTEM_CLOCK)
    await made.open()
    yield made
    await made.close()


async def test_create_lookup_update_unregister(registry: Registry) -> None:
    assert registry.lookup("A", "x") is None
    entry = await registry.register("A", "x", capabilities={"read"}, metadata={"size": 1})
    assert registry.lookup("A", "x") == entry
    assert (entry.kind, entry.name, entry.capabilities, dict(entry.metadata)) == (
        "A",
        "x",
        {"read"},
        {"size": 1},
    )
    with pytest.raises(AlreadyExists, match="A/x"):
        await registry.register("A", "x")
    changed = await registry.update("A", "x", metadata={"size": 2})
    assert (changed.capabilities, dict(changed.metadata)) == ({"read"}, {"size": 2})
    assert changed.registered_at == entry.registered_at
    changed = await registry.update("A", "x", capabilities={"write"})
    assert [e.name for e in registry.find(capability=["write"])] == ["x"]
    assert registry.find(capability=["read"]) == []
    await registry.unregister("A", "x")
    assert registry.lookup("A", "x") is None and registry.count() == 0
    for missing in (registry.update("A", "x", metadata={}), registry.unregister("A", "x")):
        with pytest.raises(NotFound):
            await missing
    assert (await registry.register("A", "x")).capabilities == frozenset()


async def test_another_replica_catches_up_and_sees_the_same(
    registry: Registry, engine: Engine
) -> None:
    for n in range(50):
        await registry.register("A", f"x{n}", capabilities={f"c{n % 5}"}, metadata={"n": n})
    await registry.unregister("A", "x7")
    other = Registry(engine, registry._cell, SYSTEM_CLOCK)
    await other.open()
    await other.reach(registry.position)
    assert other.find() == registry.find()
    assert (
        other.count() == 49
        and other.count(capability="c2") == 9
        and other.count(kind="A", capability="c1") == 10
    )
    with pytest.raises(AlreadyExists):
        await other.register("A", "x8")
    await other.register("A", "x7")
    await registry.reach(other.position)
    assert registry.lookup("A", "x7") is not None
    await other.close()


async def test_of_a_hundred_one_gets_the_name(registry: Registry, engine: Engine) -> None:
    other = Registry(engine, registry._cell, SYSTEM_CLOCK)
    await other.open()

    async def create(number: int) -> bool:
        try:
            await (registry, other)[number % 2].register("A", "the-one", metadata={"by": number})
        except AlreadyExists:
            return False
        return True

    made = await asyncio.gather(*map(create, range(100)))
    assert sum(made) == 1
    await registry.reach(other.position)
    entry = registry.lookup("A", "the-one")
    assert entry is not None and entry.metadata["by"] == made.index(True)
    await other.close()


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ([("region", "eq", "eu")], ["a", "b"]),
        ([("region", "ne", "eu")], ["c", "d"]),
        ([("gpu.memory", "gt", 20)], ["b", "c"]),
        ([("gpu.memory", "ge", 24), ("region", "eq", "eu")], ["b"]),
        ([("gpu.memory", "lt", 24)], ["a"]),
        ([("gpu.memory", "le", 24)], ["a", "b"]),
        ([("region", "in", ["us", "asia"])], ["c"]),
        ([("region", "not_in", ["us"])], ["a", "b", "d"]),
        ([("tags.1", "eq", "y")], ["a"]),
        ([Where("nothing.at.all", "eq", None)], []),
        ([("region", "gt", 5)], []),
    ],
)
async def test_queries_over_metadata(
    registry: Registry, where: list[Any], expected: list[str]
) -> None:
    everything: dict[str, dict[str, Any]] = {
        "a": {"region": "eu", "gpu": {"memory": 8}, "tags": ["x", "y"]},
        "b": {"region": "eu", "gpu": {"memory": 24}},
        "c": {"region": "us", "gpu": {"memory": 80}},
        "d": {},
    }
    for name, metadata in everything.items():
        await registry.register("A", name, metadata=metadata)
    assert [entry.name for entry in registry.find(where=where)] == expected


async def test_all_of_several_capabilities(registry: Registry) -> None:
    await registry.register("A", "both", capabilities={"read", "write"})
    await registry.register("A", "one", capabilities={"read"})
    await registry.register("B", "other", capabilities={"read", "write"})
    assert [e.name for e in registry.find(capability=["read", "write"])] == ["both", "other"]
    assert [e.name for e in registry.find(capability=["read"], kind="A")] == ["both", "one"]
    assert [e.name for e in registry.find(capability=["read"], limit=1)] == ["both"]
    assert registry.find(capability=["read", "none"]) == []


async def test_bad_input_is_refused_and_changes_nothing(registry: Registry) -> None:
    bad: list[Any] = [
        (InvalidName, {"name": ""}),
        (InvalidName, {"name": "x" * 300}),
        (InvalidName, {"name": "\ud800"}),
        (InvalidName, {"kind": "1A"}),
        (InvalidName, {"capabilities": ["a b"]}),
        (BadMessage, {"capabilities": "read"}),
        (BadMessage, {"metadata": {"x": object()}}),
        (BadMessage, {"metadata": {1: 2}}),
        (TooLarge, {"metadata": {"x": "y" * (limits.METADATA_BYTES_MAX + 1)}}),
        (TooLarge, {"capabilities": [f"c{n}" for n in range(limits.CAPABILITIES_MAX + 1)]}),
    ]
    for error, changes in bad:
        wanted: dict[str, Any] = {"kind": "A", "name": "x", **changes}
        with pytest.raises(error):
            await registry.register(wanted.pop("kind"), wanted.pop("name"), **wanted)
    for condition in (("x", "like", 1), ("", "eq", 1), ("x", "in", 5), "x = 1", ("x", "eq")):
        with pytest.raises(BadMessage):
            registry.find(where=[condition])  # type: ignore[list-item]
    with pytest.raises(BadMessage):
        registry.find(limit=-1)
    assert registry.count() == 0


async def test_a_write_of_unknown_outcome_has_one_effect(
    registry: Registry, engine: Engine
) -> None:
    """It happens, its answer is lost, and somebody takes the freed name before it is looked for:
    that stays."""
    await registry.register("A", "x")
    other = Registry(engine, registry._cell, SYSTEM_CLOCK)
    await other.open()
    append = registry._appender.append

    async def lose_the_answer(*records: Record) -> int:
        registry._appender.append = append  # type: ignore[method-assign]
        await append(*records)
        await other.reach(await engine.log.last_sequence(registry._cell))
        await other.register("A", "x", metadata={"of": "another"})
        raise Unknown("the answer was lost")

    registry._appender.append = lose_the_answer  # type: ignore[method-assign]
    with pytest.raises(OutcomeUnknown, match="somebody else"):
        await registry.unregister("A", "x")
    entry = other.lookup("A", "x")
    assert entry is not None and entry.metadata["of"] == "another"
    await other.close()


async def test_a_write_whose_answer_was_lost_is_found_again(registry: Registry) -> None:
    append = registry._appender.append

    async def lose_the_answer(*records: Record) -> int:
        registry._appender.append = append  # type: ignore[method-assign]
        await append(*records)
        raise Unknown("the answer was lost")

    registry._appender.append = lose_the_answer  # type: ignore[method-assign]
    entry = await registry.register("A", "x")
    assert registry.lookup("A", "x") == entry
