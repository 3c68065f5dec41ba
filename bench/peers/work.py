"""What each peer's script measures, and how it says so. It needs nothing but the standard library."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable

IN_FLIGHT = 256
SECONDS = 4.0
ADDS = 100


async def rate(work: Callable[[int], Awaitable[object]], in_flight: int = IN_FLIGHT, seconds: float = SECONDS) -> float:
    """Operations a second with so many in flight."""
    started = time.perf_counter()
    done = number = 0

    async def one() -> None:
        nonlocal done, number
        while time.perf_counter() - started < seconds:
            number += 1
            await work(number)
            done += 1

    await asyncio.gather(*(one() for _ in range(in_flight)))
    return done / (time.perf_counter() - started)


async def created(create: Callable[[int], Awaitable[object]], count: int, in_flight: int) -> float:
    """Actors a second, until all of them are there."""
    started = time.perf_counter()
    numbers = iter(range(count))

    async def one() -> None:
        for number in numbers:
            await create(number)

    await asyncio.gather(*(one() for _ in range(in_flight)))
    return count / (time.perf_counter() - started)


def say(**found: object) -> None:
    """One line for `bench.peers`."""
    print("RESULT " + json.dumps(found), flush=True)
    sys.stdout.flush()
