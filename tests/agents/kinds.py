"""Agents that the tests use, and a log that can be made to fail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import Any

from msgspec import field

from holdfast import Agent, Node, State, handler, reader
from holdfast.clock import SYSTEM_CLOCK, Clock, SystemClock
from holdfast.engines.base import Record

Append = Callable[[str, Sequence[Record]], Awaitable[range]]


class Count(State):
    n: int = 0
    log: list[str] = field(default_factory=list)


class Later(SystemClock):
    """A clock that is set to a later time by a test. ``seconds``: how much later."""

    seconds = 0.0

    def now(self) -> float:  # type: ignore[override]
        return time.time() + self.seconds


_may_end: dict[asyncio.AbstractEventLoop, asyncio.Event] = {}


def may_end() -> asyncio.Event:
    """Whether `Counter.wait` may end, on this loop."""
    return _may_end.setdefault(asyncio.get_running_loop(), asyncio.Event())


class Counter(Agent[Count], capabilities={"count"}):
    """Adds, and can go wrong in every way."""

    @handler
    async def add(self, by: int = 1) -> int:
        self.state.n += by
        return self.state.n

    @handler
    async def look(self) -> int:
        return self.state.n

    @handler
    async def note(self, text: str) -> list[str]:
        self.state.log.append(text)
        return self.state.log

    @handler
    async def hold(self, text: str) -> None:
        await asyncio.sleep(0.0005)
        self.state.log.append(text)

    @handler
    async def break_after(self, by: int) -> int:
        self.state.n += by
        self.state.log.append("broken")
        raise ValueError(f"broken after {by}")

    @handler
    async def slow(self, seconds: float, by: int = 1) -> int:
        self.state.n += by
        await asyncio.sleep(seconds)
        return self.state.n

    @handler
    async def wait(self, by: int = 1) -> int:
        """Add, and end when the test calls `let_end`."""
        self.state.n += by
        await may_end().wait()
        return self.state.n

    @handler
    async def spoil(self, value: Any) -> None:
        self.state.n = value

    @handler
    async def long_reply(self, size: int) -> str:
        self.state.n += 1
        return "x" * size

    @reader
    async def value(self) -> int:
        return self.state.n

    @reader
    async def texts(self) -> list[str]:
        return self.state.log

    @reader
    async def sneak(self) -> None:
        self.state.n = 99


@dataclass
class Boxes:
    received: list[tuple[str, int]] = dataclass_field(default_factory=list)


class Receiver(Agent[Boxes]):
    """Keeps what it got, in order."""

    @handler
    async def take(self, sender: str, number: int) -> int:
        self.state.received.append((sender, number))
        return len(self.state.received)

    @reader
    async def all(self) -> list[tuple[str, int]]:
        return self.state.received


@asynccontextmanager
async def serving(
    path: Path | str, *kinds: type[Agent[Any]], clock: Clock = SYSTEM_CLOCK
) -> AsyncIterator[Node]:
    """A node on an embedded log, ready."""
    async with Node.join(f"local:{path}", serve=kinds or (Counter, Receiver), clock=clock) as node:
        await node.ready()
        yield node


@asynccontextmanager
async def on(url: list[str], *kinds: type[Agent[Any]]) -> AsyncIterator[Node]:
    """A node on either engine, ready. On servers it founds the cluster if there is none yet."""
    founds: dict[str, Any] = {} if url[0].startswith("local:") else {"found": True, "replicas": 3}
    async with Node.join(url, serve=kinds, **founds) as node:
        await node.ready()
        yield node


class Gate:
    """Holds back every append of a node until opened."""

    def __init__(self, node: Node) -> None:
        self._log = node.engine.log
        self._real: Append = node.engine.log.append
        self.open = asyncio.Event()
        self.waiting = 0
        self._log.append = self._append  # type: ignore[method-assign,assignment]

    async def _append(self, cell: str, records: Sequence[Record]) -> range:
        self.waiting += 1
        await self.open.wait()
        return await self._real(cell, records)


class Fault:
    """Does something else instead of the next append that holds a record of one of these
    subjects."""

    def __init__(
        self, node: Node, part: str, do: Callable[[Append, str, Sequence[Record]], Awaitable[range]]
    ) -> None:
        self._real: Append = node.engine.log.append
        self._part = part
        self._do = do
        self.times = 0
        node.engine.log.append = self._append  # type: ignore[method-assign,assignment]

    async def _append(self, cell: str, records: Sequence[Record]) -> range:
        if any(self._part in record.subject for record in records) and not any(
            ".epoch" in r.subject for r in records
        ):
            self.times += 1
            return await self._do(self._real, cell, records)
        return await self._real(cell, records)


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 240.0) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.01)
