"""Ray: an actor is a process; its calls are not durable."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import ray
from work import ADDS, created, rate, say


@ray.remote(max_restarts=-1, max_task_retries=-1, num_cpus=0)
class Counter:
    def __init__(self) -> None:
        self.n = 0

    def add(self, by: int) -> int:
        self.n += by
        return self.n

    def pid(self) -> int:
        return os.getpid()


async def main() -> None:
    """Measure, and say it."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)

    async def create(_number: int) -> object:
        actor = Counter.remote()
        await actor.add.remote(0)
        return actor

    agents = [Counter.remote() for _ in range(8)]
    await asyncio.gather(*(agent.add.remote(0) for agent in agents))
    calls = await rate(lambda n: agents[n % 8].add.remote(1))
    alone = await rate(lambda _: agents[0].add.remote(0), 1)
    agent = agents[0]
    before = await agent.add.remote(0)
    for _ in range(ADDS):
        await agent.add.remote(1)
    os.kill(await agent.pid.remote(), signal.SIGKILL)
    started = time.perf_counter()
    left = await agent.add.remote(0)
    kept = max(left - before, 0)
    text = f"{kept} of {ADDS} adds kept, back after {time.perf_counter() - started:.2f} s"
    say(create=await created(create, 30, 8), calls=calls, one_ms=1e3 / alone, killed=text)


if __name__ == "__main__":
    asyncio.run(main())
