"""A kind that lives in a pool of its own."""

from __future__ import annotations

from holdfast import Agent, Pool, State, handler, reader


class Weights(State):
    steps: int = 0
    data: bytes = b""


class Trainer(Agent[Weights], pool=Pool(name="gpu", shards=6, labels={"gpu"}, standbys=1)):
    @handler
    async def step(self, size: int = 0) -> int:
        self.state.steps += 1
        self.state.data = bytes(size)
        return self.state.steps

    @reader
    async def steps(self) -> int:
        return self.state.steps
