"""What the clusters of the backup's tests serve: agents whose states show a copy that was not of
one moment."""

from __future__ import annotations

import msgspec

from holdfast import Agent, State, handler, reader


class Coins(State):
    n: int = 100
    given: int = 0
    got: dict[str, list[int]] = msgspec.field(default_factory=dict)


class Purse(Agent[Coins], capabilities={"purse"}):
    """Coins only move: of all purses, and of all messages under way, there are always as many."""

    @handler
    async def give(self, to: str, coins: int) -> int:
        self.state.n -= coins
        self.state.given += 1
        await self.agent(Purse, to).send(Purse.take, self.name, self.state.given, coins)
        return self.state.n

    @handler
    async def take(self, sender: str, number: int, coins: int) -> None:
        self.state.n += coins
        self.state.got.setdefault(sender, []).append(number)

    @reader
    async def look(self) -> Coins:
        return self.state


class Number(State):
    n: int = 0
    texts: list[str] = msgspec.field(default_factory=list)
    padding: bytes = b""


class Counter(Agent[Number]):
    """Counts, remembers, grows."""

    @handler
    async def add(self, by: int = 1) -> int:
        self.state.n += by
        return self.state.n

    @handler
    async def note(self, text: str) -> None:
        self.state.texts.append(text)

    @handler
    async def grow(self, size: int) -> int:
        self.state.n += 1
        self.state.padding = bytes([self.state.n % 256]) * size
        return self.state.n

    @handler
    async def refuse(self) -> None:
        raise ValueError("as told")

    @handler
    async def forward(self, to: str, then_fail: bool) -> int:
        """Asks another agent, and may fail after that."""
        n = await self.agent(Counter, to).ask(Counter.add, 1)
        if then_fail:
            raise ValueError("later")
        self.state.n = n
        return n

    @handler
    async def wake(self, seconds: float) -> None:
        self.set_timer("wake", seconds, Counter.add, 1000)

    @reader
    async def look(self) -> Number:
        return Number(self.state.n, self.state.texts)

    @reader
    async def size(self) -> tuple[int, bytes]:
        return len(self.state.padding), self.state.padding[-1:]
