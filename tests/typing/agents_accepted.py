"""What a type checker must accept, with the types that it must see."""
# pyright: strict

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, assert_type

import numpy as np
import pydantic
from numpy.typing import NDArray

from holdfast import Agent, AgentRef, Node, State, handler, reader


class Reviews(State):
    done: int = 0


@dataclass
class Plain:
    total: float = 0.0


class Reviewer(Agent[Reviews], capabilities={"review"}, idle_seconds=5.0):
    @handler
    async def review(self, diff: str, *, strict: bool = False) -> str:
        assert_type(self.state, Reviews)
        assert_type(self.agent(Summer, "all"), AgentRef[Summer])
        await self.agent(Summer, "all").send(Summer.add, 1.0)
        total = await self.agent(Summer, "all").ask(Summer.add, 2.0)
        assert_type(total, float)
        self.set_timer("again", 5.0, Reviewer.review, diff, strict=True)
        assert_type(self.context.fence, int)
        return diff

    @reader
    async def total(self) -> int:
        return self.state.done


class Trainer(Agent[Plain]):
    @handler(runs_in="process")
    async def train(self, rounds: int) -> float:
        return self.state.total * rounds

    @reader(runs_in="thread")
    async def score(self, of: str) -> int:
        return len(of)


class Order(pydantic.BaseModel):
    words: list[str] = []


class Orders(Agent[Order]):
    @handler
    async def put(self, order: Order) -> Order:
        self.state.words.extend(order.words)
        self.set_timer("later", 1.0, Orders.put, order)
        return self.state


class Summer(Agent[Plain]):
    @handler
    async def add(self, by: float) -> float:
        self.state.total += by
        return self.state.total

    @handler
    async def learn(self, sample: NDArray[np.float64]) -> None: ...


async def use(node: Node) -> None:
    acme = node.agent(Reviewer, "acme")
    assert_type(acme, AgentRef[Reviewer])
    assert_type(await acme.ask(Reviewer.review, "diff"), str)
    assert_type(await acme.ask(Reviewer.review, diff="diff", strict=True), str)
    assert_type(await acme.ask(Reviewer.total), int)
    assert_type(await acme.options(timeout_seconds=1, message_id="x").ask(Reviewer.total), int)
    await acme.send(Reviewer.review, "diff")
    acme.tell(Reviewer.review, "diff")
    assert_type(await node.agent(Orders, "o").ask(Orders.put, Order(words=["a"])), Order)
    await node.agent(Summer, "s").ask(Summer.learn, np.zeros(3))
    created = await node.register(Reviewer, "critical", metadata={"a": 1}, capabilities=["x"])
    assert_type(created, AgentRef[Reviewer])
    async for found in node.find(capability="review", where=[("region", "eq", "eu")]):
        assert_type(found, AgentRef[Any])
    async with Node.join("local:dev.db", serve=[Reviewer, Summer]) as joined:
        assert_type(joined, Node)


async def open_and_close() -> None:
    node: Node = await Node.open(
        ["nats://h1:4222", "nats://h2:4222"], serve=[Reviewer], timeout_seconds=5.0, wait=True
    )
    await node.close()
