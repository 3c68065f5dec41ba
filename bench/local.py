"""The embedded engine, in this process."""

from __future__ import annotations

import gc
import tempfile
import tracemalloc
from pathlib import Path

from bench.app import Counter
from bench.measure import Report, latencies, out, rate
from holdfast import Node
from holdfast.bench import engine_alone
from holdfast.engines.base import Record
from holdfast.engines.local.engine import LocalEngine

IN_FLIGHT = 256
AGENTS = 10_000


async def benchmark(report: Report, quick: bool) -> None:
    """All rows of the embedded engine."""
    out.print("[bold]local[/]: one process, one SQLite file, fsync before each acknowledgement")
    scale = 1 if quick else 4
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as directory:
        engine = LocalEngine(Path(directory) / "raw.db")
        await engine.open()
        await engine.ensure_cells(["c"], 1)
        limit = await engine_alone.batches(engine, ["c"], 1, IN_FLIGHT, 120, 2.0)
        alone50, _ = await latencies(
            lambda n: engine.log.append("c", [Record(f"c.one.{n % 100}", bytes(100))]), 500
        )
        await engine.close()
        async with Node.join(f"local:{directory}/bench.db", serve=[Counter]) as node:
            await node.ready()
            agents = [node.agent(Counter, f"x{n}") for n in range(AGENTS)]
            await rate(
                lambda n: agents[n % AGENTS].ask(Counter.add, 1), IN_FLIGHT, AGENTS + IN_FLIGHT, 1
            )
            p50, _ = await latencies(lambda _: agents[0].ask(Counter.add, 1), 500 * scale)
            report.add("ask, one at a time, p50", p50, "ms", 0.0, alone50, "one append alone, p50")
            asked = await rate(
                lambda n: agents[n % AGENTS].ask(Counter.add, 1), IN_FLIGHT, 25_600 * scale
            )
            report.add(
                "ask, 256 in flight, 10,000 agents",
                asked,
                "/s",
                30_000,
                limit,
                "1 writer, batches of 256",
            )
            read = await rate(
                lambda n: agents[n % AGENTS].ask(Counter.value), IN_FLIGHT, 51_200 * scale
            )
            report.add("ask a reader, 256 in flight", read, "/s", 90_000)
            sent = await rate(
                lambda n: agents[n % AGENTS].send(Counter.add, 1), IN_FLIGHT, 10_240 * scale, 1
            )
            report.add("send, accepted", sent, "/s", 0.0, limit, "1 writer, batches of 256")
        await _memory(report, directory)


async def _memory(report: Report, directory: str) -> None:
    """What Python allocates for an agent that had two messages, and all that knows of it; memory
    that a process had and uses again would not be seen in its resident size."""
    count = 10_000
    async with Node.join(f"local:{directory}/memory.db", serve=[Counter]) as node:
        await node.ready()
        agents = [node.agent(Counter, f"m{n}") for n in range(count)]
        await rate(lambda n: agents[n].ask(Counter.add, 1), 250, 250, 1)
        gc.collect()
        tracemalloc.start()
        for _ in range(2):
            await rate(lambda n: agents[n].ask(Counter.add, 1), 250, count, 1)
        gc.collect()
        report.add(
            "an idle agent in memory",
            tracemalloc.get_traced_memory()[0] / (count - 250),
            "B",
            2_048,
        )
        tracemalloc.stop()
