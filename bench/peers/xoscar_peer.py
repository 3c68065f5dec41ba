"""xoscar: actors in two processes that are called from a third; calls are not durable."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import xoscar as xo
from work import ADDS, Counter, back, created, rate, say


class Actor(Counter, xo.Actor):
    """The same, as xoscar wants it."""


async def main() -> None:
    """Measure, and say it."""
    pool = await xo.create_actor_pool("127.0.0.1:0", n_process=2, auto_recover="actor")
    spread = [xo.allocate_strategy.ProcessIndex(index) for index in (1, 2)]

    async def create(number: int) -> xo.ActorRefType:
        return await xo.create_actor(
            Actor,
            uid=f"c{number}",
            address=pool.external_address,
            allocate_strategy=spread[number % 2],
        )

    agents = [await create(n) for n in range(1_000)]
    calls = await rate(lambda n: agents[n % 1_000].add(1))
    alone = await rate(lambda _: agents[0].add(0), 1)
    agent = agents[1]
    before = await agent.add(0)
    for _ in range(ADDS):
        await agent.add(1)
    speed = await created(lambda n: create(10_000 + n), 5_000, 64)
    os.kill(await agent.pid(), signal.SIGKILL)
    started = time.perf_counter()
    text = f"0 of {ADDS} adds kept, not back within 30 s"
    while time.perf_counter() - started < 30:
        try:
            async with asyncio.timeout(5):
                left = await agent.add(0)
        except Exception:  # whatever it says while it is away
            await asyncio.sleep(0.1)
            continue
        text = back(left - before, started)
        break
    say(create=speed, calls=calls, one_ms=1e3 / alone, killed=text)
    os._exit(0)  # its pool does not stop in order after that


if __name__ == "__main__":
    asyncio.run(main())
