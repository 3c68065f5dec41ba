"""What the log has of an agent, for people to look at: no agent is woken for it, and no class is
needed."""

from __future__ import annotations

from typing import Any

import msgspec

from holdfast import codec, ids
from holdfast.engines.base import Engine, Stored
from holdfast.errors import BadMessage, NotFound
from holdfast.records import agent_record, packs, subjects


class StoredTimer(msgspec.Struct, frozen=True):
    """A timer that is set. ``due`` is in seconds since 1970."""

    name: str
    handler: str
    due: float


class StoredAgent(msgspec.Struct, frozen=True):
    """An agent's newest record. ``state`` is plain data; ``version`` counts its records; sizes are
    in bytes, ``written_at`` is in s since 1970 (0: not known)."""

    agent_id: str
    version: int
    state_version: int
    state: Any
    state_bytes: int
    timers: list[StoredTimer]
    written_at: float = 0.0


async def read_stored(engine: Engine, cell: str, shard: int, agent_id: str) -> StoredAgent:
    """The newest record that a replica shows. Raises `NotFound`, `NoQuorum`, `DataLoss`,
    `InvalidName`."""
    token = ids.agent_token(*ids.parse_agent_id(agent_id))
    subject = subjects.record(subjects.shard(cell, shard), token)
    stored = await _newest(engine, cell, subject)
    if stored is None:
        raise NotFound(f"{agent_id} has no state: it never finished a message")
    record = agent_record.decode(stored.payload, subject)
    data = await engine.blobs.get(record.blob) if record.blob else record.state
    try:
        state = codec.to_builtins(data) if data else None  # none was made yet
    except BadMessage as error:
        state = f"<{error}>"
    timers = [StoredTimer(timer.name, timer.handler, timer.due) for timer in record.timers]
    return StoredAgent(
        agent_id, record.version, record.state_version, state, len(data), timers, record.at
    )


async def _newest(engine: Engine, cell: str, subject: str) -> Stored | None:
    """Packs first: what leaves one meanwhile is under its own subject then. A damaged pack is
    passed over."""
    found: list[Stored] = []
    tail = engine.log.tail(cell, [packs.filter_of(cell)])
    try:
        async for chunk in tail:
            there = packs.unfold(chunk.records, lambda _pack, _error: None)
            found += [stored for stored in there if stored.subject == subject]
            if chunk.caught_up:
                break
    finally:
        await tail.aclose()  # type: ignore[attr-defined]  # tails are async generators
    alone = await engine.log.read(cell, subject)
    return max(
        [*found[-1:], *([alone] if alone else [])], key=lambda stored: stored.sequence, default=None
    )
