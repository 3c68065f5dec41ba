"""What happened in the cluster, in one order: records in the registry's cell that anybody can read,
and follow.

Several nodes see the same thing; each event has a key, and of all that would write it the first one
does. An event says what its writer saw, when it saw it. Writing one never holds anything up, and
what cannot be written is given up.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, Final

import msgspec

from holdfast import chance, codec, ids, limits, loops
from holdfast.clock import Clock
from holdfast.core import backoff
from holdfast.engines.base import Engine, Expect, Record, Stored
from holdfast.errors import Closed, Conflict, DataLoss, HoldfastError, NoQuorum, Unknown
from holdfast.records import subjects

_WAITING_MAX: Final = 1000
_TRIM_SECONDS: Final = 60.0


class Event(msgspec.Struct, frozen=True, array_like=True):
    """Something that happened. ``at``: s since 1970 on the writer's clock; ``by``: the node that
    wrote it."""

    what: str
    who: str
    at: float
    by: str
    facts: dict[str, Any] = {}
    position: int = 0
    """Its place in the order of all events."""


def unheard(_what: str, _who: str, _key: str = "", **_facts: Any) -> None:
    """What `Events.say` is for a node that writes no events."""


class Events:
    """This node's way to write events, and to read them."""

    def __init__(self, engine: Engine, cell: str, clock: Clock, by: str) -> None:
        self._engine = engine
        self._cell = cell
        self._filter = subjects.all_of(cell, subjects.EVENT)
        self._clock = clock
        self._by = by
        self._waiting: deque[tuple[str, Event]] = deque(maxlen=_WAITING_MAX)
        self._wake = asyncio.Event()
        self._random = chance.random()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, trims: Callable[[], bool]) -> None:
        """Begin to write what is said. ``trims``: whether this node is now the one that forgets old
        events."""
        self._tasks = [
            loops.start(self._write(), "the writing of events"),
            loops.start(self._keep_few(trims), "trimming"),
        ]

    async def close(self) -> None:
        """Write what waits, for a moment, and stop."""
        end = asyncio.get_running_loop().time() + 1.0
        while (
            self._waiting and self._engine.connected() and asyncio.get_running_loop().time() < end
        ):
            await asyncio.sleep(0.01)
        await loops.stop(*self._tasks)

    def say(self, what: str, who: str, key: str = "", **facts: Any) -> None:
        """Have an event written, without waiting. ``key``: what makes it the same one, when others
        see it too."""
        event = Event(what, who, self._clock.now(), self._by, facts)
        self._waiting.append((subjects.event(self._cell, what, key or ids.new_id("e")), event))
        self._wake.set()

    async def _write(self) -> None:
        attempt = 0
        while True:
            if not self._waiting:
                self._wake.clear()
                await self._wake.wait()
            subject, event = self._waiting[0]
            payload = codec.seal(codec.encode_raw(event))
            try:
                await self._engine.log.append(
                    self._cell, [Record(subject, payload, Expect(subject, 0))]
                )
            except (NoQuorum, Unknown):
                attempt += 1
                await asyncio.sleep(backoff.delay_seconds(attempt, self._random))
                continue
            except Conflict:
                pass  # somebody else said it
            except Closed:
                return
            except HoldfastError:
                pass
            attempt = 0
            if self._waiting and self._waiting[0][1] is event:
                self._waiting.popleft()

    async def read(self, *, after: int = 0, follow: bool = False) -> AsyncIterator[Event]:
        """The events behind a position, oldest first; with ``follow`` also those to come, for
        ever."""
        tail = self._engine.log.tail(self._cell, [self._filter], after + 1)
        try:
            async for chunk in tail:
                for stored in chunk.records:
                    if (event := _decode(stored)) is not None:
                        yield event
                if chunk.caught_up and not follow:
                    return
        finally:
            await tail.aclose()  # type: ignore[attr-defined]  # tails are async generators

    async def _keep_few(self, trims: Callable[[], bool]) -> None:
        while True:
            await asyncio.sleep(_TRIM_SECONDS)
            with suppress(NoQuorum, Unknown, Closed):
                if trims():
                    await self.trim()

    async def trim(self) -> None:
        """Forget all but the newest. Raises `NoQuorum`, `Unknown`."""
        kept: deque[int] = deque(maxlen=limits.EVENTS_MAX)
        count = 0
        async for event in self.read():
            kept.append(event.position)
            count += 1
        if count > limits.EVENTS_MAX:
            await self._engine.log.purge(self._cell, self._filter, kept[0])


def _decode(stored: Stored) -> Event | None:
    try:
        event: Event = codec.decoder(Event).decode(codec.unseal(stored.payload, stored.subject))
    except (DataLoss, *codec.ERRORS):
        return None
    return msgspec.structs.replace(event, position=stored.sequence)
