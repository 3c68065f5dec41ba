"""The simulation is only worth what it finds: each protection is taken out, and has to be missed within a few seeds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from holdfast.agents import record, repeats, shard
from holdfast.agents.activation import Activation
from holdfast.agents.committer import Committer
from holdfast.agents.relay import Relay
from holdfast.agents.runtime import Runtime
from holdfast.cluster.life import Life
from holdfast.cluster.ownership import Ownership
from holdfast.core.delivery import Seen, Verdict
from holdfast.engines.base import Record, Stored
from holdfast.errors import NoQuorum, Unknown
from holdfast.testing import simulation

SEEDS = 40
MUTATIONS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {}


def mutation(change: Callable[[pytest.MonkeyPatch], None]) -> Callable[[pytest.MonkeyPatch], None]:
    MUTATIONS[change.__name__] = change
    return change


@mutation
def no_fence(patch: pytest.MonkeyPatch) -> None:
    build = Committer._build

    async def unfenced(self: Committer) -> Any:
        batch = await build(self)
        batch.records = [
            Record(one.subject, one.payload) if one.expect and one.expect.subject.endswith(".epoch") else one
            for one in batch.records
        ]
        return batch

    patch.setattr(Committer, "_build", unfenced)


@mutation
def no_link_between_batches(patch: pytest.MonkeyPatch) -> None:
    build = Committer._build

    async def unlinked(self: Committer) -> Any:
        batch = await build(self)
        first = batch.records[0]
        batch.records[0] = Record(first.subject, first.payload)
        return batch

    patch.setattr(Committer, "_build", unlinked)

    async def resend(self: Committer, batch: Any) -> None:
        self._put_back(batch)

    patch.setattr(Committer, "_conflict", resend)


@mutation
def no_consumed_sequence(patch: pytest.MonkeyPatch) -> None:
    load = Activation.load

    def forget(self: Activation, found: record.AgentRecord | None, state: bytes, sequence: int) -> None:
        if found is not None:
            found.consumed, found.senders = 0, {}
        load(self, found, state, sequence)

    patch.setattr(Activation, "load", forget)


@mutation
def recovery_ends_where_a_replica_ends(patch: pytest.MonkeyPatch) -> None:
    async def read_all(self: Ownership, cell: str, claims: Any) -> tuple[list[Stored], set[int]]:
        records: list[Stored] = []
        tail: Any = self._engine.log.tail(cell, [f"{cell}.{number}.>" for number in claims])
        async for chunk in tail:
            records += [stored for stored in chunk.records if not stored.subject.endswith(".epoch")]
            if chunk.caught_up:
                break
        await tail.aclose()
        return records, set()

    patch.setattr(Ownership, "_read_all", read_all)
    patch.setattr(shard.Shard, "_verify", lambda *_: None)


@mutation
def any_record_is_loaded(patch: pytest.MonkeyPatch) -> None:
    async def read_newest(self: shard.Shard, token: str, sequence: int) -> record.AgentRecord:
        while True:
            try:
                stored = await self.runtime.engine.log.read(self.cell, f"{self.prefix}.st.{token}")
            except (NoQuorum, Unknown):
                stored = None
            if stored is not None:
                return record.unpack(stored.payload, f"{self.cell} {sequence} {token}")
            await asyncio.sleep(0.1)

    patch.setattr(shard.Shard, "_read_exactly", read_newest)


@mutation
def an_unknown_outcome_is_taken_for_a_failure(patch: pytest.MonkeyPatch) -> None:
    def put_back(self: Runtime, cell: str, shards: list[shard.Shard]) -> None:
        for one in shards:
            for activation in one.activations.values():
                if activation.in_batch:
                    activation.not_written()
                    one.mark(activation)

    patch.setattr(Runtime, "reclaim", put_back)


@mutation
def a_relay_without_its_cursor(patch: pytest.MonkeyPatch) -> None:
    read_cursor = Relay._read_cursor

    async def from_the_start(self: Relay) -> None:
        await read_cursor(self)
        assert self._cursor is not None
        self._cursor = self._cursor[0], 0

    patch.setattr(Relay, "_read_cursor", from_the_start)
    patch.setattr(repeats, "_inbox_seen", _only_the_consumed_sequence)


def _only_the_consumed_sequence(activation: Any, message: Any) -> bool:
    if message.message is None:
        return message.timer is not None and (activation.timers or {}).get(message.timer.name) != message.timer
    if message.sequence <= activation.consumed:
        activation.shard.consumed(message.sequence)
        return True
    return False


@mutation
def callers_are_not_numbered(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Seen, "check_caller", lambda *_: Verdict.NEW)


@mutation
def a_node_always_takes_itself_for_live(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Life, "live", lambda _: True)
    patch.setattr(Life, "look", lambda _: None)


@mutation
def a_sentence_without_waiting(patch: pytest.MonkeyPatch) -> None:
    async def condemn(self: Life, incarnation: str) -> bool:
        found = [await self._life_of(cell, incarnation) for cell in self._cells]
        return sum([await self._condemn(seen, incarnation) for seen in found if seen is not None]) >= self._majority

    patch.setattr(Life, "condemn", condemn)


@mutation
def a_reply_before_its_commit(patch: pytest.MonkeyPatch) -> None:
    note = Activation.note

    def answer_at_once(self: Activation, message: Any) -> None:
        note(self, message)
        if message in self.pending and message.call is not None and not message.read_after:
            message.respond()
            message.sink = None

    patch.setattr(Activation, "note", answer_at_once)


@pytest.mark.parametrize("name", MUTATIONS)
def test_what_is_taken_out_is_missed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTATIONS[name](monkeypatch)
    scenario = simulation.load("storm")
    for seed in range(SEEDS):
        outcome = simulation.run(scenario, seed)
        if outcome.violations:
            print(f"{name}: found with seed {seed}: {outcome.violations[0][:200]}")
            return
    pytest.fail(f"{name} was not missed in {SEEDS} seeds")
