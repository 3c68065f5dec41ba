"""One host with three nodes, and handlers that stand still: what others notice of it, and how it
ends."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from pathlib import Path

import pytest
import pytest_asyncio
from tests.cluster.still_app import Knot, Slow, Still
from tests.cluster.test_failover import owner_name
from tests.cluster.test_signals import still_there

from holdfast import ConfigError, HandlerFailed, HoldfastError, LocalCluster, Node

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(900),
]
APP = str(Path(__file__).parent / "still_app.py")
LONG = 240.0
EVENTS: list[dict[str, object]] = []


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("still") / "runs"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(
    tmp_path_factory: pytest.TempPathFactory, runs: Path
) -> AsyncIterator[LocalCluster]:
    os.environ["STILL_RUNS"] = str(runs)
    EVENTS.clear()

    def report(event: str, facts: dict[str, object]) -> None:
        EVENTS.append({"event": event, **facts})

    directory = tmp_path_factory.mktemp("cluster")
    async with LocalCluster(directory, [APP], hosts=1, nodes=3, report=report) as made:
        yield made
    del os.environ["STILL_RUNS"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(cluster: LocalCluster) -> AsyncIterator[Node]:
    async with Node.join(cluster.urls) as made:
        yield made


def processes(runs: Path) -> dict[str, set[str]]:
    """Per message the processes that it ran in."""
    found: dict[str, set[str]] = defaultdict(set)
    for line in runs.read_text().splitlines() if runs.exists() else ():
        pid, what = line.split(" ", 1)
        found[what].add(pid)
    return found


def at_a_time(runs: Path, what: str) -> int:
    """In how many processes a message runs now."""
    return len(still_there([int(pid) for pid in processes(runs)[what]]))


async def all_there(cluster: LocalCluster, node: Node) -> None:
    """All three nodes beat, and none of them has ended without being begun again."""
    async with asyncio.timeout(240):
        while True:
            with suppress(ConfigError):
                pids = {name: cluster.node_pid(name) for name in ("h1-1", "h1-2", "h1-3")}
                if {member.name for member in node.members() if member.kinds} >= {*pids}:
                    break
            await asyncio.sleep(0.05)
    await node.ready()


async def letter(node: Node, handler: str, agent: str) -> str:
    async with asyncio.timeout(LONG):
        while True:
            for one in await node.dead_letters.all():
                if (one.handler, one.agent_id) == (handler, f"Still/{agent}"):
                    return one.error
            await asyncio.sleep(0.2)


async def test_an_endless_loop_costs_one_share_at_a_time_and_ends_with_an_error(
    cluster: LocalCluster, node: Node, runs: Path
) -> None:
    await all_there(cluster, node)
    others = [node.agent(Still, f"other-{n}") for n in range(40)]
    for other in others:
        await other.ask(Still.add)
    looping = asyncio.create_task(
        node.agent(Still, "loop").options(timeout_seconds=LONG).ask(Still.spin, "ask")
    )
    async with asyncio.timeout(240):
        while not processes(runs)["ask"]:
            await asyncio.sleep(0.01)
    epoch = node.describe("Still/loop").epoch
    rounds, alone = 0, 0
    while not looping.done():
        asked = [asyncio.create_task(other.ask(Still.add)) for other in others]
        while sum(one.done() for one in asked) < len(others) // 3:
            assert at_a_time(runs, "ask") <= 1, "two nodes stood still at a time"
            await asyncio.sleep(0.01)
        # It still spins where it began, and nobody took that node's share over: the others do not
        # wait for it.
        alone += node.describe("Still/loop").epoch == epoch
        await asyncio.gather(*asked)
        assert at_a_time(runs, "ask") <= 1, "two nodes stood still at a time"
        await asyncio.sleep(0.2)
        rounds += 1
    with pytest.raises(
        HandlerFailed, match=r"stood still for \d+\.\d s in still_app\.py:\d+ \(spin\)"
    ):
        await looping
    assert len(processes(runs)["ask"]) == 2
    assert alone
    assert await node.agent(Still, "loop").ask(Still.value) == 0
    assert any("(spin)" in str(one["text"]) for one in EVENTS if one["event"] == "node-still")
    for other in others:
        assert await other.ask(Still.value) == rounds + 1
    assert [one.error for one in await node.dead_letters.all()] == []


async def each_way(node: Node, run: str) -> AsyncIterator[tuple[str, Awaitable[str]]]:
    """Begin each way to stand still; gives the agent that does, and the error that it ends with."""

    async def read(agent: str) -> str:
        with pytest.raises(HandlerFailed) as failed:
            await node.agent(Still, agent).options(timeout_seconds=LONG).ask(Still.stare, agent)
        return str(failed.value)

    for what, handler in (
        ("nap", "nap"),
        ("backtrack", "backtrack"),
        ("timer", "spin"),
        ("send", "spin"),
    ):
        agent = f"{what}-{run}"
        if what == "nap":
            await node.agent(Still, agent).send(Still.nap, agent, 40.0)
        elif what == "backtrack":
            await node.agent(Still, agent).send(Still.backtrack, agent)
        elif what == "timer":
            await node.agent(Still, agent).options(timeout_seconds=LONG).ask(Still.arm, agent)
        else:
            await node.agent(Still, agent).send(Still.spin, agent)
        yield agent, letter(node, handler, agent)
    yield f"reader-{run}", read(f"reader-{run}")


async def stood_still(node: Node, runs: Path, agent: str, error: str) -> None:
    assert "stood still for " in error
    assert 1 <= len(processes(runs)[agent]) <= 2
    assert await node.agent(Still, agent).ask(Still.value) == 0


async def test_each_way_to_stand_still_ends_after_two_nodes(
    cluster: LocalCluster, node: Node, runs: Path
) -> None:
    await all_there(cluster, node)
    before = len(await node.dead_letters.all())
    async for agent, error in each_way(node, "alone"):
        await stood_still(node, runs, agent, await error)
    assert len(await node.dead_letters.all()) == before + 4


@pytest.mark.soak
async def test_all_ways_to_stand_still_at_once_end_after_two_nodes(
    cluster: LocalCluster, node: Node, runs: Path
) -> None:
    await all_there(cluster, node)
    begun = [
        (agent, asyncio.ensure_future(error)) async for agent, error in each_way(node, "together")
    ]
    for agent, told in begun:
        await stood_still(node, runs, agent, await told)


async def test_an_argument_that_stands_still_where_it_is_decoded(
    cluster: LocalCluster, node: Node, runs: Path
) -> None:
    await all_there(cluster, node)
    with pytest.raises(HandlerFailed, match=r"stood still for .* \(__post_init__\)"):
        await node.agent(Still, "tied").options(timeout_seconds=LONG).ask(Still.tie, Knot("knot"))
    assert 1 <= len(processes(runs)["knot"]) <= 2
    assert await node.agent(Still, "tied").ask(Still.value) == 0


def stacks_written(pid: int) -> bool:
    """Whether a process noted where its threads were, as its host asks it to when it is silent."""
    with suppress(OSError):
        for opened in Path(f"/proc/{pid}/fd").iterdir():
            if "holdfast-stacks" in str(opened.readlink()):
                return opened.stat().st_size > 0
    return not Path(f"/proc/{pid}").exists()


async def test_what_stands_still_is_named_though_its_node_was_silent_before(
    cluster: LocalCluster, node: Node, runs: Path
) -> None:
    await all_there(cluster, node)
    pids = {name: cluster.node_pid(name) for name in ("h1-1", "h1-2", "h1-3")}
    EVENTS.clear()
    for pid in pids.values():
        os.kill(pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(240):
            while {one["node"] for one in EVENTS if one["event"] == "node-still"} < {*pids}:
                await asyncio.sleep(0.05)
    finally:
        for pid in pids.values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    async with asyncio.timeout(240):
        while not all(map(stacks_written, pids.values())):
            await asyncio.sleep(0.05)
    await all_there(cluster, node)
    await node.agent(Still, "again").send(Still.backtrack, "again")
    assert "(backtrack)" in await letter(node, "backtrack", "again")
    assert len(processes(runs)["again"]) == 2


async def test_a_handler_that_blocks_for_a_moment_costs_the_wait_alone(
    cluster: LocalCluster, node: Node
) -> None:
    await all_there(cluster, node)
    agent = node.agent(Still, "moment")
    await agent.ask(Still.add)

    def place() -> tuple[str, int]:
        return owner_name(node, "Still/moment"), node.describe("Still/moment").epoch

    # Where the machine is busy, a node may be taken for silent or a shard be moved meanwhile, but
    # not each time.
    before: list[tuple[str, int]] = []
    while len(before) < 5 and (not before or before[-1] != place()):
        await all_there(cluster, node)
        before.append(place())
        assert await agent.options(timeout_seconds=90).ask(Still.nap, "moment", 1.2) == 1 + len(
            before
        )
    assert place() == before[-1]


async def test_an_agent_whose_loading_stands_still_is_left_alone(
    cluster: LocalCluster, node: Node, runs: Path
) -> None:
    await all_there(cluster, node)
    agent = node.agent(Slow, "slow")
    assert await agent.ask(Slow.become, "load") == 1
    flag = runs.with_suffix(".slow")
    flag.touch()
    try:
        cluster.kill_node(owner_name(node, "Slow/slow"))
        with pytest.raises(HoldfastError, match=r"stood still for .* while it loaded Slow/slow"):
            await agent.options(timeout_seconds=LONG).ask(Slow.become, "load again")
        assert len(processes(runs)["load"]) <= 2
        assert await node.agent(Still, "beside").ask(Still.add) == 1
    finally:
        flag.unlink()


async def test_a_node_that_is_stopped_is_told_of_and_begun_anew(
    cluster: LocalCluster, node: Node
) -> None:
    await all_there(cluster, node)
    name = owner_name(node, "Still/stopped")
    pid = cluster.node_pid(name)
    os.kill(pid, signal.SIGSTOP)
    assert await node.agent(Still, "stopped").ask(Still.add) == 1
    async with asyncio.timeout(240):
        while not any(one["event"] == "node-still" and one["node"] == name for one in EVENTS):
            await asyncio.sleep(0.1)
        while True:
            try:
                if cluster.node_pid(name) != pid:
                    break
            except HoldfastError:
                pass
            await asyncio.sleep(0.1)
    await all_there(cluster, node)


async def test_who_stood_still_itself_is_not_cut_off(cluster: LocalCluster, node: Node) -> None:
    """A client whose loop did not run has heard nothing meanwhile, but nothing is wrong."""
    await all_there(cluster, node)
    async with Node.join(cluster.urls) as client:
        slow = asyncio.create_task(client.agent(Still, "waits").ask(Still.nap, "waits", 1.0))
        async with asyncio.timeout(240):
            while not client.life.wanted:
                if slow.done():
                    slow = asyncio.create_task(
                        client.agent(Still, "waits").ask(Still.nap, "waits", 1.0)
                    )
                await asyncio.sleep(0.05)
        # as after so long a silence on a client of more hosts
        client.life._hears_majority = lambda _: False
        await slow
        client.life.want(True)
        time.sleep(3)
        assert await client.agent(Still, "after").ask(Still.add) == 1
