"""How a node comes to its end: it is closed, once, or a part of it ended that nothing else can do without.

A node with a part missing would limp: its calls would wait for ever, and others would take it for alive. So it ends as a
whole, in order where it can, says so in the log, and tells its callers why.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import Context
from typing import Any

from holdfast import limits, loops
from holdfast.agents.runtime import Runtime

End = Callable[[], Coroutine[Any, Any, None]]


class Ending:
    """See the module. ``end`` closes the node in order, ``cut`` its engine alone; ``name`` is the node's."""

    def __init__(self, name: str, end: End, cut: End) -> None:
        self._name = name
        self._end = end
        self._cut = cut
        self._closed = False
        self._runtime: Runtime | None = None
        self._failing: asyncio.Task[None] | None = None

    async def begin(self, runtime: Runtime, start: Coroutine[Any, Any, None]) -> None:
        """Start the node's parts, and hear of their end from now on."""
        self._runtime = runtime
        runtime.on_failed = self._failed
        hears = loops.hears.set(self._failed)
        try:
            await start
        finally:
            loops.hears.reset(hears)

    async def close(self) -> None:
        """Close the node; again, wait for a node that failed to have ended."""
        if self._failing is not None:
            await asyncio.wait({self._failing})
        elif not self._closed:
            self._closed = True
            await self._end()

    def _failed(self, what: str, error: BaseException | None) -> None:
        if self._closed:
            return
        self._closed = True
        loops.report(f"the node {self._name} ends, as a part of it came to its end: {what}", error)
        if self._runtime is not None:
            self._runtime.router.fail(f"this node has failed ({what}): see its log, and join again")
        self._failing = asyncio.get_running_loop().create_task(self._end_in_time(), context=Context())

    async def _end_in_time(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(limits.DRAIN_SECONDS):
                await self._end()
        await self._cut()
