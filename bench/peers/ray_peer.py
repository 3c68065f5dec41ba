"""Ray: an actor is a process; its calls are not durable."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import ray
from work import ADDS, Counter, back, created, rate, say

Actor = ray.remote(max_restarts=-1, max_task_retries=-1, num_cpus=0)(Counter)


async def main() -> None:
    """Measure, and say it."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)

    async def create(_number: int) -> object:
        actor = Actor.remote()
        await actor.add.remote(0)
        return actor

    agents = [Actor.remote() for _ in range(8)]
    await asyncio.gather(*(agent.add.remote(0) for agent in agents))
    calls = await rate(lambda n: agents[n % 8].add.remote(1))
    alone = await rate(lambda _: agents[0].add.remote(0), 1)
    agent = agents[0]
    before = await agent.add.remote(0)
    for _ in range(ADDS):
        await agent.add.remote(1)
    os.kill(await agent.pid.remote(), signal.SIGKILL)
    started = time.perf_counter()
    text = back(await agent.add.remote(0) - before, started)
    say(create=await created(create, 30, 8), calls=calls, one_ms=1e3 / alone, killed=text)


if __name__ == "__main__":
    asyncio.run(main())
