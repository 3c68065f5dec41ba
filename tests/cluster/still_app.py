"""Agents that stand still, each in its own way. Each run notes itself in a file, so that a test can
count the processes."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from holdfast import Agent, State, handler, reader

RUNS = Path(os.environ.get("STILL_RUNS", os.devnull))


def ran(what: str) -> None:
    with RUNS.open("a") as file:
        file.write(f"{os.getpid()} {what}\n")


@dataclass
class Knot:
    """An argument that stands still where it is decoded, other than in the process that asks."""

    what: str

    def __post_init__(self) -> None:
        if Path(os.devnull) != RUNS:
            ran(self.what)
            while True:
                pass


class Count(State):
    n: int = 0


class Still(Agent[Count]):
    @handler
    async def add(self) -> int:
        self.state.n += 1
        return self.state.n

    @handler
    async def spin(self, what: str) -> None:
        self.state.n += 1
        ran(what)
        while True:
            pass

    @handler
    async def nap(self, what: str, seconds: float) -> int:
        self.state.n += 1
        ran(what)
        time.sleep(seconds)
        return self.state.n

    @handler
    async def backtrack(self, what: str) -> bool:
        """In C code that keeps the interpreter."""
        ran(what)
        return re.match(r"(a+)+$", "a" * 200 + "b") is not None

    @handler
    async def tie(self, knot: Knot) -> None:
        self.state.n += 1

    @handler
    async def arm(self, what: str) -> None:
        self.set_timer("spin", 0.0, Still.spin, what)

    @reader
    async def stare(self, what: str) -> int:
        ran(what)
        while True:
            pass

    @reader
    async def value(self) -> int:
        return self.state.n


class Late(State):
    """A state that stands still whenever it is made from its bytes, while a file is there."""

    what: str = ""
    n: int = 0

    def __post_init__(self) -> None:
        if self.what.startswith("load") and RUNS.with_suffix(".slow").exists():
            ran(self.what)
            while True:
                pass


class Slow(Agent[Late]):
    @handler
    async def become(self, what: str) -> int:
        self.state.what = what
        self.state.n += 1
        return self.state.n

    @reader
    async def value(self) -> int:
        return self.state.n
