"""What a type checker must refuse: each ignored line is an error, and an ignore that hides none is
one itself."""
# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from holdfast import Agent, Node, State, handler, reader


class Count(State):
    n: int = 0


class Counter(Agent[Count]):
    @handler
    async def add(self, by: int) -> int:
        self.state.missing = 1  # type: ignore[attr-defined]
        self.state.n = "text"  # type: ignore[assignment]
        self.set_timer("t", 1.0, self.add, 1)  # type: ignore[arg-type]
        self.set_timer("t", 1.0, Counter.value)  # type: ignore[arg-type]
        self.set_timer("t", "soon", Counter.add, 1)  # type: ignore[arg-type]
        return self.state.n

    @reader
    async def value(self) -> int:
        return self.state.n


class Other(Agent[Count]):
    @handler
    async def hit(self) -> None: ...

    @handler(runs_in="process")
    async def train(self, rounds: int) -> None: ...


async def use(node: Node) -> None:
    counter = node.agent(Counter, "a")
    await counter.ask(Counter.add, "one")  # type: ignore[call-overload]
    await counter.ask(Counter.add)  # type: ignore[call-overload]
    await counter.ask(Counter.add, 1, 2)  # type: ignore[call-overload]
    await counter.ask(Counter.add, of=1)  # type: ignore[call-overload]
    await counter.ask(Other.hit)  # type: ignore[call-overload]
    await node.agent(Other, "a").ask(Other.train, "many")  # type: ignore[call-overload]
    handler(runs_in="fiber")  # type: ignore[call-overload]
    await counter.send(Counter.value)  # type: ignore[arg-type]
    counter.tell(Counter.value)  # type: ignore[arg-type]
    await counter.send(Counter.add, "one")  # type: ignore[arg-type]
    text: str = await counter.ask(Counter.add, 1)  # type: ignore[call-overload]
    print(text)
    counter.options(timeout="soon")  # type: ignore[call-arg]
    counter.options(message_id=1)  # type: ignore[arg-type]
    await node.register("Counter", "a")  # type: ignore[arg-type]
    node.agent(Count, "a")  # type: ignore[type-var]
    node.agent(Counter, 5)  # type: ignore[arg-type]
    async with Node.join("local:x.db", serve=[Count]):  # type: ignore[list-item]
        pass
    await Node.open("local:x.db", labels=5)  # type: ignore[arg-type]
    await Node.open("local:x.db", server=[Counter])  # type: ignore[call-arg]
