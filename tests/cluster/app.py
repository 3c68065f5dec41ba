"""What the nodes of the test clusters serve."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import msgspec

from holdfast import Agent, State, handler, reader


class Total(State):
    n: int = 0
    marks: list[int] = msgspec.field(default_factory=list)


class Account(Agent[Total], capabilities={"account"}):
    @handler
    async def add(self, by: int = 1) -> int:
        self.state.n += by
        return self.state.n

    @handler
    async def slow(self, seconds: float) -> int:
        await asyncio.sleep(seconds)
        self.state.n += 1
        return self.state.n

    @handler
    async def block(self, seconds: float) -> int:
        time.sleep(seconds)
        self.state.n += 1
        return self.state.n

    @handler(runs_in="process")
    async def compute(self, seconds: float, begun: str = "", until: str = "") -> int:
        """Note in a file that it began, wait for another file, and compute for so long."""
        if begun:
            with Path(begun).open("a") as file:
                file.write(f"{os.getpid()}\n")
        while until and not Path(until).exists():
            time.sleep(0.02)
        time.sleep(seconds)
        self.state.n += 1
        return self.state.n

    @reader
    async def value(self) -> int:
        return self.state.n


class Mail(State):
    sent: int = 0
    got: dict[str, list[int]] = msgspec.field(default_factory=dict)


class Post(Agent[Mail]):
    """Sends to others inside its turns, and keeps what it gets."""

    @handler
    async def spread(self, to: list[str]) -> int:
        for name in to:
            await self.agent(Post, name).send(Post.take, self.name, self.state.sent)
        self.state.sent += 1
        return self.state.sent

    @handler
    async def take(self, sender: str, number: int) -> None:
        self.state.got.setdefault(sender, []).append(number)

    @handler
    async def ask_around(self, names: list[str]) -> int:
        return sum([await self.agent(Account, name).ask(Account.add, 1) for name in names])

    @reader
    async def got(self) -> dict[str, list[int]]:
        return self.state.got
