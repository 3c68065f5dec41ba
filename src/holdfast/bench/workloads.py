"""The workloads of `holdfast bench`, each of which gives a line of its report, or several."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Final

import msgspec

from holdfast.agents.ref import AgentRef
from holdfast.bench import engine_alone
from holdfast.bench.kinds import BenchBlob, BenchCounter, BenchTimer
from holdfast.bench.measure import Figure, Load
from holdfast.node.node import Node

_TURNS: Final = 6
_CHAIN: Final = 3
_BEST: Final = 250
_SIZES: Final = (1 << 10, 1 << 14, 1 << 18, 1 << 20)
_TIMERS_EACH: Final = 10
_FAILOVER_SECONDS: Final = 12.0


class Setting(msgspec.Struct):
    """What is measured with. ``seconds``: of each load. ``pids``: of the benchmark's own nodes, by
    name."""

    node: Node
    agents: int
    in_flight: int
    seconds: float
    cells: list[str]
    """Cells for the engine alone."""
    pids: Callable[[], dict[str, int]]

    @property
    def engine_seconds(self) -> float:
        """How long the engine alone is measured."""
        return min(self.seconds, 2.0)


class Moments(msgspec.Struct):
    """The failover's latencies over time: (s since its begin, ms), and when a process was
    killed."""

    moments: list[tuple[float, float]]
    killed_at: list[float]


async def register(setting: Setting) -> AsyncIterator[Figure]:
    """Register agents, each with a name that nobody else has."""
    node, mark = setting.node, f"{time.time():.0f}"
    load = Load()
    await load.keep(
        lambda n: node.register(BenchCounter, f"c{mark}-{n}", metadata={"n": n}),
        setting.in_flight, 0.0, setting.agents,
    )  # fmt: skip
    figure = load.figure("register")
    figure.engine = await engine_alone.batches(
        node.engine, setting.cells[:1], 1, setting.in_flight, 80, setting.engine_seconds
    )
    figure.engine_of = f"1 writer, batches of {setting.in_flight}"
    yield figure
    load = Load()
    for n in range(20_000):
        started = time.perf_counter()
        node.lookup(BenchCounter, f"c{mark}-{n % setting.agents}")
        load.note(started, time.perf_counter())
    yield load.figure("look up by name")
    load = Load()
    for n in range(1_000):
        started = time.perf_counter()
        node.find(
            capability="holdfast-bench", kind=BenchCounter, limit=10, where=[("n", "ge", n % 50)]
        )
        load.note(started, time.perf_counter())
    yield load.figure("find by capability")
    load = Load()
    await load.keep(
        lambda n: node.unregister(BenchCounter, f"c{mark}-{n}"),
        setting.in_flight,
        0.0,
        setting.agents,
    )
    yield load.figure("unregister")


async def asks(setting: Setting) -> AsyncIterator[Figure]:
    """Durable asks of many agents, and of a few hot ones."""
    node = setting.node
    agents = [node.agent(BenchCounter, f"a{n}") for n in range(setting.agents)]
    await Load().keep(
        lambda n: agents[n].ask(BenchCounter.add, 1), setting.in_flight, 0.0, len(agents)
    )
    load = Load()
    await load.keep(lambda _: agents[0].ask(BenchCounter.add, 1), 1, setting.seconds)
    figure = load.figure("ask, one at a time")
    figure.engine = await engine_alone.batches(
        node.engine, setting.cells[:1], 1, 1, 120, setting.engine_seconds
    )
    figure.engine_of = "one append at a time"
    yield figure
    each = max(len(setting.pids()) // len(setting.cells), 1)
    writers = each * len(setting.cells)
    # a fifth is on its way to or from its caller
    size = max(setting.in_flight * 4 // 5 // writers, 1)
    shapes = [(each, size, False), (1, _BEST, False)]
    if node.engine.name != "local":
        shapes.append((each, size, True))
    load, alone = Load(), []
    for turn in range(1, _TURNS + 1):
        with load.paused():
            alone.append(await _alone(setting, shapes))
        await load.keep(
            lambda n: agents[n % len(agents)].ask(BenchCounter.add, 1),
            setting.in_flight,
            setting.seconds * turn / _TURNS,
        )
    figure = load.figure(f"ask, {setting.in_flight} in flight")
    figure.engine, best, *packed = map(statistics.mean, zip(*alone, strict=True))
    figure.engine_of = f"{writers} writers, batches of {size}, a record each"
    figure.note = f"at its best {best:,.0f}/s, batches of {_BEST}"
    figure.note += "".join(f"; {rate:,.0f}/s in one record per batch" for rate in packed)
    yield figure
    load = Load()
    await load.keep(
        lambda n: agents[n % 10].ask(BenchCounter.add, 1), setting.in_flight, setting.seconds
    )
    yield load.figure("ask, 10 hot agents")


async def _alone(setting: Setting, shapes: Iterable[tuple[int, int, bool]]) -> list[float]:
    """What the engine alone does with each shape of batches: writers per cell, records, and whether
    they are packed.

    For a part of the time that it is measured for: it takes turns with what it is compared with, as
    a machine that others share is faster in one second than in the next.
    """
    seconds = setting.engine_seconds / _TURNS
    return [
        await engine_alone.batches(
            setting.node.engine, setting.cells, writers, records, 120, seconds, packed
        )
        for writers, records, packed in shapes
    ]


async def readers(setting: Setting) -> AsyncIterator[Figure]:
    """Asks of readers, which write nothing."""
    agents = [setting.node.agent(BenchCounter, f"a{n}") for n in range(setting.agents)]
    await Load().keep(
        lambda n: agents[n].ask(BenchCounter.value), setting.in_flight, 0.0, len(agents)
    )
    load = Load()
    await load.keep(
        lambda n: agents[n % len(agents)].ask(BenchCounter.value),
        setting.in_flight,
        setting.seconds,
    )
    figure = load.figure("ask a reader")
    if setting.node.engine.name != "local":
        figure.engine = await engine_alone.requests(
            setting.node.engine, setting.in_flight, setting.engine_seconds
        )
        figure.engine_of = f"bus requests, {setting.in_flight} in flight"
    yield figure


async def sends(setting: Setting) -> AsyncIterator[Figure]:
    """Messages into durable inboxes: until they are accepted, and until all are handled."""
    node = setting.node
    agents = [node.agent(BenchCounter, f"s{n}") for n in range(min(setting.agents, 2_000))]

    async def handled() -> int:
        return sum(await asyncio.gather(*(agent.ask(BenchCounter.value) for agent in agents)))

    before = await handled()
    load = Load()
    await load.keep(
        lambda n: agents[n % len(agents)].send(BenchCounter.add, 1),
        setting.in_flight,
        setting.seconds,
    )
    accepted = load.figure("send, accepted")
    while await handled() < before + accepted.operations:
        await asyncio.sleep(0.05)
    seconds = time.perf_counter() - load.began
    size = max(setting.in_flight // len(setting.cells), 1)
    accepted.engine = await engine_alone.batches(
        node.engine, setting.cells, 1, size, 80, setting.engine_seconds
    )
    accepted.engine_of = f"{len(setting.cells)} writers, batches of {size}"
    yield accepted
    carried = msgspec.structs.replace(
        accepted,
        name="send, handled",
        seconds=seconds,
        per_second=accepted.operations / seconds,
        p50=0,
        p99=0,
        longest=0,
    )
    yield carried


async def chains(setting: Setting) -> AsyncIterator[Figure]:
    """Asks that go through several agents, one of which asks the next inside its turn."""
    node = setting.node
    names = [f"a{n}" for n in range(setting.agents)]

    async def one(_number: int) -> None:
        # in one order, so that no two wait for each other
        first, *others = sorted(random.sample(names, _CHAIN))
        await node.agent(BenchCounter, first).ask(BenchCounter.through, others)

    load = Load()
    await load.keep(one, setting.in_flight, setting.seconds)
    yield load.figure(f"chains of {_CHAIN} agents")


async def mixed(setting: Setting) -> AsyncIterator[Figure]:
    """Seven of ten ask a reader, two ask a handler, one sends."""
    agents = [setting.node.agent(BenchCounter, f"a{n}") for n in range(setting.agents)]

    def one(number: int) -> Awaitable[object]:
        agent = agents[number * 7919 % len(agents)]
        if number % 10 < 7:
            return agent.ask(BenchCounter.value)
        return (
            agent.ask(BenchCounter.add, 1) if number % 10 < 9 else agent.send(BenchCounter.add, 1)
        )

    load = Load()
    await load.keep(one, setting.in_flight, setting.seconds)
    figure = load.figure("mixed")
    figure.note = "70 % read, 20 % ask, 10 % send"
    yield figure


async def states(setting: Setting) -> AsyncIterator[Figure]:
    """Turns of agents with larger states: each writes the whole state."""
    for size in _SIZES:
        agents = [setting.node.agent(BenchBlob, f"b{size}-{n}") for n in range(32)]
        for agent in agents:
            await agent.ask(BenchBlob.fill, size)

        def touch(number: int, agents: list[AgentRef[BenchBlob]] = agents) -> Awaitable[object]:
            return agents[number % len(agents)].ask(BenchBlob.touch)

        load = Load()
        await load.keep(touch, 32, setting.seconds)
        figure = load.figure(f"ask, state of {size >> 10:,} KB")
        figure.note = f"{figure.per_second * size / 1e6:,.1f} MB/s, 32 in flight"
        yield figure


async def timers(setting: Setting) -> AsyncIterator[Figure]:
    """Timers that are due at one time, and how late they fire."""
    agents = [
        setting.node.agent(BenchTimer, f"t{n}") for n in range(min(setting.agents // 10, 500))
    ]
    total = len(agents) * _TIMERS_EACH
    await asyncio.gather(*(agent.ask(BenchTimer.begin, _TIMERS_EACH, 1.0) for agent in agents))
    load = Load()
    while True:
        found = [
            ms
            for late in await asyncio.gather(*(agent.ask(BenchTimer.late) for agent in agents))
            for ms in late
        ]
        if len(found) >= total:
            break
        await asyncio.sleep(0.1)
    for seconds in found:
        load.note(0.0, seconds)
    figure = load.figure("timers: how late")
    figure.seconds = max(found)
    figure.per_second = total / figure.seconds
    figure.note = f"{total:,} due at once"
    yield figure


def busiest(setting: Setting) -> str:
    """The name of the benchmark's node that has most shards."""
    members = setting.node.members()
    return max(
        setting.pids(),
        key=lambda name: sum(member.shards for member in members if member.name == name),
    )


