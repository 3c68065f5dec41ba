"""What agents and the registry take in memory, and how fast the registry is read from there."""

from __future__ import annotations

import gc
import os
import tempfile
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path

from bench.app import Counter
from bench.suite.measure import percentiles, repetition
from bench.suite.report import Report
from holdfast import Node
from holdfast.clock import SYSTEM_CLOCK
from holdfast.cluster.registry import Registry
from holdfast.engines.local.engine import LocalEngine

RESIDENT = 20_000
REGISTERED = 50_000
SKILLS = 500
_WARM = 256


async def agents(report: Report, _: bool) -> None:
    """An idle agent that handled one message: all that Python keeps for it, less its encoded state."""
    resident, _state = await _grown(_resident_bytes)
    report.add("memory: an idle agent, growth of the process", resident, "B")
    tracemalloc.start()
    try:
        traced, state = await _grown(lambda: tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    report.add("memory: an idle agent, beyond its state", traced - state, "B", 2_048)


async def _grown(used: Callable[[], int]) -> tuple[float, int]:
    """By how many bytes the use grows for each agent, and the bytes of an agent's state."""
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as directory:
        async with Node.join(f"local:{directory}/agents.db", serve=[Counter]) as node:
            await node.ready()
            refs = [node.agent(Counter, f"m{number}") for number in range(_WARM + RESIDENT)]

            async def ask(number: int) -> object:
                return await refs[number].ask(Counter.add, 1)

            await repetition(ask, 0, _WARM)
            gc.collect()
            before = used()
            calls = (await repetition(ask, _WARM, RESIDENT)).calls
            gc.collect()
            after = used()
            state = (await node.inspect("Counter/m0")).state_bytes
            assert node.statistics()["agents"] >= calls
    return (after - before) / calls, state


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def registry(report: Report, quick: bool) -> None:
    """Reads of a registry of 50,000 agents, each with one capability of all and one of a hundred."""
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as directory:
        engine = LocalEngine(Path(directory) / "registry.db")
        await engine.open()
        try:
            await engine.ensure_cells(["reg"], 1)
            found = Registry(engine, "reg", SYSTEM_CLOCK)
            await found.open()

            async def create(number: int) -> object:
                skills = {"count", f"skill-{number % SKILLS}"}
                return await found.create("Counter", f"c{number}", capabilities=skills, metadata={"n": number})

            await repetition(create, 0, REGISTERED + 256)
            _reads(report, found, 200 if quick else 1_000)
            await found.close()
        finally:
            await engine.close()


def _reads(report: Report, registry: Registry, count: int) -> None:
    names = [f"c{number * 7 % REGISTERED}" for number in range(20_000)]
    for name in names[:2_000]:
        registry.lookup("Counter", name)
    began = time.perf_counter()
    for name in names:
        registry.lookup("Counter", name)
    report.add("registry: lookup by name, mean", (time.perf_counter() - began) / len(names) * 1e6, "µs", 2.0)
    _query(
        report, "capability query, 100 of 50,000", count, lambda n: registry.find(capability=[f"skill-{n % SKILLS}"])
    )
    _query(
        report,
        "two capabilities, a kind and a condition",
        count,
        lambda n: registry.find(
            capability=["count", f"skill-{n % SKILLS}"], kind="Counter", where=[("n", "ge", REGISTERED // 2)]
        ),
    )


def _query(report: Report, name: str, count: int, query: Callable[[int], list[object]]) -> None:
    times = []
    for number in range(count):
        began = time.perf_counter()
        found = query(number)
        times.append(time.perf_counter() - began)
        assert found
    spread = percentiles(times)
    report.add(f"registry: {name}, p50", spread.p50_ms, "ms", 1.0)
    report.add(f"registry: {name}, p99", spread.p99_ms, "ms", 1.0)


BENCHMARKS: dict[str, Callable[[Report, bool], Awaitable[None]]] = {
    "memory.agents": agents,
    "memory.registry": registry,
}
