"""How the benchmark measures: a load that is kept up for a while, its latencies, and what it
cost."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import msgspec

from holdfast.bench.processes import Usage
from holdfast.errors import HoldfastError


class Figure(msgspec.Struct):
    """One line of the report. Latencies are in ms, ``engine`` in operations a second of the engine
    alone."""

    name: str
    operations: int
    seconds: float
    per_second: float
    p50: float
    p99: float
    longest: float
    failed: dict[str, int] = {}
    """Operations that failed, by their error's name."""
    engine: float = 0.0
    engine_of: str = ""
    """… and what it was given, for the ratio to mean something."""
    cores: dict[str, float] = {}
    """Processor time over time, of the client, the nodes, the servers and the hosts."""
    resident_mb: dict[str, float] = {}
    note: str = ""

    @property
    def ratio(self) -> float:
        """What is left of the engine's own rate; 0 where there is nothing to compare."""
        return self.per_second / self.engine if self.engine else 0.0


class Load:
    """Operations under way: when each ended, how long it took (ms), and what failed."""

    def __init__(self) -> None:
        self._usage = Usage()
        self.began = time.perf_counter()
        self.ends, self.took = array("d"), array("d")
        self.failed: Counter[str] = Counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Have what is done meanwhile not count."""
        at = time.perf_counter()
        with self._usage.paused():
            yield
        self.began += time.perf_counter() - at

    def note(self, started: float, ended: float) -> None:
        """Count an operation that was done between these times (s)."""
        self.ends.append(ended)
        self.took.append((ended - started) * 1e3)

    async def keep(
        self,
        work: Callable[[int], Awaitable[object]],
        in_flight: int,
        seconds: float,
        count: int = 0,
    ) -> None:
        """Keep so many operations in flight until so long after the begin, or until ``count`` were
        begun; ``work`` gets their numbers."""
        end, number = self.began + seconds, 0

        async def one() -> None:
            nonlocal number
            now = time.perf_counter()
            while (number < count) if count else (now < end):
                number += 1
                began = now
                try:
                    await work(number - 1)
                except HoldfastError as error:
                    self.failed[type(error).__name__] += 1
                    now = time.perf_counter()
                else:
                    now = time.perf_counter()
                    self.note(began, now)

        await asyncio.gather(*(one() for _ in range(in_flight)))

    def figure(self, name: str) -> Figure:
        """What came of it until now."""
        seconds = time.perf_counter() - self.began
        sorted_ms = sorted(self.took) or [0.0]

        def quantile(q: float) -> float:
            return sorted_ms[min(int(len(sorted_ms) * q), len(sorted_ms) - 1)]

        done, (cores, resident_mb) = len(self.took), self._usage.read()
        return Figure(
            name, done, seconds, done / seconds, quantile(0.5), quantile(0.99), sorted_ms[-1],
            dict(self.failed), cores=cores, resident_mb=resident_mb,
        )  # fmt: skip
