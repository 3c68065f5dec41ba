"""Holdfast: three servers with three copies, fsync before each acknowledgement, three nodes."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

from bench.app import Counter
from bench.peers.work import ADDS, back, created, rate, say
from holdfast import LocalCluster, Node

APP = str(Path(__file__).parents[1] / "app.py")


async def main() -> None:
    """Measure, and say it."""
    with tempfile.TemporaryDirectory() as directory:
        async with LocalCluster(directory, [APP]) as cluster, Node.join(cluster.urls) as node:
            await node.ready()
            agents = [node.agent(Counter, f"x{n}") for n in range(1_000)]
            await asyncio.gather(*(agent.ask(Counter.add, 0) for agent in agents))
            create = await created(lambda n: node.register(Counter, f"c{n}"), 10_000, 256)
            durable = await rate(lambda n: agents[n % 1_000].ask(Counter.add, 1))
            reads = await rate(lambda n: agents[n % 1_000].ask(Counter.value))
            alone = await rate(lambda _: agents[0].ask(Counter.add, 0), 1)
            agent = node.agent(Counter, "killed")
            for _ in range(ADDS):
                await agent.ask(Counter.add, 1)
            owner = node.describe("Counter/killed").owner
            cluster.kill_node(
                next(member.name for member in node.members() if member.incarnation == owner)
            )
            started = time.perf_counter()
            left = await agent.ask(Counter.value)
            say(
                create=create, durable=durable, calls=reads, one_ms=1e3 / alone,
                killed=back(left, started),
            )  # fmt: skip


if __name__ == "__main__":
    asyncio.run(main())
