"""Whatever happened before a backup, a restored log goes on as the original would have.

Invariant: a history of changes, sends between cells, ids, timers and dead letters ends at some
moment as by a crash. From there the original log and one that was restored from its backup, with
the same number of cells or another, come to the same states: nothing is lost, doubled, out of order
or forgotten. (Property, on embedded logs of several cells.)
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.admin.purses import Counter, Purse
from tests.admin.restored import backup_of, crash, local_log, purses, restored_file

from holdfast import Node, ids
from holdfast.admin.backup import archive
from holdfast.admin.backup.archive import Item
from holdfast.core.digest import entry
from holdfast.errors import HandlerFailed
from holdfast.records import agent_record

NAMES = [f"a{n}" for n in range(6)]
SERVE: list[Any] = [Purse, Counter]
name = st.sampled_from(NAMES)
step = st.one_of(
    st.tuples(st.just("give"), name, name, st.integers(1, 9)),
    st.tuples(st.just("give"), name, name, st.integers(1, 9)),
    st.tuples(st.just("note"), name, st.integers(0, 99)),
    st.tuples(st.just("add"), name, st.integers(0, 5)),
    st.tuples(st.just("forward"), name, name),
    st.tuples(st.just("wrong"), name),
    st.tuples(st.just("large"), name),
    st.tuples(st.just("timer"), name),
    st.tuples(st.just("register"), name),
)
histories = st.lists(st.lists(step, min_size=1, max_size=8), min_size=1, max_size=3)


async def do(node: Node, what: tuple[Any, ...]) -> None:
    kind, agent, *more = what
    if kind == "give" and agent != more[0]:
        await node.agent(Purse, agent).ask(Purse.give, more[0], more[1])
    elif kind == "note":
        await node.agent(Counter, agent).send(Counter.note, str(more[0]))
    elif kind == "add":
        await node.agent(Counter, agent).options(message_id=f"id-{more[0]}").ask(Counter.add, 1)
    elif kind == "forward" and agent < more[0]:
        # two that ask each other at once would wait for their deadline
        await node.agent(Counter, agent).send(Counter.forward, more[0], False)
    elif kind == "wrong":
        await node.send_by_name(f"Counter/{agent}", "nothing")
    elif kind == "large":
        await node.agent(Counter, agent).ask(Counter.grow, 600_000)
    elif kind == "timer":
        await node.agent(Counter, agent).ask(Counter.wake, 0.0)
    elif kind == "register" and node.lookup(Purse, agent) is None:
        await node.register(Purse, agent, metadata={"n": 1})


async def outcome(path: Path) -> dict[str, Any]:
    """What a log comes to when everything that waits in it is done."""
    async with Node.join(f"local:{path}", serve=SERVE) as node:
        await node.ready()
        await purses(node, NAMES, 100 * len(NAMES))
        found: dict[str, Any] = {}
        async with asyncio.timeout(240):
            while any(shard.busy() or shard._inbox_open for shard in node._runtime.shards.values()):
                await asyncio.sleep(0.01)
        for agent in NAMES:
            look = await node.agent(Purse, agent).ask(Purse.look)
            count = await node.agent(Counter, agent).ask(Counter.look)
            size = await node.agent(Counter, agent).ask(Counter.size)
            found[agent] = (look.n, look.given, look.got, count.n, sorted(count.texts), size)
            # What was asked before under an id gets its first answer.
            ask = node.agent(Counter, agent).options(message_id="id-1").ask(Counter.add, 1)
            found[f"{agent} again"] = await ask
        found["dead"] = sorted(
            (letter.agent_id, letter.handler) for letter in await node.dead_letters.all()
        )
        found["registered"] = sorted(ref.name for ref in node.find(kind=Purse))
    return found


class Idle:
    """A relay of an owner that dies before it carries anything."""

    def add(self, sequence: int, payload: bytes) -> None: ...


async def never(cell: str, subject: str, before_sequence: int) -> None: ...


def outboxes(backup: Path) -> int:
    """How many messages wait in outboxes in a backup."""
    return sum(
        isinstance(frame, Item) and ".out." in frame.subject for frame in archive.read(backup)
    )


async def live(path: Path, cells: int, lives: list[list[tuple[Any, ...]]]) -> None:
    await local_log(path, cells)
    for steps in lives:
        async with Node.join(f"local:{path}", serve=SERVE) as node:
            await node.ready()
            # what is done with is still there
            node._runtime.purge = never  # type: ignore[method-assign]
            for what in steps[: len(steps) // 2]:
                await do(node, what)
            for shard in node._runtime.shards.values():
                # no relay comes to it in time
                shard.relay = lambda cell: Idle()  # type: ignore[method-assign,assignment]
            for what in steps[len(steps) // 2 :]:
                await do(node, what)
            node._runtime.gate.hold(60.0)
            await crash(node)


def check(cells: int, new_cells: int, lives: list[list[tuple[Any, ...]]]) -> int:
    with tempfile.TemporaryDirectory() as directory:
        old, new, backup = (Path(directory) / one for one in ("old.db", "new.db", "b.backup"))
        asyncio.run(live(old, cells, lives))
        asyncio.run(backup_of(old, backup))
        asyncio.run(restored_file(new, backup, new_cells))
        assert asyncio.run(outcome(new)) == asyncio.run(outcome(old))
        return outboxes(backup)


@settings(max_examples=12)
@given(st.sampled_from([1, 2, 3]), st.sampled_from([1, 2, 3]), histories)
def test_a_restored_log_goes_on_as_the_original(
    cells: int, new: int, lives: list[list[tuple[Any, ...]]]
) -> None:
    check(cells, new, lives)


@pytest.mark.soak
@settings(max_examples=400)
@given(st.sampled_from([1, 2, 3, 5]), st.sampled_from([1, 2, 3, 5]), histories)
def test_a_restored_log_goes_on_as_the_original_long(
    cells: int, new: int, lives: list[list[tuple[Any, ...]]]
) -> None:
    check(cells, new, lives)


def test_messages_in_outboxes_are_carried_by_the_restore() -> None:
    lives: list[list[tuple[Any, ...]]] = [
        [("give", one, other, 3) for one in NAMES for other in NAMES]
    ]
    assert check(3, 2, lives) > 0, "the history left nothing to carry: the test shows nothing"


async def test_a_turn_that_runs_again_gets_the_first_answers(tmp_path: Path) -> None:
    """Its calls are known by the message's key, which was made of a sequence that the restored log
    does not have."""
    async with Node.join(f"local:{tmp_path / 'old.db'}", serve=SERVE) as node:
        await node.ready()
        await node.agent(Counter, "a").send(Counter.forward, "b", True)
        async with asyncio.timeout(240):
            while (await node.agent(Counter, "b").ask(Counter.look)).n == 0:
                await asyncio.sleep(0.005)
        node._runtime.gate.hold(60.0)
        await crash(node)
    facts = await backup_of(tmp_path / "old.db", tmp_path / "b.backup")
    assert facts.messages == 1, "the message is not handled yet: it failed after its call"
    await restored_file(tmp_path / "new.db", tmp_path / "b.backup")
    async with Node.join(f"local:{tmp_path / 'new.db'}", serve=SERVE) as node:
        async with asyncio.timeout(240):
            while not await node.dead_letters.all():
                await asyncio.sleep(0.05)
        assert (await node.agent(Counter, "b").ask(Counter.look)).n == 1


async def test_versions_and_ids_stay_and_fences_grow(tmp_path: Path) -> None:
    async with Node.join(f"local:{tmp_path / 'old.db'}", serve=SERVE) as node:
        await node.ready()
        agent = node.agent(Counter, "a").options(message_id="once")
        assert await agent.ask(Counter.add, 5) == 5
        with pytest.raises(HandlerFailed):
            await node.agent(Counter, "a").ask(Counter.refuse)
        version = (await node.inspect("Counter/a")).version
        epoch = node.describe("Counter/a").epoch
    await backup_of(tmp_path / "old.db", tmp_path / "b.backup")
    await restored_file(tmp_path / "new.db", tmp_path / "b.backup")
    async with Node.join(f"local:{tmp_path / 'new.db'}", serve=SERVE) as node:
        await node.ready()
        assert (await node.inspect("Counter/a")).version == version
        assert await node.agent(Counter, "a").options(message_id="once").ask(Counter.add, 5) == 5
        assert node.describe("Counter/a").epoch > epoch + (1 << 40)
        assert node.describe("Counter/a").cell == "g2c0"


async def test_a_second_restore_is_another_generation(tmp_path: Path) -> None:
    async with Node.join(f"local:{tmp_path / 'log1.db'}", serve=SERVE) as node:
        await node.ready()
        await node.agent(Counter, "a").ask(Counter.grow, 700_000)
    for number in (1, 2):
        await backup_of(tmp_path / f"log{number}.db", tmp_path / f"{number}.backup")
        facts = await restored_file(
            tmp_path / f"log{number + 1}.db", tmp_path / f"{number}.backup", cells=number
        )
        assert facts.generation == number + 1
        async with Node.join(f"local:{tmp_path / f'log{number + 1}.db'}", serve=SERVE) as node:
            await node.ready()
            assert await node.agent(Counter, "a").ask(Counter.grow, 700_000) == number + 1
            cell, shard = node.describe("Counter/a").cell, node.describe("Counter/a").shard
            stored = await node.engine.log.read(cell, f"{cell}.{shard}.st.Counter/a")
            assert stored is not None
            record = agent_record.decode(stored.payload, "")
            # The digest goes on from what the restore wrote.
            assert record.digest == entry(ids.agent_token("Counter", "a"), record.previous)


async def test_a_shard_of_several_batches_is_recovered(tmp_path: Path) -> None:
    """Each batch of the restore carries the digest of those before it; a recovery would refuse
    another."""
    await local_log(tmp_path / "old.db", 1, shards=2)
    async with Node.join(f"local:{tmp_path / 'old.db'}", serve=SERVE) as node:
        await node.ready()
        await asyncio.gather(
            *(node.agent(Counter, f"c{n}").ask(Counter.add, n) for n in range(2100))
        )
    await backup_of(tmp_path / "old.db", tmp_path / "b.backup")
    await restored_file(tmp_path / "new.db", tmp_path / "b.backup")
    async with Node.join(f"local:{tmp_path / 'new.db'}", serve=SERVE) as node:
        await node.ready()
        looks = await asyncio.gather(
            *(node.agent(Counter, f"c{n}").ask(Counter.look) for n in range(2100))
        )
        assert [look.n for look in looks] == list(range(2100))
    assert (await backup_of(tmp_path / "new.db", tmp_path / "second.backup")).agents == 2100
