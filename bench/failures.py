"""What failures and movements cost: three complete hosts on this machine, with agents at work.

Each row is a time that callers see. A gap is the longest time that one agent gave no answer; p99 is
over agents.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from pathlib import Path

from bench.app import Counter
from bench.measure import Report, out
from holdfast import LocalCluster, Node, NotDone, OutcomeUnknown
from holdfast.admin.fleet import nodes, upgrade

APP = str(Path(__file__).parent / "app.py")


class Callers:
    """One caller per agent, about ``rate`` calls a second in all. ``gaps``: per agent the longest
    wait for an answer."""

    def __init__(self, node: Node, names: list[str], rate: float) -> None:
        self.node = node
        self.gaps: dict[str, float] = {}
        self.calls = 0
        self.failures: list[Exception] = []
        self._pause = len(names) / rate
        self._stop = False
        self._tasks = [asyncio.create_task(self._call(name)) for name in names]

    async def _call(self, name: str) -> None:
        agent = self.node.agent(Counter, name)
        await asyncio.sleep(random.uniform(0, self._pause))
        while not self._stop:
            started = time.perf_counter()
            try:
                await agent.ask(Counter.add, 1)
            except Exception as error:
                self.failures.append(error)
            self.calls += 1
            self.gaps[name] = max(self.gaps.get(name, 0.0), time.perf_counter() - started)
            await asyncio.sleep(random.uniform(0.5, 1.5) * self._pause)

    def fresh(self) -> None:
        """Forget what was seen until now."""
        self.gaps, self.failures = {}, []

    def quantile(self, share: float) -> float:
        """The gap that this share of the agents stayed below, in seconds."""
        found = sorted(self.gaps.values())
        return found[min(int(len(found) * share), len(found) - 1)] if found else 0.0

    async def end(self) -> None:
        """Stop calling."""
        self._stop = True
        await asyncio.gather(*self._tasks)


def of_node(node: Node, victim: str, count: int) -> list[str]:
    """Names of agents that live on a node."""
    incarnation = next(member.incarnation for member in node.members() if member.name == victim)
    found: list[str] = []
    number = 0
    while len(found) < count:
        if node.describe(f"Counter/x{number}").owner == incarnation:
            found.append(f"x{number}")
        number += 1
    return found


async def balanced(node: Node, count: int = 3) -> None:
    """Wait until every node has its share, and nothing moved for a while."""
    await node.ready(60)
    before: dict[int, str] = {}
    while len(set(node.owners().values())) < count or node.owners() != before:
        before = node.owners()
        await asyncio.sleep(4)


async def answering(node: Node, names: list[str], since: float) -> list[float]:
    """When each of these agents answered first, in seconds."""

    async def one(name: str) -> float:
        while True:
            try:
                await node.agent(Counter, name).options(timeout_seconds=60).ask(Counter.add, 1)
                return time.perf_counter() - since
            except (NotDone, OutcomeUnknown):
                await asyncio.sleep(0.05)

    return sorted(await asyncio.gather(*map(one, names)))


async def benchmark(report: Report, quick: bool) -> None:
    """All rows."""
    out.print("[bold]failures[/]: 3 hosts with a server and a node each, 1 client")
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as directory:
        async with LocalCluster(directory, [APP]) as cluster:
            async with Node.join(cluster.urls) as node:
                await balanced(node)
                await _drain(report, node, 1000)
                await _kill_node(report, cluster, node, 1000 if quick else 3000)
                await _kill_host(report, cluster, node, 300)
                await _fifth_node(report, cluster, node)
                await _restart(report, node, 300)
            await cluster.kill()
            started = time.perf_counter()
            await cluster.start(120)
            async with Node.join(cluster.urls) as node:
                found = await answering(node, [f"x{n}" for n in range(300)], started)
                report.add(
                    "whole cluster killed, started: last of 300 agents", found[-1], "s", 20.0
                )


async def _drain(report: Report, node: Node, agents: int) -> None:
    callers = Callers(node, of_node(node, "h2-1", agents), 1000)
    await asyncio.sleep(4)
    callers.fresh()
    await asyncio.sleep(3)
    report.add("gap without any harm, p99", callers.quantile(0.99) * 1e3, "ms")
    callers.fresh()
    started = time.perf_counter()
    await nodes.drain(node, "h2", 60)
    report.add(f"drain of a node, {agents} busy agents: takes", time.perf_counter() - started, "s")
    await asyncio.sleep(2)
    report.add("drain: gap, p50", callers.quantile(0.5) * 1e3, "ms")
    report.add("drain: gap, p99", callers.quantile(0.99) * 1e3, "ms", 200.0)
    report.add("drain: failed calls", len(callers.failures), "", 0.0)
    await callers.end()
    await nodes.uncordon(node, "h2")
    await balanced(node)


async def _fifth_node(report: Report, cluster: LocalCluster, node: Node) -> None:
    async with Node.join(cluster.urls, serve=[Counter], name="fourth"):
        await balanced(node, 4)
        names = [f"x{number}" for number in range(10_000)]
        before = [node.describe(f"Counter/{name}").owner for name in names]
        async with Node.join(cluster.urls, serve=[Counter], name="fifth"):
            await balanced(node, 5)
            after = [node.describe(f"Counter/{name}").owner for name in names]
        moved = sum(old != new for old, new in zip(before, after, strict=True))
        report.add("a fifth node joins: agents that move", 100 * moved / len(names), "%", 25.0)
    await balanced(node)


async def _restart(report: Report, node: Node, agents: int) -> None:
    # Who waits for a restarted host asks nothing meanwhile: 600 are offered, so that 500 a second
    # come through.
    callers = Callers(node, [f"x{number}" for number in range(agents)], 600)
    await asyncio.sleep(4)
    callers.fresh()
    started, calls = time.perf_counter(), callers.calls
    await upgrade.restart_hosts(node)
    seconds = time.perf_counter() - started
    report.add("rolling restart of all hosts: takes", seconds, "s")
    report.add("rolling restart: calls meanwhile", (callers.calls - calls) / seconds, "/s")
    report.add("rolling restart: failed calls", len(callers.failures), "", 0.0)
    report.add("rolling restart: gap, p99", callers.quantile(0.99), "s")
    await callers.end()
    await balanced(node)


async def _kill_node(report: Report, cluster: LocalCluster, node: Node, agents: int) -> None:
    names = of_node(node, "h2-1", agents)
    await answering(node, names, time.perf_counter())
    cluster.kill_node("h2-1")
    found = await answering(node, names, time.perf_counter())
    report.add(f"kill -9 of a node with {agents} agents: median", found[len(found) // 2], "s", 1.0)
    report.add("kill -9 of a node: longest", found[-1], "s", 2.0)
    await balanced(node)


async def _kill_host(report: Report, cluster: LocalCluster, node: Node, agents: int) -> None:
    names = of_node(node, "h3-1", agents)
    others = of_node(node, "h1-1", agents)
    await answering(node, [*names, *others], time.perf_counter())
    callers = Callers(node, others, 300)
    await cluster.kill_host("h3")
    found = await answering(node, names, time.perf_counter())
    report.add("loss of a host: its agents, median", found[len(found) // 2], "s")
    report.add("loss of a host: its agents, longest", found[-1], "s", 10.0)
    report.add("loss of a host: others' gap, longest", callers.quantile(1.0), "s")
    report.add("loss of a host: failed calls of others", len(callers.failures), "", 0.0)
    await callers.end()
    await cluster.start_host("h3")
    await balanced(node)