async def failover(setting: Setting, seen: Moments) -> AsyncIterator[Figure]:
    """A steady load, in the midst of which one of the benchmark's nodes is killed with ``kill
    -9``."""
    agents = [setting.node.agent(BenchCounter, f"a{n}") for n in range(min(setting.agents, 1_000))]
    load = Load()

    async def kill() -> None:
        await asyncio.sleep(_FAILOVER_SECONDS / 3)
        os.kill(setting.pids()[busiest(setting)], signal.SIGKILL)
        seen.killed_at.append(time.perf_counter() - load.began)

    def anyone(_number: int) -> Awaitable[object]:
        return random.choice(agents).ask(BenchCounter.add, 1)

    async def paced(_worker: int) -> None:
        while time.perf_counter() - load.began < _FAILOVER_SECONDS:
            await load.keep(anyone, 1, 0.0, 1)
            await asyncio.sleep(0.02)

    await asyncio.gather(kill(), *(paced(worker) for worker in range(min(setting.in_flight, 32))))
    seen.moments = [(at - load.began, ms) for at, ms in zip(load.ends, load.took, strict=True)]
    figure = load.figure("failover: kill -9 of a node")
    figure.note = f"longest wait {figure.longest / 1e3:.2f} s"
    yield figure


ALL: Final[dict[str, Callable[[Setting], AsyncIterator[Figure]]]] = {
    "register": register,
    "asks": asks,
    "readers": readers,
    "sends": sends,
    "chains": chains,
    "mixed": mixed,
    "states": states,
    "timers": timers,
}
NAMES: Final = (*ALL, "failover")
