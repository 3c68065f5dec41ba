"""Three hosts, each with its own server and node process, and what happens to agents when some of
them are killed."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
from tests.cluster.app import Account, Post

from holdfast import (
    AlreadyExists,
    ConfigError,
    HandlerFailed,
    LocalCluster,
    Node,
    OutcomeUnknown,
    codec,
    limits,
)
from holdfast.errors import NoQuorum
from holdfast.records.messages import OK, Call, Frame, Replies, Reply

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(900),
]
APP = str(Path(__file__).parent / "app.py")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalCluster]:
    async with LocalCluster(tmp_path_factory.mktemp("cluster"), [APP]) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(cluster: LocalCluster) -> AsyncIterator[Node]:
    async with Node.join(cluster.urls) as made:
        yield made


async def all_up(cluster: LocalCluster, node: Node) -> None:
    """Wait until all hosts have their nodes again, and every shard an owner."""
    for host in cluster.hosts:
        await cluster.start_host(host)
    await until(lambda: len([member for member in node.members() if member.kinds]) >= 3)
    await node.ready()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(240):
        while not condition():
            await asyncio.sleep(0.02)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def owner_name(node: Node, agent_id: str) -> str:
    owner = node.describe(agent_id).owner
    return next((member.name for member in node.members() if member.incarnation == owner), "")


async def some_up(cluster: LocalCluster, node: Node) -> None:
    """Wait until a node is left to take over from the next one that is killed: a host starts them
    more slowly each time."""
    async with asyncio.timeout(240):
        while len([member for member in node.members() if member.kinds]) < 3:
            await asyncio.sleep(0.02)


async def kill_after_ack(
    cluster: LocalCluster,
    node: Node,
    trials: int,
    enough_up: Callable[[LocalCluster, Node], Awaitable[None]] = all_up,
) -> None:
    """Kill -9 the owner right after an acknowledgement; compare every agent with what was
    acknowledged."""
    names = [f"k{n}" for n in range(30)]
    acknowledged = dict.fromkeys(names, 0)
    unknown = dict.fromkeys(names, 0)
    for name in names:
        acknowledged[name] = await node.agent(Account, name).ask(Account.value)
    stop = False
    given_up = 0

    async def add(name: str) -> int:
        """Add one; again if three processes were killed with the message in their hands, which is
        then given up."""
        nonlocal given_up
        while True:
            try:
                return await node.agent(Account, name).ask(Account.add, 1)
            except HandlerFailed as error:
                if "ended 3 processes" not in str(error):
                    raise
                given_up += 1

    async def background(name: str) -> None:
        while not stop:
            try:
                value = await add(name)
            except OutcomeUnknown:
                unknown[name] += 1
            else:
                acknowledged[name] += 1
                assert acknowledged[name] <= value <= acknowledged[name] + unknown[name], name

    others = [asyncio.create_task(background(name)) for name in names[10:]]
    kills, gaps = 0, []
    while kills < trials:
        name = names[kills % 10]
        value = await add(name)
        began = time.monotonic()
        victim = owner_name(node, f"Account/{name}")
        with suppress(ConfigError):  # it is being started again
            if victim:
                cluster.kill_node(victim)
                kills += 1
        acknowledged[name] += 1
        assert value == acknowledged[name]
        async with asyncio.timeout(240):
            assert await add(name) == value + 1, f"lost or twice in trial {kills}"
        gaps.append(time.monotonic() - began)
        acknowledged[name] += 1
        await enough_up(cluster, node)
    stop = True
    await asyncio.gather(*others)
    for name in names:
        value = await node.agent(Account, name).ask(Account.value)
        assert acknowledged[name] <= value <= acknowledged[name] + unknown[name], name
    assert sum(unknown.values()) == 0, (
        "a caller that could wait was told that the outcome is unknown"
    )
    gaps.sort()
    print(
        f"{kills} kills; the next answer came after {gaps[len(gaps) // 2]:.2f} s (median), "
        f"{gaps[-1]:.2f} s (worst)"
    )
    print(
        f"{sum(acknowledged.values())} acknowledgements: 0 lost, 0 twice, 0 unknown; {given_up} "
        "given up"
    )


async def test_kill_9_of_the_owner_right_after_an_acknowledgement(
    cluster: LocalCluster, node: Node
) -> None:
    await all_up(cluster, node)
    await kill_after_ack(cluster, node, 6)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.capability("B4")
async def test_five_hundred_times_kill_9_of_the_owner(tmp_path: Path) -> None:
    async with LocalCluster(tmp_path, [APP], nodes=3) as cluster, Node.join(cluster.urls) as node:
        await node.ready()
        await kill_after_ack(cluster, node, 500, some_up)


async def test_sends_of_turns_reach_other_cells_once_and_in_order(
    cluster: LocalCluster, node: Node
) -> None:
    await all_up(cluster, node)
    senders = [f"s{n}" for n in range(8)]
    receivers = [f"r{n}" for n in range(12)]
    assert len({node.describe(f"Post/{name}").cell for name in senders + receivers}) == 3
    turns = dict.fromkeys(senders, 0)
    over = False

    async def send(name: str) -> None:
        while not over:
            turns[name] += 1
            assert await node.agent(Post, name).ask(Post.spread, receivers) == turns[name]
            await asyncio.sleep(0.1)

    def kill_one() -> bool:
        with suppress(ConfigError):  # it beats, and its host has not said yet that it is ready
            cluster.kill_node(
                random.choice([member.name for member in node.members() if member.kinds])
            )
            return True
        return False

    sending = [asyncio.create_task(send(name)) for name in senders]
    for _ in range(2):
        before = dict(turns)
        await until(lambda before=before: all(turns[name] > before[name] + 2 for name in senders))  # type: ignore[misc]
        await until(kill_one)
        await all_up(cluster, node)
    over = True
    await asyncio.gather(*sending)
    async with asyncio.timeout(240):
        for name in receivers:
            while True:
                got = await node.agent(Post, name).ask(Post.got)
                if all(len(got.get(sender, [])) >= turns[sender] for sender in senders):
                    break
                await asyncio.sleep(0.1)
    await asyncio.sleep(0.5)  # for one that comes twice
    for name in receivers:
        got = await node.agent(Post, name).ask(Post.got)
        assert got == {sender: list(range(turns[sender])) for sender in senders}, name


async def test_calls_inside_turns_through_a_failover(cluster: LocalCluster, node: Node) -> None:
    await all_up(cluster, node)
    names = [f"around-{n}" for n in range(6)]
    callers = [node.agent(Post, f"caller-{n}") for n in range(20)]
    asking = [asyncio.create_task(caller.ask(Post.ask_around, names)) for caller in callers]
    await asyncio.sleep(0.02)
    cluster.kill_node(owner_name(node, "Account/around-0") or "h1-1")
    await asyncio.gather(*asking)
    assert [await node.agent(Account, name).ask(Account.value) for name in names] == [20] * 6


async def test_a_node_that_is_frozen_is_replaced_and_does_no_harm_when_it_wakes(
    cluster: LocalCluster, node: Node
) -> None:
    agent = node.agent(Account, "frozen")
    replies: list[Reply] = []
    await node.engine.bus.subscribe(
        "hf.r.frozen.>",
        lambda m: replies.extend(msgspec.msgpack.decode(m.payload, type=Replies).replies),
    )
    while len(replies) < 100:
        # A server cuts the connection of who is silent for more than 10 s: so long may a takeover
        # take where the machine is busy, and then what lay in the socket is gone. That says
        # nothing: it is frozen again.
        replies.clear()
        await all_up(cluster, node)
        value = await agent.ask(Account.add, 1)
        await until(lambda: owner_name(node, "Account/frozen"))
        pid = cluster.node_pid(owner_name(node, "Account/frozen"))
        frozen = f"hf.n.{node.describe('Account/frozen').owner}"
        os.kill(pid, signal.SIGSTOP)
        stopped = time.monotonic()
        try:
            async with asyncio.timeout(240):
                assert await agent.ask(Account.add, 1) == value + 1
            # These lie in its socket when it wakes, before it can hear that its shards are
            # another's.
            for number in range(100):
                call = Call("Account/frozen", "value", b"\x90", number + 1)
                node.engine.bus.publish(frozen, codec.encode_raw(Frame("hf.r.frozen.1", [call])))
            await asyncio.sleep(0.1)
        finally:
            with suppress(ProcessLookupError):  # after that long its host has ended it
                os.kill(pid, signal.SIGCONT)
        cut = time.monotonic() - stopped > limits.FROZEN_SECONDS - 1  # its quiet began before
        with suppress(TimeoutError):
            async with asyncio.timeout(20):
                while len(replies) < 100:
                    await asyncio.sleep(0.05)
        assert OK not in {reply.outcome for reply in replies}, (
            "a node that was frozen answered from its memory"
        )
        assert len(replies) == 100 or cut
        for expected in range(value + 2, value + 12):
            assert await agent.ask(Account.add, 1) == expected
            assert await agent.ask(Account.value) == expected
            await asyncio.sleep(0.1)
    await all_up(cluster, node)


async def test_a_handler_that_blocks_its_node_for_seconds_is_run_once(
    cluster: LocalCluster, node: Node
) -> None:
    await all_up(cluster, node)
    agent = node.agent(Account, "blocked")
    for expected in range(1, 4):
        assert await agent.ask(Account.block, 2.5) == expected
        assert await agent.ask(Account.value) == expected


async def test_what_a_worker_process_computed_for_a_killed_node_counts_once(
    cluster: LocalCluster, node: Node, tmp_path: Path
) -> None:
    await all_up(cluster, node)
    begun, go_on = tmp_path / "begun", tmp_path / "go-on"

    def runs_begun() -> int:
        return len(begun.read_text().splitlines()) if begun.exists() else 0

    agent = node.agent(Account, "computed")
    assert await agent.ask(Account.compute, 0.0) == 1
    asked = asyncio.create_task(agent.ask(Account.compute, 0.5, str(begun), str(go_on)))
    await until(lambda: runs_begun() == 1)
    await until(lambda: owner_name(node, "Account/computed"))
    cluster.kill_node(owner_name(node, "Account/computed"))
    await until(lambda: runs_begun() == 2)
    go_on.touch()
    assert await asked == 2
    assert await agent.ask(Account.value) == 2
    # Longer than a node that is silent is waited for: what computes in a process does not stall its
    # node. Where the machine is busy, it may be taken for silent all the same, but not each time.
    owners: list[str] = []
    while len(owners) < 4 and (not owners or owners[-1] != owner_name(node, "Account/computed")):
        await all_up(cluster, node)
        owners.append(owner_name(node, "Account/computed"))
        assert await agent.ask(Account.compute, limits.STANDSTILL_SECONDS + 1) == 2 + len(owners)
    assert owner_name(node, "Account/computed") == owners[-1]


async def test_a_node_that_leaves_in_order_fails_no_call(cluster: LocalCluster, node: Node) -> None:
    await all_up(cluster, node)
    stop = False
    counts = dict.fromkeys([f"calm-{n}" for n in range(20)], 0)

    async def work(name: str) -> None:
        while not stop:
            counts[name] += 1
            assert await node.agent(Account, name).ask(Account.add, 1) == counts[name]

    def begun_anew() -> bool:
        try:
            return cluster.node_pid("h2-1") != before
        except ConfigError:  # it is being started again
            return False

    working = [asyncio.create_task(work(name)) for name in counts]
    await until(lambda: min(counts.values()) > 3)
    before = cluster.node_pid("h2-1")
    os.kill(before, signal.SIGTERM)
    await until(begun_anew)
    await all_up(cluster, node)
    stop = True
    await asyncio.gather(*working)


async def test_a_name_is_unique_when_a_hundred_race(cluster: LocalCluster, node: Node) -> None:
    async with Node.join(cluster.urls[1]) as second, Node.join(cluster.urls[2]) as third:
        nodes = [node, second, third]

        async def create(number: int) -> bool:
            try:
                await nodes[number % 3].register(Account, "the-one", metadata={"by": number})
            except AlreadyExists:
                return False
            return nodes[number % 3].lookup(Account, "the-one") is not None

        made = await asyncio.gather(*map(create, range(100)))
        assert sum(made) == 1
        winner = made.index(True)
        for each in nodes:
            await each.registry.reach(nodes[winner % 3].registry.position)
            entry = each.lookup(Account, "the-one")
            assert entry is not None and entry.metadata == {"by": winner}
            assert [ref.name for ref in each.find(capability="account")].count("the-one") == 1
        await second.unregister(Account, "the-one")
        assert second.lookup(Account, "the-one") is None
        await third.register(Account, "the-one")


async def test_a_host_is_killed_and_comes_back(cluster: LocalCluster, node: Node) -> None:
    await all_up(cluster, node)
    names = [f"h{n}" for n in range(60)]
    values = {name: await node.agent(Account, name).ask(Account.add, 1) for name in names}
    await cluster.kill_host("h3")
    await until(lambda: not runs(cluster.server_pid("h3")))
    # Nobody tells a client, which condemns nobody: it takes silence for an end.
    await until(lambda: not any(member.host == "h3" for member in node.members()))

    async def go_on(name: str) -> None:
        for _ in range(3):
            values[name] += 1
            agent = node.agent(Account, name).options(message_id=f"{name}-{values[name]}")
            while True:
                with suppress(NoQuorum, OutcomeUnknown):  # an election that took long
                    assert await agent.ask(Account.add, 1) == values[name]
                    break

    await asyncio.gather(*map(go_on, names))
    await all_up(cluster, node)
    await asyncio.gather(*map(go_on, names))


async def test_all_is_found_again_after_everything_was_killed(
    cluster: LocalCluster, node: Node
) -> None:
    await all_up(cluster, node)
    names = [f"all-{n}" for n in range(40)]
    values = {name: await node.agent(Account, name).ask(Account.add, 3) for name in names}
    registered = node.count()
    await cluster.kill()
    await cluster.start()
    async with Node.join(cluster.urls) as again:
        await again.ready()
        assert again.count() == registered
        for name in names:
            assert await again.agent(Account, name).ask(Account.value) == values[name]
            assert await again.agent(Account, name).ask(Account.add, 1) == values[name] + 1
