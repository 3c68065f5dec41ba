"""How rates and latencies are measured: some in flight, closed loop, the median of the repetitions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

IN_FLIGHT = 256
REPETITIONS = 3
AGENTS = 10_000

Work = Callable[[int], Awaitable[object]]
"""One call. It is given the call's number, which no other call of the measurement has."""


@dataclass(frozen=True)
class Rate:
    """Calls a second, how long one took under that load, and how many were made in all repetitions."""

    per_second: float
    p50_ms: float
    p99_ms: float
    calls: int


@dataclass(frozen=True)
class Latency:
    """Of one call at a time."""

    p50_ms: float
    p99_ms: float


def percentiles(times: list[float]) -> Latency:
    """From seconds; they are sorted in place."""
    times.sort()
    return Latency(times[len(times) // 2] * 1e3, times[int(len(times) * 0.99)] * 1e3)


async def repetition(work: Work, first: int, count: int, in_flight: int = IN_FLIGHT) -> Rate:
    """Make calls number ``first`` and on, so many in flight."""
    each = max(count // in_flight, 1)
    times: list[float] = []

    async def one(worker: int) -> None:
        for step in range(each):
            began = time.perf_counter()
            await work(first + worker * each + step)
            times.append(time.perf_counter() - began)

    started = time.perf_counter()
    await asyncio.gather(*map(one, range(in_flight)))
    seconds = time.perf_counter() - started
    spread = percentiles(times)
    return Rate(each * in_flight / seconds, spread.p50_ms, spread.p99_ms, each * in_flight)


def median(rates: list[Rate]) -> Rate:
    """The repetition in the middle, with the calls of all."""
    middle = sorted(rates, key=lambda rate: rate.per_second)[len(rates) // 2]
    return Rate(middle.per_second, middle.p50_ms, middle.p99_ms, sum(rate.calls for rate in rates))


async def rate(work: Work, count: int, in_flight: int = IN_FLIGHT) -> Rate:
    """The median of the repetitions, each of ``count`` calls. Warming up is the caller's part."""
    rates: list[Rate] = []
    for _ in range(REPETITIONS):
        rates.append(await repetition(work, sum(one.calls for one in rates), count, in_flight))
    return median(rates)


async def latency(work: Work, count: int) -> Latency:
    """One call at a time; the first tenth warms up."""
    times = []
    for step in range(count + count // 10):
        began = time.perf_counter()
        await work(step)
        times.append(time.perf_counter() - began)
    return percentiles(times[count // 10 :])
