"""Three servers (three copies, fsync always), three nodes, one client, all on this machine."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

from bench.app import Counter
from bench.measure import Report, latencies, out, rate
from holdfast import LocalCluster, Node
from holdfast.bench import engine_alone
from holdfast.engines.base import Record

IN_FLIGHT = 256
AGENTS = 10_000
APP = str(Path(__file__).parent / "app.py")


async def benchmark(report: Report, quick: bool) -> None:
    """All rows of the cluster."""
    out.print("[bold]cluster[/]: 3 servers, 3 nodes, 1 client")
    scale = 1 if quick else 4
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as directory:
        async with LocalCluster(directory, [APP]) as cluster, Node.join(cluster.urls) as node:
            await node.ready()
            await _calls(report, node, scale)
            await _sends(report, node, scale)
            await _registry(report, node, 10_000 if quick else 50_000)
            await _failover(report, cluster, node)


async def _calls(report: Report, node: Node, scale: int) -> None:
    agents = [node.agent(Counter, f"x{n}") for n in range(AGENTS)]
    engine, cells = node.engine, [f"raw{n}" for n in range(len(node.manifest.cells))]
    await engine.ensure_cells(cells, 3)  # the same streams as the agents' own, beside them
    one = agents[0]
    await one.ask(Counter.add, 1)
    p50, p99 = await latencies(lambda _: one.ask(Counter.add, 1), 200 * scale)

    async def append(step: int) -> object:
        return await engine.log.append(
            cells[0], [Record(f"{cells[0]}.raw.{step % 100}", bytes(100))]
        )

    raw50, _ = await latencies(append, 200 * scale)
    report.add("ask, one at a time, p50", p50, "ms", 5.0, raw50, "one append alone, p50")
    report.add("ask, one at a time, p99", p99, "ms")
    asked = await rate(lambda n: agents[n % AGENTS].ask(Counter.add, 1), IN_FLIGHT, 10_240 * scale)
    size = IN_FLIGHT * 4 // 5 // len(cells)
    limit = await engine_alone.batches(engine, cells, 1, size, 120, 2.0)
    report.add(
        "ask, 256 in flight, 10,000 agents",
        asked,
        "/s",
        7_000,
        limit,
        f"3 writers, fenced batches of {size}",
    )
    hot = await rate(lambda _: one.ask(Counter.add, 1), IN_FLIGHT, 10_240 * scale)
    limit = await engine_alone.batches(engine, cells[:1], 1, 1, 120, 1.0)
    report.add("ask, one hot agent", hot, "/s", 15_000, limit, "1 writer, one record at a time")
    read = await rate(lambda n: agents[n % AGENTS].ask(Counter.value), IN_FLIGHT, 25_600 * scale)
    limit = await engine_alone.requests(engine, IN_FLIGHT, 2.0)
    report.add(
        "ask a reader, 256 in flight", read, "/s", 40_000, limit, "bus requests, 256 in flight"
    )


async def _sends(report: Report, node: Node, scale: int) -> None:
    names = [f"s{n}" for n in range(2_000)]
    agents = [node.agent(Counter, name) for name in names]
    before = sum(await asyncio.gather(*(agent.ask(Counter.value) for agent in agents)))
    count = 10_240 * scale
    started = time.perf_counter()
    accepted = await rate(
        lambda n: agents[n % len(agents)].send(Counter.add, 1), IN_FLIGHT, count, 1
    )
    while (
        sum(await asyncio.gather(*(agent.ask(Counter.value) for agent in agents))) < before + count
    ):
        await asyncio.sleep(0.05)
    carried = count / (time.perf_counter() - started)
    limit = await engine_alone.batches(
        node.engine, [f"raw{n}" for n in range(3)], 1, IN_FLIGHT // 3, 80, 2.0
    )
    report.add(
        "send, accepted", accepted, "/s", 12_000, limit, f"3 writers, batches of {IN_FLIGHT // 3}"
    )
    report.add(
        "send, carried out", carried, "/s", 4_000, limit, f"3 writers, batches of {IN_FLIGHT // 3}"
    )


async def _registry(report: Report, node: Node, count: int) -> None:
    created = await rate(
        lambda n: node.register(Counter, f"c{n}", metadata={"n": n}), IN_FLIGHT, count, 1
    )
    limit = await engine_alone.batches(node.engine, ["raw0"], 1, IN_FLIGHT, 80, 2.0)
    report.add(f"register {count:,}", created, "/s", 5_000, limit, "1 writer, batches of 256")
    times = []
    for step in range(20_000):
        started = time.perf_counter()
        node.lookup(Counter, f"c{step % count}")
        times.append(time.perf_counter() - started)
    report.add("lookup by name, mean", sum(times) / len(times) * 1e6, "µs", 2.0)
    times = []
    for step in range(1_000):
        started = time.perf_counter()
        node.find(capability="count", kind=Counter, limit=10, where=[("n", "ge", step % 50)])
        times.append(time.perf_counter() - started)
    times.sort()
    report.add("capability query, p99", times[990] * 1e3, "ms", 1.0)


async def _failover(report: Report, cluster: LocalCluster, node: Node) -> None:
    names = [f"x{n}" for n in range(300)]
    found = []
    for victim in ("h1-1", "h2-1", "h3-1"):
        incarnation = next(member.incarnation for member in node.members() if member.name == victim)
        mine = [name for name in names if node.describe(f"Counter/{name}").owner == incarnation]
        cluster.kill_node(victim)
        started = time.perf_counter()

        async def answer(name: str, since: float = started) -> float:
            await node.agent(Counter, name).ask(Counter.add, 1)
            return time.perf_counter() - since

        found += await asyncio.gather(*map(answer, mine))
        await asyncio.sleep(4)
        await node.ready()
    found.sort()
    report.add("after kill -9 of a node, median", found[len(found) // 2], "s", 1.0)
    report.add("after kill -9 of a node, longest", found[-1], "s")
