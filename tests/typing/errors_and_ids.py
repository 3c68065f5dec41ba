"""Read by mypy and pyright, never run: the three families of errors, and what the engine's types
promise."""

from __future__ import annotations

from typing import assert_type

from holdfast.engines.base import Engine, Expect, Record, Stored
from holdfast.errors import (
    ConfigError,
    Conflict,
    Fenced,
    InvalidName,
    Never,
    NotDone,
    OutcomeUnknown,
    Unknown,
)


def families(
    conflict: Conflict, fenced: Fenced, unknown: OutcomeUnknown, name: InvalidName
) -> None:
    not_done: NotDone = conflict
    also_conflict: Conflict = fenced
    outcome: Unknown = unknown
    never: Never = name
    value_error: ValueError = ConfigError("a setting")
    print(not_done, also_conflict, outcome, never, value_error)


async def engine_types(engine: Engine) -> None:
    records = [Record("c.1.epoch", b"", Expect("c.1.epoch", 0))]
    assert_type(await engine.log.append("c", records), range)
    assert_type(await engine.log.read("c", "c.1.epoch"), Stored | None)
    async for chunk in engine.log.tail("c", ["c.>"]):
        assert_type(chunk.records, list[Stored])
        assert_type(chunk.caught_up, bool)
