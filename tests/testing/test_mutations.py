"""The simulation is only worth what it finds: each protection is taken out, and the right checker
has to miss it.

Which scenario aims at it, which checkers may name what is broken, and how many seeds it may take
stand with each. The table in ``docs/simulation.md`` is held to this file. Run with ``-s`` to see
how many seeds each took.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from holdfast.cluster.facts import founding
from holdfast.cluster.members.liveness import Liveness
from holdfast.cluster.members.standstills import Standstills
from holdfast.cluster.ownership.claims import Claims
from holdfast.cluster.ownership.epochs import Epochs
from holdfast.cluster.ownership.recovery import Recovery
from holdfast.core.delivery import Seen, Verdict
from holdfast.engines.base import Record, Stored
from holdfast.errors import NoQuorum, Unknown
from holdfast.records import agent_record, packs
from holdfast.serving import fast_path
from holdfast.serving.commits.committer import Committer
from holdfast.serving.commits.pack_table import PackTable
from holdfast.serving.runtime import Runtime
from holdfast.serving.shards import shard
from holdfast.serving.shards.outbox_relay import OutboxRelay
from holdfast.serving.turns import attempts, reading, reviving, turn
from holdfast.serving.turns.activation import Activation
from holdfast.testing.simulation import runs

DOCS = Path(__file__).parents[2] / "docs" / "simulation.md"
SEEDS_MAX = 48
"""More than any of them needs by far: the rarest is missed in one seed of six."""

Change = Callable[[pytest.MonkeyPatch], None]


class Mutation(NamedTuple):
    change: Change
    scenario: str
    missed_by: set[str]
    seed: int
    """The seed that showed it when this was written. It is tried first."""


MUTATIONS: dict[str, Mutation] = {}


def mutation(scenario: str, *missed_by: str, seed: int = 0) -> Callable[[Change], Change]:
    def add(change: Change) -> Change:
        MUTATIONS[change.__name__] = Mutation(change, scenario, set(missed_by), seed)
        return change

    return add


def nothing_is_fast(patch: pytest.MonkeyPatch) -> None:
    """What is taken out is of the general way: `tests/agents/test_fast_path.py` holds the other to
    it."""
    patch.setattr(fast_path, "take", lambda *_: False)


@mutation("firsts", "founded_as_told")
def anybody_founds(patch: pytest.MonkeyPatch) -> None:
    async def settle(engine: Any, shards: int, now: float, _mandate: Any) -> Any:
        return await founding.find_or_found(engine, engine.servers(), shards, now)

    patch.setattr(founding, "settle", settle)


@mutation("late", "one_line", "memory_is_the_log")
def a_claim_breaks_no_chain(patch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: Any) -> list[Record]:
        return []

    patch.setattr(Claims, "_breaks", nothing)


@mutation("newborn", "one_line", "acknowledged_is_there", "settles", "memory_is_the_log", seed=1)
def a_slot_is_written_again_too_early(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PackTable, "slot", lambda _: 0)


@mutation("newborn", "one_line", "acknowledged_is_there", "settles", "memory_is_the_log")
def a_claim_forgets_whose_packs_it_needs(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Epochs, "packs", lambda *_: set())


@mutation("newborn", "one_line", "acknowledged_is_there", "settles", "memory_is_the_log", seed=1)
def a_shard_is_settled_at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        PackTable,
        "settled",
        lambda self: [one for one in self._leaving if one.active and one.unsettled],
    )


@mutation("newborn", "one_line", "acknowledged_is_there", "settles", "memory_is_the_log", seed=1)
def a_shard_is_released_with_what_is_packed(patch: pytest.MonkeyPatch) -> None:
    async def drain(
        self: Runtime, targets: dict[int, str], timeout_seconds: float
    ) -> dict[int, int]:
        held = {number: self.shards[number].epoch for number in targets if number in self.shards}
        self.drop_shards(list(targets))
        return held

    patch.setattr(Runtime, "drain", drain)


@mutation("late", "one_line", "once_each", "relay_prefix")
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


@mutation("order", "once_each", "fifo", seed=1)
def no_consumed_sequence(patch: pytest.MonkeyPatch) -> None:
    load = Activation.load

    def forget(
        self: Activation, found: agent_record.AgentRecord | None, state: bytes, sequence: int
    ) -> None:
        if found is not None:
            found.consumed, found.senders = 0, {}
        load(self, found, state, sequence)

    patch.setattr(Activation, "load", forget)


@mutation("stale", "one_line", "inbox_complete", "acknowledged_is_there")
def recovery_ends_where_a_replica_ends(patch: pytest.MonkeyPatch) -> None:
    async def read(
        self: Recovery, cell: str, claims: Any, *_: Any
    ) -> tuple[list[Stored], set[int], set[int]]:
        records: list[Stored] = []
        filters = [*(f"{cell}.{number}.>" for number in claims), packs.filter_of(cell)]
        tail: Any = self._engine.log.tail(cell, filters)
        async for chunk in tail:
            some = packs.unfold(chunk.records)
            records += [
                stored for stored in some if not stored.subject.endswith((".epoch", ".settled"))
            ]
            if chunk.caught_up:
                break
        await tail.aclose()
        return records, set(), set()

    patch.setattr(Recovery, "read", read)
    patch.setattr(shard.Shard, "_verify", lambda *_: None)


@mutation("stale", "one_line", "no_ghost_read", "acknowledged_is_there")
def any_record_is_loaded(patch: pytest.MonkeyPatch) -> None:
    async def read_newest(self: shard.Shard, token: str, sequence: int) -> agent_record.AgentRecord:
        while True:
            try:
                stored = await self.runtime.engine.log.read(self.cell, f"{self.prefix}.st.{token}")
            except (NoQuorum, Unknown):
                stored = None
            if stored is not None:
                return agent_record.decode(stored.payload, f"{self.cell} {sequence} {token}")
            await asyncio.sleep(0.1)

    patch.setattr(shard.Shard, "_read_exactly", read_newest)


@mutation("newborn", "one_line", "acknowledged_is_there")
def recovery_believes_any_replica(patch: pytest.MonkeyPatch) -> None:
    a_replica_is_not_compared_with_the_leader(patch)
    patch.setattr(shard.Shard, "_verify", lambda *_: None)


@mutation("newborn", "one_line", "acknowledged_is_there")
def a_replica_is_not_compared_with_the_leader(patch: pytest.MonkeyPatch) -> None:
    """The digest alone does not miss the agents that a shard's newest batch brought."""

    async def nothing(*_: Any) -> set[str]:
        return set()

    patch.setattr(Recovery, "_lacking", nothing)


