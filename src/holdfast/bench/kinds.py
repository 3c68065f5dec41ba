"""The agents that the benchmark's own nodes serve. Their pool keeps them off all other nodes.

Two variables of the environment are for those who measure how cost grows: how many shards the pool
has, and after how many seconds an idle agent leaves memory.
"""

from __future__ import annotations

import os
import time

from msgspec import field

from holdfast.agents.agent import Agent, State
from holdfast.agents.handler import handler, reader
from holdfast.core.pools import Pool

SHARDS = int(os.environ.get("HOLDFAST_BENCH_SHARDS", "48"))
IDLE_SECONDS = float(os.environ.get("HOLDFAST_BENCH_IDLE", "300"))
POOL = Pool(name="holdfast-bench", shards=SHARDS, labels=frozenset({"holdfast-bench"}))


class Number(State):
    n: int = 0


class BenchCounter(
    Agent[Number], pool=POOL, capabilities={"holdfast-bench"}, idle_seconds=IDLE_SECONDS
):
    """The smallest agent that changes its state."""

    @handler
    async def add(self, by: int) -> int:
        self.state.n += by
        return self.state.n

    @handler
    async def through(self, names: list[str]) -> int:
        """Add at the end of a chain of agents, each of which asks the next."""
        if not names:
            self.state.n += 1
            return self.state.n
        return await self.agent(BenchCounter, names[0]).ask(BenchCounter.through, names[1:])

    @reader
    async def value(self) -> int:
        return self.state.n


class Bytes(State):
    data: bytes = b""
    n: int = 0


class BenchBlob(Agent[Bytes], pool=POOL):
    """An agent with a state of any size, of which each turn changes a little."""

    @handler
    async def fill(self, size: int) -> None:
        self.state.data = bytes(size)

    @handler
    async def touch(self) -> int:
        self.state.n += 1
        return self.state.n


class Late(State):
    seconds: list[float] = field(default_factory=list)


class BenchTimer(Agent[Late], pool=POOL):
    """Sets timers, and remembers how late each was."""

    @handler
    async def begin(self, count: int, seconds: float) -> None:
        self.state.seconds = []
        for number in range(count):
            self.set_timer(f"t{number}", seconds, BenchTimer.ring, time.time() + seconds)

    @handler
    async def ring(self, due: float) -> None:
        self.state.seconds.append(time.time() - due)

    @reader
    async def late(self) -> list[float]:
        return self.state.seconds


KINDS = (BenchCounter, BenchBlob, BenchTimer)
