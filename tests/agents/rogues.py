"""Agents whose code raises whatever Python can raise, wherever it is called."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any, ClassVar

from msgspec import field

from holdfast import Agent, State, handler, reader


class Mute(Exception):
    """Whoever asks what it says gets another error."""

    def __str__(self) -> str:
        raise SystemExit("no text")

    __repr__ = __str__


class Odd(BaseException):
    pass


def group() -> BaseException:
    return BaseExceptionGroup("several", [KeyboardInterrupt("a"), Mute(), ValueError("b")])


def circle() -> BaseException:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    return one


def halves() -> BaseException:
    return ValueError("half a pair: \udc80")


def large() -> BaseException:
    return ValueError("x" * 3_000_000)


ERRORS: dict[str, Callable[[], BaseException]] = {
    "CancelledError": asyncio.CancelledError,
    "SystemExit": lambda: SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt,
    "GeneratorExit": GeneratorExit,
    "StopIteration": lambda: StopIteration(5),
    "StopAsyncIteration": StopAsyncIteration,
    "MemoryError": MemoryError,
    "Mute": Mute,
    "Odd": Odd,
    "group": group,
    "circle": circle,
    "halves": halves,
    "large": large,
    "TimeoutError": TimeoutError,
}
NAMES = [*ERRORS, "recursion", "exit"]


def throw(how: str) -> None:
    """Raise it; nothing where ``how`` is empty."""
    if how == "recursion":
        throw(how)
    if how == "exit":
        sys.exit(1)
    if how:
        raise ERRORS[how]()


class Trap(State):
    """An argument that raises when it is made."""

    how: str = ""

    def __post_init__(self) -> None:
        throw(self.how)


class Pit(State):
    n: int = 0
    rung: list[str] = field(default_factory=list)


class Rogue(Agent[Pit]):
    @handler
    async def add(self, by: int = 1) -> int:
        self.state.n += by
        return self.state.n

    @handler
    async def at_once(self, how: str) -> None:
        self.state.n += 100
        throw(how)

    @handler
    async def before_it_waits(self, how: str) -> None:
        self.state.n += 100
        throw(how)
        await asyncio.sleep(0)

    @handler
    async def after_it_waited(self, how: str) -> None:
        self.state.n += 100
        await asyncio.sleep(0.001)
        throw(how)

    @handler
    async def in_a_group(self, how: str) -> None:
        self.state.n += 100

        async def fail() -> None:
            # asyncio ends the loop for these
            if how in ("SystemExit", "KeyboardInterrupt", "exit"):
                raise Odd
            throw(how)

        await asyncio.gather(fail(), asyncio.sleep(0.001))
        raise Odd

    @handler(runs_in="thread")
    async def in_a_thread(self, how: str) -> None:
        self.state.n += 100
        throw(how)

    @handler
    async def take(self, trap: Trap) -> None:
        self.state.n += 100

    @handler
    async def give(self, how: str) -> Any:
        self.state.n += 100
        return Treacherous(how)

    @handler
    async def ring(self, how: str) -> None:
        self.state.rung.append(how)
        throw(how)

    @handler
    async def remind(self, names: list[str]) -> None:
        for name in names:
            self.set_timer(name, 0.0, Rogue.ring, name)
        self.set_timer("fine", 0.0, Rogue.ring, "")

    @reader
    async def value(self) -> int:
        return self.state.n

    @reader
    async def rings(self) -> list[str]:
        return self.state.rung

    @reader
    async def read_at_once(self, how: str) -> None:
        throw(how)

    @reader
    async def read_and_wait(self, how: str) -> None:
        await asyncio.sleep(0)
        throw(how)


class Treacherous:
    """Raises where somebody looks at it, as a property of a value may when that is encoded."""

    def __init__(self, how: str) -> None:
        self._how = how

    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        throw(self._how)
        return {}

    @property
    def __class__(self) -> Any:
        throw(self._how)
        return Treacherous

    __slots__ = ("_how",)


class Kept(State):
    n: int = 0
    trap: str = ""

    def __post_init__(self) -> None:
        throw(Broken.how if self.n else "")


class Broken(Agent[Kept]):
    """What its record holds cannot be loaded while ``how`` names an error."""

    how: ClassVar = ""
    how_init: ClassVar = ""

    def __init__(self) -> None:
        throw(Broken.how_init)

    @handler
    async def add(self, by: int) -> int:
        self.state.n += by
        return self.state.n

    @reader
    async def value(self) -> int:
        return self.state.n
