"""Dask: actors on two worker processes; calls are not durable."""

from __future__ import annotations

import asyncio
import os
import signal
import time

from distributed import Client, LocalCluster
from work import ADDS, Counter, back, created, rate, say


async def main() -> None:
    """Measure, and say it."""
    async with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, asynchronous=True, dashboard_address=None
        ) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):

        async def create(_number: int) -> object:
            return await client.submit(Counter, actor=True, pure=False)

        agents = [await create(n) for n in range(100)]
        calls = await rate(lambda n: agents[n % 100].add(1))
        alone = await rate(lambda _: agents[0].add(0), 1)
        speed = await created(create, 1_000, 64)
        agent = agents[0]
        before = await agent.add(0)
        for _ in range(ADDS):
            await agent.add(1)
        os.kill(await agent.pid(), signal.SIGKILL)
        started = time.perf_counter()
        try:
            async with asyncio.timeout(30):
                left = await agent.add(0)
            text = back(left - before, started)
        except Exception as error:
            text = f"0 of {ADDS} adds kept, gone for good: {type(error).__name__}"
        say(create=speed, calls=calls, one_ms=1e3 / alone, killed=text)
        os._exit(0)


if __name__ == "__main__":
    asyncio.run(main())
