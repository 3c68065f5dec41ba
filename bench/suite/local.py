"""The embedded engine: everything in this process, on one SQLite file."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.app import Counter
from bench.suite import raw
from bench.suite.measure import AGENTS, IN_FLIGHT, REPETITIONS, Rate, latency, median, rate, repetition
from bench.suite.raw import SHARDS, Shape, Writer
from bench.suite.report import Report
from holdfast import AgentRef, Node
from holdfast.engines.base import Engine, Expect, Record
from holdfast.engines.local.engine import LocalEngine

CELL = "raw"


@dataclass
class Bench:
    """What the rows need. ``engine``: on a file of its own, for the engine's own limits."""

    node: Node
    engine: Engine
    quick: bool
    agents: list[AgentRef[Counter]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """How long one repetition of a limit takes."""
        return 0.4 if self.quick else 1.0

    async def warm(self) -> None:
        """Have every agent in memory, once."""
        if not self.agents:
            self.agents = [self.node.agent(Counter, f"x{number}") for number in range(AGENTS)]
            await repetition(self.add, 0, AGENTS + IN_FLIGHT)

    async def add(self, number: int) -> object:
        """A durable ask."""
        return await self.agents[number % AGENTS].ask(Counter.add, 1)

    async def read(self, number: int) -> object:
        """A reader ask."""
        return await self.agents[number % AGENTS].ask(Counter.value)

    async def record_size(self, name: str) -> int:
        """The bytes of an agent's record."""
        info = self.node.describe(f"Counter/{name}")
        stored = await self.node.engine.log.read(info.cell, f"{info.cell}.{info.shard}.st.Counter/{name}")
        return len(stored.payload) if stored is not None else 0


@asynccontextmanager
async def running(quick: bool) -> AsyncIterator[Bench]:
    """A fresh file, removed at the end."""
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as directory:
        engine = LocalEngine(Path(directory) / "raw.db")
        await engine.open()
        try:
            await engine.ensure_cells([CELL], 1)
            async with Node.join(f"local:{directory}/agents.db", serve=[Counter]) as node:
                await node.ready()
                yield Bench(node, engine, quick)
        finally:
            await engine.close()


def _per_commit(earlier: Mapping[str, int | float | str], now: Mapping[str, int | float | str]) -> float:
    commits = int(now["commits"]) - int(earlier["commits"])
    return (int(now["records"]) - int(earlier["records"])) / max(commits, 1)


async def asks(report: Report, bench: Bench) -> None:
    """Durable asks, spread over many agents."""
    await bench.warm()
    earlier = bench.node.engine.statistics()
    found = await rate(bench.add, 20_480 if bench.quick else 81_920)
    shape = Shape(round(_per_commit(earlier, bench.node.engine.statistics())), await bench.record_size("x0"))
    batches = await raw.agent_batches(bench.engine, CELL, range(SHARDS), shape)
    limit = await raw.appends([Writer(bench.engine, CELL, batches)], bench.seconds)
    report.add_rate("local: durable asks, 256 in flight", found, 30_000, limit, f"1 writer, {shape}, fenced")


async def one(report: Report, bench: Bench) -> None:
    """Durable asks, one at a time."""
    await bench.warm()
    count = 300 if bench.quick else 1_500
    found = await latency(bench.add, count)
    size = await bench.record_size("x0")
    (sequence,) = await bench.engine.log.append(CELL, [Record(f"{CELL}.one.epoch", b"")])
    fence = Expect(f"{CELL}.one.epoch", sequence)

    async def append(number: int) -> object:
        return await bench.engine.log.append(CELL, [Record(f"{CELL}.one.st.x{number % 100}", bytes(size), fence)])

    limit = await latency(append, count)
    shape = f"1 writer, 1 × {size} B, fenced"
    report.add("local: durable ask, one at a time, p50", found.p50_ms, "ms", 0.0, limit.p50_ms, shape)
    report.add("local: durable ask, one at a time, p99", found.p99_ms, "ms", 0.0, limit.p99_ms, shape)


async def readers(report: Report, bench: Bench) -> None:
    """Reader asks: in this very process, so neither the log nor the bus has a part in it."""
    await bench.warm()
    await repetition(bench.read, 0, 10_240)
    found = await rate(bench.read, 51_200 if bench.quick else 204_800)
    report.add_rate("local: reader asks, 256 in flight", found, 90_000, limit_of="the engine has no part in it")


async def sends(report: Report, bench: Bench) -> None:
    """Durable sends: how fast they are accepted, and how fast all of them are carried out, from the first on."""
    await bench.warm()
    count = 10_240 if bench.quick else 40_960
    accepted: list[Rate] = []
    carried: list[Rate] = []

    async def send(number: int) -> object:
        return await bench.agents[number % AGENTS].send(Counter.add, 1)

    async def total() -> int:
        return sum(await asyncio.gather(*(agent.ask(Counter.value) for agent in bench.agents)))

    await repetition(send, 0, 2_560)
    await asyncio.sleep(0.5)
    earlier = bench.node.engine.statistics()
    for _ in range(REPETITIONS):
        before, started = await total(), time.perf_counter()
        found = await repetition(send, sum(one.calls for one in accepted), count)
        while await total() < before + found.calls:
            await asyncio.sleep(0.05)
        accepted.append(found)
        carried.append(Rate(found.calls / (time.perf_counter() - started), 0, 0, found.calls))
    records = max(round(_per_commit(earlier, bench.node.engine.statistics()) / 2), 1)
    shape = Shape(records, await bench.record_size("x0"))
    inbox = Writer(bench.engine, CELL, raw.new_batches(f"{CELL}.0.in.Counter/s.{time.monotonic_ns()}", shape))
    batches = await raw.agent_batches(bench.engine, CELL, range(SHARDS), shape)
    limit = await raw.appends([inbox], bench.seconds, beside=[Writer(bench.engine, CELL, batches)])
    of = f"1 writer, {shape}, beside 1 of agents' records"
    report.add_rate("local: sends accepted, 256 in flight", median(accepted), 0.0, limit, of)
    report.add("local: sends carried out", median(carried).per_second, "/s", 0.0, limit, of)


BENCHMARKS: dict[str, Callable[[Report, Bench], Awaitable[None]]] = {
    "local.asks": asks,
    "local.one": one,
    "local.readers": readers,
    "local.sends": sends,
}
