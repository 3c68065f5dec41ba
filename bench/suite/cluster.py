"""Three servers (three copies, fsync always), three nodes, one client, all on this machine."""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections import Counter as Tally
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.app import Counter
from bench.suite import raw
from bench.suite.measure import AGENTS, IN_FLIGHT, REPETITIONS, Rate, latency, median, rate, repetition
from bench.suite.raw import SHARDS, Shape, Writer
from bench.suite.report import Report
from holdfast import AgentRef, LocalCluster, Node, codec
from holdfast.agents.messages import Call, Frame, Replies, Reply
from holdfast.engines.base import Engine, Expect, Record
from holdfast.engines.nats.engine import NatsEngine
from holdfast.errors import NotFound
from holdfast.node.node import REGISTRY_CELL

HERE = Path(__file__).parent
APP = str(HERE.parent / "app.py")
RECEIVERS = 2_000
_BACK_SECONDS = 30.0


@dataclass
class Bench:
    """What the rows need. ``engines``: a connection to each server, for the engine's own limits."""

    cluster: LocalCluster
    node: Node
    engines: list[Engine]
    raw_cells: list[str]
    quick: bool
    agents: list[AgentRef[Counter]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """How long one repetition of a limit takes."""
        return 0.6 if self.quick else 1.5

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

    async def ends(self) -> dict[str, int]:
        """Each cell's newest sequence."""
        return {cell: await self.node.engine.log.last_sequence(cell) for cell in self.node.manifest.cells}

    async def stored_shape(self, before: dict[str, int]) -> Shape:
        """The shape of the agents' batches since then."""
        after = await self.ends()
        return await raw.stored_shape(self.cluster.urls[0], {c: (before[c], after[c]) for c in before}, "st")

    async def record_size(self, name: str) -> int:
        """The bytes of an agent's record."""
        info = self.node.describe(f"Counter/{name}")
        stored = await self.node.engine.log.read(info.cell, f"{info.cell}.{info.shard}.st.Counter/{name}")
        return len(stored.payload) if stored is not None else 0

    async def nine_writers(self, shape: Shape) -> list[Writer]:
        """One for each node and cell, on connections of their own."""
        cells, nodes = len(self.raw_cells), len(self.engines)
        writers = []
        for place, cell in enumerate(self.raw_cells):
            for index, engine in enumerate(self.engines):
                shards = [n for n in range(SHARDS) if n % cells == place and n // cells % nodes == index]
                writers.append(Writer(engine, cell, await raw.agent_batches(engine, cell, shards, shape)))
        return writers

    def inbox_writers(self, shape: Shape) -> list[Writer]:
        """One for each cell, all of one process."""
        unique = time.monotonic_ns()
        return [
            Writer(self.node.engine, cell, raw.new_batches(f"{cell}.0.in.Counter/s.{unique}", shape))
            for cell in self.raw_cells
        ]


@asynccontextmanager
async def running(quick: bool) -> AsyncIterator[Bench]:
    """A fresh cluster, stopped and removed at the end."""
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-bench-"))
        cluster = await stack.enter_async_context(LocalCluster(directory, [APP]))
        engines: list[Engine] = []
        for index in range(len(cluster.urls)):
            engine = NatsEngine(cluster.urls[index:] + cluster.urls[:index])
            await engine.open()
            stack.push_async_callback(engine.close)
            engines.append(engine)
        node = await stack.enter_async_context(Node.join(cluster.urls))
        await node.ready()
        cells = [f"raw{index}" for index in range(len(node.manifest.cells))]
        await node.engine.ensure_cells(cells, len(engines))  # the same streams as the agents' own, beside them
        yield Bench(cluster, node, engines, cells, quick)


# Asks --------------------------------------------------------------------------------------------------------------


async def asks(report: Report, bench: Bench) -> None:
    """Durable asks, spread over many agents."""
    await bench.warm()
    before = await bench.ends()
    found = await rate(bench.add, 6_144 if bench.quick else 20_480)
    shape = await bench.stored_shape(before)
    limit = await raw.appends(await bench.nine_writers(shape), bench.seconds)
    report.add_rate("cluster: durable asks, 256 in flight", found, 7_000, limit, f"9 writers, {shape}, fenced")


async def one(report: Report, bench: Bench) -> None:
    """Durable asks, one at a time."""
    await bench.warm()
    count = 200 if bench.quick else 800
    found = await latency(bench.add, count)
    size = await bench.record_size("x0")
    fences: dict[str, Expect] = {}
    for cell in bench.raw_cells:
        (sequence,) = await bench.engines[0].log.append(cell, [Record(f"{cell}.one.epoch", b"")])
        fences[cell] = Expect(f"{cell}.one.epoch", sequence)

    async def append(number: int) -> object:
        cell = bench.raw_cells[number % len(bench.raw_cells)]
        engine = bench.engines[number // 3 % len(bench.engines)]
        return await engine.log.append(cell, [Record(f"{cell}.one.st.x{number % 100}", bytes(size), fences[cell])])

    limit = await latency(append, count)
    shape = f"1 writer, 1 × {size} B, fenced"
    report.add("cluster: durable ask, one at a time, p50", found.p50_ms, "ms", 5.0, limit.p50_ms, shape)
    report.add("cluster: durable ask, one at a time, p99", found.p99_ms, "ms", 0.0, limit.p99_ms, shape)


async def hot(report: Report, bench: Bench) -> None:
    """Durable asks of one agent: its turns share records, so the limit is the engine's, for so many turns a record."""
    agent = bench.node.agent(Counter, "hot")

    async def ask(_: int) -> object:
        return await agent.ask(Counter.add, 1)

    await repetition(ask, 0, 2_048)
    before = (await bench.node.inspect("Counter/hot")).version
    sizes: list[int] = []

    async def sample() -> None:
        while True:
            await asyncio.sleep(0.2)
            sizes.append(await bench.record_size("hot"))

    sampling = asyncio.create_task(sample())
    found = await rate(ask, 10_240 if bench.quick else 30_720)
    sampling.cancel()
    await asyncio.gather(sampling, return_exceptions=True)
    turns = found.calls / ((await bench.node.inspect("Counter/hot")).version - before)
    shape = Shape(1, round(statistics.median(sizes or [await bench.record_size("hot")])))
    engine, cell = bench.engines[0], bench.raw_cells[0]
    writer = Writer(engine, cell, await raw.agent_batches(engine, cell, [0], shape))
    limit = turns * await raw.appends([writer], bench.seconds / 2)
    report.add_rate("cluster: one hot agent", found, 15_000, limit, f"1 writer, {shape}, {turns:.0f} turns each")


async def readers(report: Report, bench: Bench) -> None:
    """Reader asks: nothing is written, so the limit is that of the bus, with frames of as many calls."""
    await bench.warm()
    await repetition(bench.read, 0, 10_240)
    before = int(bench.node.statistics()["frames"])
    found = await rate(bench.read, 15_360 if bench.quick else 61_440)
    calls = max(round(found.calls / (int(bench.node.statistics()["frames"]) - before)), 1)
    call = Call("Counter/x1234", "value", b"\x90", 1_234_567, "p-0123456789ab", 0, 0, time.time())
    frame = codec.encode_raw(Frame("hf.r.p-0123456789ab.0", [call] * calls))
    reply = codec.encode_raw(Replies("n-0123456789ab", [Reply(1_234_567, 0, b"\x01")] * calls))
    async with _echoes(bench.cluster.urls, len(reply)) as subjects:
        many = max(IN_FLIGHT // calls, len(subjects))
        frames = await raw.requests(bench.node.engine, subjects, frame, many, bench.seconds)
    shape = f"{many} requests in flight, {calls} calls ({len(frame)} B) each"
    report.add_rate("cluster: reader asks, 256 in flight", found, 40_000, frames * calls, shape)


@asynccontextmanager
async def _echoes(urls: list[str], size: int) -> AsyncIterator[list[str]]:
    subjects = [f"bench.echo.{index}" for index in range(len(urls))]
    pipe = asyncio.subprocess.PIPE
    children = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "bench.suite.echo",
            url,
            subject,
            str(size),
            stdin=pipe,
            stdout=pipe,
            cwd=HERE.parents[1],
        )
        for url, subject in zip(urls, subjects, strict=True)
    ]
    try:
        for child in children:
            assert child.stdout is not None
            if await child.stdout.readline() != b"ready\n":
                raise RuntimeError("a process that answers requests did not start")
        yield subjects
    finally:
        for child in children:
            assert child.stdin is not None
            child.stdin.close()
            await child.wait()


# Sends and the registry --------------------------------------------------------------------------------------------


async def sends(report: Report, bench: Bench) -> None:
    """Durable sends: how fast they are accepted, and how fast all of them are carried out, from the first on."""
    agents = [bench.node.agent(Counter, f"s{number}") for number in range(RECEIVERS)]
    wanted: Tally[int] = Tally()
    count = 5_120 if bench.quick else 10_240

    async def send(number: int) -> object:
        wanted[number % RECEIVERS] += 1
        return await agents[number % RECEIVERS].send(Counter.add, 1)

    async def carried_out(number: int) -> None:
        while await agents[number].ask(Counter.value) < wanted[number]:
            await asyncio.sleep(0.05)

    async def all_carried_out() -> None:
        for start in range(0, RECEIVERS, 50):
            await asyncio.gather(*map(carried_out, range(start, start + 50)))

    first = (await repetition(send, 0, RECEIVERS)).calls
    await all_carried_out()
    accepted: list[Rate] = []
    carried: list[float] = []
    appends = records = 0
    versions, before = await _versions(bench), await bench.ends()
    for _ in range(REPETITIONS):
        earlier, started = bench.node.engine.statistics(), time.perf_counter()
        accepted.append(await repetition(send, first, count))
        now = bench.node.engine.statistics()
        await all_carried_out()
        carried.append(accepted[-1].calls / (time.perf_counter() - started))
        first += accepted[-1].calls
        appends += int(now["appends"]) - int(earlier["appends"])
        records += int(now["records"]) - int(earlier["records"])
    sent = sum(one.calls for one in accepted) / RECEIVERS
    per_send = (await _versions(bench) - versions) / sent
    inbox = Shape(round(records / appends), await _inbox_size(bench))
    shape = await bench.stored_shape(before)
    inbox_limit = await raw.appends(bench.inbox_writers(inbox), bench.seconds)
    state_limit = await raw.appends(await bench.nine_writers(shape), bench.seconds)
    report.add_rate(
        "cluster: sends accepted, 256 in flight", median(accepted), 12_000, inbox_limit, f"3 writers, {inbox}, unique"
    )
    limit = 1 / (1 / inbox_limit + per_send / state_limit)
    both = f"… and {per_send:.2f} records of {shape} by 9"
    report.add("cluster: sends carried out", statistics.median(carried), "/s", 4_000, limit, both)


async def _versions(bench: Bench) -> float:
    """How many records an agent that is sent to has had, on average."""
    names = [f"Counter/s{number}" for number in range(0, RECEIVERS, 10)]
    found = await asyncio.gather(*(bench.node.inspect(name) for name in names), return_exceptions=True)
    versions = [0 if isinstance(one, NotFound) else one.version for one in found if not _is_failure(one)]  # type: ignore[union-attr]
    return statistics.mean(versions)


def _is_failure(found: object) -> bool:
    if isinstance(found, BaseException) and not isinstance(found, NotFound):
        raise found
    return False


async def _inbox_size(bench: Bench) -> int:
    """The bytes of an inbox record: one is sent, and heard as it goes into the log."""
    info = bench.node.describe("Counter/s0")
    heard = asyncio.get_running_loop().create_future()
    subject = f"{info.cell}.{info.shard}.in.Counter/s0.*"
    listening = await bench.node.engine.bus.subscribe(
        subject, lambda message: None if heard.done() else heard.set_result(len(message.payload))
    )
    await bench.node.agent(Counter, "s0").send(Counter.add, 1)
    size = await asyncio.wait_for(heard, 10)
    await listening.close()
    return int(size)


async def creates(report: Report, bench: Bench) -> None:
    """New agents registered, each with a name that nobody else has."""
    total = 10_000 if bench.quick else 50_000

    async def create(number: int) -> object:
        return await bench.node.create(Counter, f"c{number}", metadata={"n": number})

    warm = await repetition(create, total * 2, IN_FLIGHT * 2)
    earlier = bench.node.engine.statistics()
    found = await rate(create, total // REPETITIONS)
    now = bench.node.engine.statistics()
    batch = (int(now["records"]) - int(earlier["records"])) / (int(now["appends"]) - int(earlier["appends"]))
    stored = await bench.node.engine.log.read(REGISTRY_CELL, f"{REGISTRY_CELL}.ag.Counter/c0")
    shape = Shape(round(batch), len(stored.payload) if stored is not None else 0)
    cell = bench.raw_cells[0]
    writer = Writer(bench.node.engine, cell, raw.new_batches(f"{cell}.ag.Counter/{time.monotonic_ns()}", shape))
    limit = await raw.appends([writer], bench.seconds)
    assert warm.calls + found.calls == bench.node.count()
    name = f"cluster: creates and registers, {found.calls:,}"
    report.add_rate(name, found, 5_000, limit, f"1 writer, {shape}, unique")


# Failover ----------------------------------------------------------------------------------------------------------


async def failover(report: Report, bench: Bench) -> None:
    """After kill -9 of each node in turn, how long until its agents answer again."""
    node, cluster = bench.node, bench.cluster
    agents = {f"Counter/f{number}": node.agent(Counter, f"f{number}") for number in range(300)}
    times: list[float] = []
    for victim in [f"{host}-1" for host in cluster.hosts]:
        await _until(lambda victim=victim: any(m.name == victim and m.shards > 20 for m in node.members()))
        await node.ready()
        await asyncio.gather(*(agent.ask(Counter.add, 1) for agent in agents.values()))
        incarnation = next(member.incarnation for member in node.members() if member.name == victim)
        mine = [agent for name, agent in agents.items() if node.describe(name).owner == incarnation]
        cluster.kill_node(victim)
        killed = time.perf_counter()

        async def answer(agent: AgentRef[Counter], since: float = killed) -> float:
            await agent.ask(Counter.add, 1)
            return time.perf_counter() - since

        times += await asyncio.gather(*map(answer, mine))
    times.sort()
    report.add("cluster: after kill -9 of a node, median", times[len(times) // 2], "s", 1.0)
    report.add("cluster: after kill -9 of a node, longest", times[-1], "s")


async def _until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(_BACK_SECONDS):
        while not true():
            await asyncio.sleep(0.05)


BENCHMARKS: dict[str, Callable[[Report, Bench], Awaitable[None]]] = {
    "cluster.asks": asks,
    "cluster.one": one,
    "cluster.hot": hot,
    "cluster.readers": readers,
    "cluster.sends": sends,
    "cluster.creates": creates,
    "cluster.failover": failover,
}
