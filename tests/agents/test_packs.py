"""Small records in packs: what is in them is found by who takes over, and leaves them before they
are forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.agents.kinds import Counter, serving
from tests.cluster.app import Account

from holdfast import limits
from holdfast.cluster import fence_chain
from holdfast.cluster.ownership.epochs import EpochRecord, Epochs
from holdfast.cluster.ownership.pack_sweep import PackSweep
from holdfast.engines.base import Record, Shown, Stored
from holdfast.errors import DataLoss, Fenced, OutcomeUnknown
from holdfast.records import packs, subjects
from holdfast.serving.commits.batch import Batch
from holdfast.serving.commits.committer import Committer
from holdfast.serving.commits.pack_table import PackTable
from holdfast.serving.shards.shard import Shard
from holdfast.testing.checkers import one_line
from holdfast.testing.history import Commit, History
from holdfast.testing.simulation.cluster import SimCluster
from holdfast.testing.simulation.servers import Cell, Faults
from holdfast.testing.simulation.world import World

NAMES = [f"a{n}" for n in range(60)]


# The form -----------------------------------------------------------------------------------------


def test_what_is_in_a_pack_counts_as_if_it_stood_alone() -> None:
    pack = packs.record(
        "g1c0", "n-1-0", 3, [(7, "Account/a", b"one"), (19, "Account/b%2Ec", b"two")]
    )
    alone = Stored("g1c0.7.st.Account/z", 4, b"three")
    assert list(packs.unfold([alone, Stored(pack.subject, 5, pack.payload)])) == [
        alone,
        ("g1c0.7.st.Account/a", 5, b"one"),
        ("g1c0.19.st.Account/b%2Ec", 5, b"two"),
    ]
    assert subjects.chain_of(pack.subject) == "n-1-0"
    assert not subjects.is_pack("g1c0.7.st.pk.x") and not subjects.is_pack(
        "g1c0.7.in.Account/a.pk.1"
    )


@pytest.mark.parametrize(
    "damage", [lambda p: p[:-1], lambda p: p[:9] + b"?" + p[10:], lambda _: b""]
)
def test_a_damaged_pack_is_not_believed(damage: Callable[[bytes], bytes]) -> None:
    pack = packs.record("g1c0", "n-1-0", 3, [(7, "Account/a", b"one")])
    with pytest.raises(DataLoss):
        packs.entries(Stored(pack.subject, 5, damage(pack.payload)))


# Slots --------------------------------------------------------------------------------------------


def shard_of(journal: PackTable, shards: dict[int, Any]) -> Any:
    """A shard as far as packs have to do with it, served under the number 0."""
    shards[0] = shard = SimpleNamespace(
        active=True, number=0, index={}, foreign={}, packed=0, digest=0
    )
    shard.activations, shard.settling, shard.unsettled = {}, False, False
    shard.committer = SimpleNamespace(journal=journal)
    return shard


def payload(slot: int, *records: tuple[int, str, bytes]) -> bytes:
    return packs.record("c", "x-0", slot, list(records)).payload


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["pack", "alone", "wait"]),
            st.lists(st.integers(0, 9), min_size=1, max_size=6),
        )
    )
)
def test_a_slot_is_not_written_again_while_it_is_needed(steps: list[tuple[str, list[int]]]) -> None:
    journal, now = PackTable(shards := {}), 0.0
    shard = shard_of(journal, shards)
    slots: dict[int, int] = {}
    for sequence, (what, agents) in enumerate(steps, 1):
        pack = None
        names = [str(agent) for agent in dict.fromkeys(agents)]
        if what == "wait":
            now += limits.PACKED_SECONDS
            journal.next_at(now)
            names = list(dict.fromkeys(token for _, token in journal.due(now)))
            assert set(names) == {token for token, at in shard.index.items() if at in journal.packs}
        elif what == "pack" and (slot := journal.slot()) is not None:
            needed = {at for at in slots.values() if at in shard.index.values()}
            assert slots.get(slot) not in needed, "a pack that is needed is overwritten"
            slots[slot] = sequence
            records = [(0, name, f"{name} {sequence}".encode()) for name in names]
            pack = journal.written(slot, sequence, now, payload(slot, *records))
        for name in names:
            Shard.committed(shard, name, sequence, pack)
        if what == "wait":
            assert not list(journal.due(now)) and shard.packed == 0
        in_packs = {name for name, at in shard.index.items() if at in slots.values()}
        assert shard.packed == len(in_packs)
        for name, at in shard.index.items():
            kept = Shard.packed_record(shard, name)
            assert kept == (f"{name} {at}".encode() if name in in_packs else None)
        assert len(slots) <= limits.PACKS_MAX
    assert len(slots) <= 11, "ten agents are in ten packs at most, and their slots are used again"


def test_what_is_claimed_again_from_a_pack_of_ones_own_leaves_it_once() -> None:
    journal = PackTable(shards := {})
    pack = journal.written(0, 5, 0.0, payload(0, (0, "a", b"a 5"), (0, "b", b"b 5")))
    old = shard_of(journal, shards)
    for name in "ab":
        Shard.committed(old, name, 5, pack)
    # it read the log anew, and takes the pack for one of an owner before
    again = shard_of(journal, shards)
    again.index, again.foreign, again.packed = {"a": 5, "b": 5}, {"a": b"a 5", "b": b"b 5"}, 2
    Shard.committed(again, "a", 6, None)
    assert Shard.packed_record(again, "a") is None and Shard.packed_record(again, "b") == b"b 5"
    assert (again.foreign, again.packed, pack.needed) == ({"b": b"b 5"}, 1, 1)
    assert list(journal.due(limits.PACKED_SECONDS)) == [(again, "b")]


def test_what_was_lost_with_its_shard_needs_its_slot_no_more() -> None:
    journal = PackTable(shards := {})
    shard = shard_of(journal, shards)
    Shard.committed(shard, "a", 5, journal.written(0, 5, 0.0, payload(0, (0, "a", b"a 5"))))
    assert journal.slot() == 1
    del shards[0]
    assert not list(journal.due(limits.PACKED_SECONDS))
    assert journal.next_at(limits.PACKED_SECONDS) is None and journal.slot() == 0


# A cluster ----------------------------------------------------------------------------------------


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(limits, "PACK_AGENTS_MIN", 2)
    monkeypatch.setattr(limits, "SWEEP_SECONDS", 5.0)
    found = World(7)
    yield found
    found.close()


def add_to_all(world: World, client: Any, expected: int) -> None:
    """One call to each, all at once."""
    done: list[int] = []

    async def run() -> None:
        agents = [client.node.agent(Account, name) for name in NAMES]
        done.extend(await asyncio.gather(*(agent.ask(Account.add) for agent in agents)))

    client.spawn(run())
    assert world.run(60, lambda: len(done) == len(NAMES)), world.story
    assert set(done) == {expected}


def in_packs(cluster: SimCluster) -> dict[str, str]:
    """The agents whose newest record is in a pack, with the chain."""
    found: dict[str, str] = {}
    for cell in cluster.servers.cells.values():
        for stored in sorted(cell.committed.records.values(), key=lambda one: one.sequence):
            for one in (
                packs.unfold([stored])
                if ".st." in stored.subject or subjects.is_pack(stored.subject)
                else ()
            ):
                token = one.subject.partition(".st.")[2]
                found[token] = (
                    subjects.chain_of(stored.subject) if isinstance(one, packs.Packed) else ""
                )
    return {token: name for token, name in found.items() if name}


def chains(cluster: SimCluster) -> set[str]:
    """The chains that have packs in the log."""
    there = [one for cell in cluster.servers.cells.values() for one in cell.committed.newest]
    return {subjects.chain_of(subject) for subject in there if subjects.is_pack(subject)}


def test_what_a_killed_node_left_in_packs_is_there_and_they_are_forgotten(world: World) -> None:
    cluster = SimCluster(world, [Account])
    client = cluster.client("h2")
    assert world.run(60, lambda: client.node is not None)
    for count in (1, 2):
        add_to_all(world, client, count)
    before = in_packs(cluster)
    dead = cluster.incarnations["h1"]
    left = {token for token, name in before.items() if name.startswith(f"{dead}-")}
    assert len(before) > len(NAMES) * 3 // 4 and len(left) > 5
    cluster.kill_node("h1")
    add_to_all(world, client, 3)
    world.run(1.0)
    cluster.kill_node("h2")  # who may not have moved everything yet
    add_to_all(world, client, 4)
    for count in range(5, 8):  # packs get full again meanwhile
        world.run(8.0)
        add_to_all(world, client, count)
    live = tuple(f"{cluster.incarnations[host]}-" for host in cluster.hosts)
    world.run(20.0)
    assert chains(cluster) and all(name.startswith(live) for name in chains(cluster))
    links = [
        one
        for cell in cluster.servers.cells.values()
        for one in cell.committed.records.values()
        if ".ch." in one.subject
    ]
    assert {fence_chain.is_broken(one) for one in links if f".ch.{dead}-" in one.subject} == {True}


def test_agents_that_rest_leave_their_packs(world: World) -> None:
    cluster = SimCluster(world, [Account])
    client = cluster.client("h1")
    assert world.run(60, lambda: client.node is not None)
    add_to_all(world, client, 1)
    assert in_packs(cluster)
    world.run(limits.PACKED_SECONDS + 5)
    assert not in_packs(cluster)
    nodes = [process.node for process in cluster.nodes.values()]
    assert not any(
        shard.packed
        for node in nodes
        if node is not None
        for shard in node._runtime.shards.values()
    )
    add_to_all(world, client, 2)


def test_a_shard_that_moves_in_order_leaves_nothing_in_packs(world: World) -> None:
    cluster = SimCluster(world, [Account])
    client = cluster.client("h2")
    assert world.run(60, lambda: client.node is not None)
    add_to_all(world, client, 1)
    leaving, ended = cluster.nodes["h1"], []
    old = f"{cluster.incarnations['h1']}-"
    assert any(name.startswith(old) for name in in_packs(cluster).values())

    async def leave() -> None:
        assert leaving.node is not None
        await leaving.node.close()
        ended.append(True)

    leaving.spawn(leave())
    assert world.run(60, lambda: bool(ended)), world.story
    assert not any(name.startswith(old) for name in in_packs(cluster).values())
    add_to_all(world, client, 2)


@pytest.mark.parametrize("seed", range(4))
def test_packs_form_one_line_where_servers_answer_late_and_twice(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(limits, "PACK_AGENTS_MIN", 2)
    monkeypatch.setattr(limits, "PACKS_MAX", 4)
    world = World(seed)
    history = History()

    def watch(cell: Cell) -> None:
        cell.on_commit.append(
            lambda batch: history.commits.append(
                Commit(world.now, cell.name, [*packs.unfold(batch)])
            )
        )

    try:
        faults = Faults(append_twice=0.05, append_late=0.02, append_lost=0.01)
        cluster = SimCluster(world, [Account], faults=faults)
        cluster.servers.on_cell = watch
        client = cluster.client("h1")
        assert world.run(90, lambda: client.node is not None)
        for count in range(1, 15):
            add_to_all(world, client, count)
    finally:
        world.close()
    assert len(history.commits) > 14
    assert list(one_line(history)) == []


def test_a_shard_stays_whose_packed_records_cannot_be_written(world: World) -> None:
    cluster = SimCluster(world, [Account])
    client = cluster.client("h2")
    assert world.run(60, lambda: client.node is not None)
    add_to_all(world, client, 1)
    process, let_go = cluster.nodes["h1"], list[dict[int, int]]()
    node = process.node
    assert node is not None
    packed = {number for number, shard in node._runtime.shards.items() if shard.packed}
    assert packed

    async def drain() -> None:
        node._runtime.gate.hold(5.0)
        let_go.append(await node._runtime.drain(dict.fromkeys(packed, ""), 2.0))

    process.spawn(drain())
    assert world.run(10, lambda: bool(let_go)), world.story
    assert let_go == [{}] and packed <= node._runtime.shards.keys()
    assert not any(node._runtime.shards[number].draining for number in packed)
    add_to_all(world, client, 2)


# Forgetting ---------------------------------------------------------------------------------------


class Log:
    """A cell that says which packs it has, and takes batches that expect the epochs which it
    has."""

    def __init__(self) -> None:
        self.log = self
        self.packs: set[str] = set()
        self.epochs: dict[str, int] = {}
        self.purged: list[tuple[str, int]] = []

    async def subjects(self, cell: str, _filters: list[str]) -> Shown:
        return Shown("h1", {f"{cell}.pk.{name}.0" for name in self.packs})

    async def append(self, _cell: str, records: list[Record]) -> range:
        for one in records:
            if (
                one.expect is not None
                and self.epochs.get(one.expect.subject, 0) != one.expect.sequence
            ):
                raise Fenced(one.expect.subject)
        return range(500, 500 + len(records))

    async def purge(self, _cell: str, subject: str, before: int) -> None:
        self.purged.append((subject, before))


async def test_packs_are_forgotten_when_no_shard_needs_them_any_more() -> None:
    cell: Any = Log()
    known = Epochs(cell, lambda *_: None)
    sweep = PackSweep(cell, known, ["c"], lambda: 2, {0})

    def claimed(number: int, sequence: int, owner: str, others: list[str]) -> None:
        cell.epochs[f"c.{number}.epoch"] = sequence
        known.note(number, sequence, EpochRecord("n", "h", "", 0.0, "", owner, others))

    claimed(0, 10, "new", [])
    claimed(1, 11, "new", ["dead"])
    claimed(7, 12, "late", ["dead"])  # of a pool that was declared later
    cell.packs = {"new", "dead", "late"}
    for _ in range(3):
        await sweep._sweep("c", [0, 1, 7])
    assert cell.purged == []
    known._settled = {1: 11, 7: 12}
    await sweep._sweep("c", [0, 1, 7])
    assert cell.purged == [], "a view may be late for a moment"
    # a claim that is not known here: whose packs it needs is not either
    cell.epochs["c.0.epoch"] = 99
    with pytest.raises(Fenced):
        await sweep._sweep("c", [0, 1, 7])
    assert cell.purged == []
    claimed(0, 99, "new", [])
    await sweep._sweep("c", [0, 1, 7])
    assert cell.purged == [("c.pk.dead.*", 500)]


async def test_a_node_whose_writer_has_failed_comes_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DRAIN_SECONDS", 0.5)
    async with serving(tmp_path / "log.db") as node:
        counter = node.agent(Counter, "a")
        assert await counter.ask(Counter.add, 1) == 1

        async def fail(_: Committer) -> Batch:
            raise RuntimeError("a fault of ours")

        monkeypatch.setattr(Committer, "_build", fail)
        with pytest.raises(OutcomeUnknown):
            await counter.options(timeout_seconds=0.5).ask(Counter.add, 1)
        async with asyncio.timeout(240):
            await node.close()
