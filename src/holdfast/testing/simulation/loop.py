"""An event loop on a virtual clock: one per simulated process, all of them turned by one `World`.

Real asyncio tasks, futures and timeouts run on it. It never waits: the world decides which process
runs next, and when all have nothing to do, the world's clock jumps to the next event. A frozen
process is a loop that is not turned; a killed one is never turned again. Nothing here touches the
operating system, so a run is a function of its seed.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class SimLoop(asyncio.AbstractEventLoop):
    """See the module. ``name``: of the simulated process. ``read``: its clock, in seconds.

    ``wake`` is called when it has something to do: at once (None), or at a time on its own clock.
    """

    def __init__(
        self, name: str, read: Callable[[], float], wake: Callable[[SimLoop, float | None], None]
    ) -> None:
        self.name = name
        self.frozen = False
        self.dead = False
        self.queued = False
        """Whether the world has it among the loops that are to be turned."""
        self.errors: list[dict[str, Any]] = []
        """What its exception handler was called with."""
        self._wake = wake
        self._alarm = float("inf")
        """When the world was last asked to wake it."""
        self.time = read  # type: ignore[method-assign]
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._count = 0
        self._handler: Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object] | None = None

    # What asyncio asks of a loop ------------------------------------------------------------------

    def time(self) -> float:
        raise NotImplementedError  # its clock stands here, see above

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        if not self.queued:
            self._wake(self, None)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., Any],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., Any],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._count += 1
        heapq.heappush(self._timers, (when, self._count, handle))
        if when < self._alarm:
            self._alarm = when
            self._wake(self, when)
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass  # a cancelled one is skipped when its time comes

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self,
        coro: Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[T]:
        return asyncio.Task(coro, loop=self, name=name, context=context)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return not self.dead

    def is_closed(self) -> bool:
        return self.dead

    def set_exception_handler(self, handler: Any) -> None:
        self._handler = handler

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.errors.append(context)
        if self._handler is not None:
            self._handler(self, context)

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        pass

    # What the world asks --------------------------------------------------------------------------

    def turns(self) -> bool:
        """Whether it takes part: neither frozen nor dead."""
        return not (self.frozen or self.dead)

    def freeze(self) -> None:
        """SIGSTOP."""
        self.frozen = True

    def thaw(self) -> None:
        """SIGCONT."""
        self.frozen = False
        self.rouse()

    def ring(self) -> None:
        """Its alarm goes."""
        self._alarm = float("inf")
        self.rouse()

    def rouse(self) -> None:
        """Take up what is due, or set the alarm for what is due next."""
        if self.queued:
            return
        if self._ready:
            self._wake(self, None)
            return
        while self._timers and self._timers[0][2].cancelled():
            heapq.heappop(self._timers)
        if self._timers:
            when = self._timers[0][0]
            if when <= self.time() + 1e-9:
                self._wake(self, None)
            elif when < self._alarm:
                self._alarm = when
                self._wake(self, when)

    def turn(self) -> None:
        """Run what is due now, as one turn of an event loop does."""
        now = self.time() + 1e-9
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            if not timer.cancelled():
                self._ready.append(timer)
        before = events._get_running_loop()
        events._set_running_loop(self)
        try:
            for _ in range(len(self._ready)):
                handle = self._ready.popleft()
                if not handle.cancelled():
                    handle._run()
                if not self.turns():
                    break  # it was frozen or killed by what it did
        finally:
            events._set_running_loop(before)
        self.rouse()

    def kill(self) -> None:
        """End the process: nothing of it runs any more, not even what cleans up (so what it holds
        is kept)."""
        self.dead = True
