"""How a node comes to its end: it is closed, once, or a part of it ended that nothing else can do
without.

A node with a part missing would limp: its calls would wait for ever, and others would take it for
alive. So it ends as a whole, in order where it can, says so in the log, and tells its callers why.
Whatever one part does when it is closed, the others are closed as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context
from typing import Any, Final, Protocol

from holdfast import limits, loops

_PART_SECONDS: Final = 0.5
"""A part of a node that failed is waited for so long, when the time for all of them is over."""


class Part(Protocol):
    """Something that a node is made of."""

    async def close(self) -> None: ...


class Ending:
    """See the module. ``parts`` names those of the node, in the order in which they are closed;
    ``cut`` closes its engine; ``refuse`` ends all calls, and says why; ``name`` is the node's."""

    def __init__(
        self,
        name: str,
        parts: Callable[[], Sequence[Part]],
        cut: Callable[[], Coroutine[Any, Any, None]],
        refuse: Callable[[str], None],
    ) -> None:
        self._name = name
        self._parts = parts
        self._cut = cut
        self._refuse = refuse
        self._closing: asyncio.Task[None] | None = None
        self._failing: asyncio.Task[None] | None = None

    async def begin(self, start: Coroutine[Any, Any, None]) -> None:
        """Start the node's parts, and hear of their end from now on."""
        hears = loops.hears.set(self.failed)
        try:
            await start
        finally:
            loops.hears.reset(hears)

    async def close(self, cut: bool = False) -> None:
        """Close the node; again, or once it has failed, wait until it has ended. ``cut``: and then
        its engine.

        Who is cancelled meanwhile waits no more: turns that run are finished all the same.
        """
        ending = self._failing or self._closing
        if ending is None:
            ending = self._closing = asyncio.get_running_loop().create_task(self._end_in_order())
        await asyncio.wait({ending})
        try:
            if self._closing is not None:
                self._closing.result()
        finally:
            if cut:
                await self._cut()

    def failed(self, what: str, error: BaseException | None) -> None:
        """End the node, as a part of it has ended that it needs."""
        if self._closing is not None or self._failing is not None:
            return
        over = loops.is_over()
        self._failing = asyncio.get_running_loop().create_task(
            self._end_in_time(over), context=Context()
        )
        self._refuse(f"this node has failed ({what}): see its log, and join again")
        if over:
            what = f"the program ended, and did not close the node {self._name}"
            asyncio.get_running_loop().call_exception_handler({"message": what})
            return
        # Last, as whoever hears of it may raise.
        loops.report(f"the node {self._name} ends, as a part of it came to its end: {what}", error)

    async def _end_in_order(self) -> None:
        for _, error in await self._end(None):
            raise error

    async def _end_in_time(self, over: bool) -> None:
        """``over``: the program has ended, its loop may end at any moment, and nobody is told what
        cannot be closed."""
        failures: list[tuple[str, Exception]] = []
        try:
            failures = await self._end(asyncio.get_running_loop().time() + limits.DRAIN_SECONDS)
        finally:
            try:
                await self._cut()
            except Exception as failed:
                failures.append(("engine", failed))
        for what, error in [] if over else failures:
            loops.report(f"the node {self._name} ends, and its {what} could not be closed", error)

    async def _end(self, until: float | None) -> list[tuple[str, Exception]]:
        """Close every part, and return what could not be closed. ``until``: from when on no part is
        waited for long."""
        loop, failures = asyncio.get_running_loop(), list[tuple[str, Exception]]()
        for part in self._parts():
            try:
                async with asyncio.timeout_at(until and max(until, loop.time() + _PART_SECONDS)):
                    await part.close()
            except Exception as error:
                failures.append((type(part).__name__, error))
        return failures