@mutation("late", "one_line", "once_each", "relay_prefix", "memory_is_the_log", seed=1)
def an_unknown_outcome_is_taken_for_a_failure(patch: pytest.MonkeyPatch) -> None:
    def put_back(self: Runtime, cell: str) -> None:
        for one in self.shards.values():
            for activation in one.activations.values():
                if one.cell == cell and activation.in_batch:
                    activation.not_written()
                    one.committer.mark(activation)

    patch.setattr(Runtime, "reclaim", put_back)


@mutation("relay", "relay_prefix", "once_each", "fifo")
def a_relay_without_its_cursor(patch: pytest.MonkeyPatch) -> None:
    read_cursor = OutboxRelay._read_cursor

    async def from_the_start(self: OutboxRelay) -> None:
        await read_cursor(self)
        assert self._cursor is not None
        self._cursor = self._cursor[0], 0

    patch.setattr(OutboxRelay, "_read_cursor", from_the_start)


@mutation("attempts", "once_each")
def callers_are_not_numbered(patch: pytest.MonkeyPatch) -> None:
    nothing_is_fast(patch)
    patch.setattr(Seen, "check_caller", lambda *_: Verdict.NEW)


@mutation("life", "one_actor", "no_ghost_read", seed=1)
def a_node_always_takes_itself_for_live(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        Liveness, "live_until", property(lambda _: math.inf, lambda *_: None), raising=False
    )
    patch.setattr(Liveness, "look", lambda _: None)


