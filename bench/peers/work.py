"""What each peer's script measures, and how it says so. It needs nothing but the standard
library."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable

IN_FLIGHT = 256
SECONDS = 4.0
ADDS = 100


class Counter:
    """What is an actor everywhere: it adds, and says where it lives."""

    def __init__(self) -> None:
        self.n = 0

    def add(self, by: int) -> int:
        """Add, and return the sum."""
        self.n += by
        return self.n

    def pid(self) -> int:
        """Its process."""
        return os.getpid()


async def rate(
    work: Callable[[int], Awaitable[object]], in_flight: int = IN_FLIGHT, seconds: float = SECONDS
) -> float:
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


def back(kept: int, since: float) -> str:
    """What is left of the adds, once it answers again after its process was killed; ``since``: by
    `time.perf_counter`."""
    return f"{max(kept, 0)} of {ADDS} adds kept, back after {time.perf_counter() - since:.2f} s"


def say(**found: object) -> None:
    """One line for `bench.peers`."""
    print("RESULT " + json.dumps(found), flush=True)
    sys.stdout.flush()
