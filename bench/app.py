"""What the nodes of the benchmarks serve."""

from __future__ import annotations

from holdfast import Agent, State, handler, reader


class Number(State):
    n: int = 0


class Counter(Agent[Number], capabilities={"count"}):
    """The smallest agent that changes its state."""

    @handler
    async def add(self, by: int) -> int:
        self.state.n += by
        return self.state.n

    @reader
    async def value(self) -> int:
        return self.state.n