@mutation("unheard", "one_actor", "no_ghost_read", seed=11)
def a_sentence_without_waiting(patch: pytest.MonkeyPatch) -> None:
    async def condemn(self: Liveness, incarnation: str) -> bool:
        found = [await self._life_of(cell, incarnation) for cell in self._cells]
        return (
            sum([await self._condemn(seen, incarnation) for seen in found if seen is not None])
            >= self._majority
        )

    patch.setattr(Liveness, "condemn", condemn)


@mutation("unchanged", "acknowledged_is_there", "no_ghost_read")
def a_reply_before_its_commit(patch: pytest.MonkeyPatch) -> None:
    note = Activation.note

    def answer_at_once(self: Activation, message: Any) -> None:
        note(self, message)
        if message in self.pending and message.call is not None and not message.read_after:
            message.respond()
            message.sink = None

    nothing_is_fast(patch)
    patch.setattr(Activation, "note", answer_at_once)


@mutation("unchanged", "no_ghost_read")
def an_unchanged_turn_does_not_wait(patch: pytest.MonkeyPatch) -> None:
    """What a turn saw may be uncommitted: it answers although it changed nothing itself."""
    finished = turn.finished

    def at_once(
        activation: Activation, message: Any, method: Any, context: Any, value: Any, state: Any
    ) -> None:
        if message.call is not None and message.handler == "peek":
            message.reply = method.encode_reply(value)
            message.respond()
            message.sink = None
        finished(activation, message, method, context, value, state)

    nothing_is_fast(patch)
    patch.setattr(turn, "finished", at_once)


@mutation("unchanged", "no_ghost_read")
def a_reader_sees_what_is_not_committed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        reading, "committed_view", lambda activation: activation.kind.view(activation.state_bytes)
    )


@mutation("rogues", "no_contagion")
def a_turn_that_raised_is_not_undone(patch: pytest.MonkeyPatch) -> None:
    restore = reviving.restore

    def keep(activation: Activation) -> None:
        if not activation.loaded:
            restore(activation)

    patch.setattr(reviving, "restore", keep)


@mutation("standstill", "stands_still_alone")
def nobody_hears_what_stands_still(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Standstills, "note", lambda *_: [])


@mutation("standstill", "stands_still_alone", seed=2)
def what_stood_still_bears_no_mark(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(attempts, "put", lambda *_: None)


@mutation("standstill", "no_contagion", seed=10)
def a_stop_in_order_is_an_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(attempts, "counting", lambda _, marks: dict(marks))


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", MUTATIONS)
def test_what_is_taken_out_is_missed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change, scenario, missed_by, first = MUTATIONS[name]
    change(monkeypatch)
    for seed in (first, *(seed for seed in range(SEEDS_MAX) if seed != first)):
        outcome = runs.run(runs.load(scenario), seed)
        found = {violation.partition(":")[0] for violation in outcome.violations} & missed_by
        if found:
            print(f"\n{name}: missed by {', '.join(sorted(found))} with seed {seed} of {scenario}")
            return
    pytest.fail(
        f"{name}: none of {', '.join(sorted(missed_by))} missed it in {SEEDS_MAX} seeds of "
        f"{scenario}"
    )


def test_the_table_in_the_docs_is_this_one() -> None:
    rows = [
        line.split("|")[1:4] for line in DOCS.read_text().splitlines() if line.startswith("| `")
    ]
    table = {
        cells[0].strip(" `"): (
            cells[1].strip(" `"),
            set(cells[2].replace("`", "").replace(",", " ").split()),
        )
        for cells in rows
    }
    wanted = {name: (one.scenario, one.missed_by) for name, one in MUTATIONS.items()}
    assert {name: cells for name, cells in table.items() if name in wanted} == wanted
