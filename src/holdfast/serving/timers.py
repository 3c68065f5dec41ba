"""When which timer is due: one heap per node, and one wake-up at a time.

A heap entry is only a hint. Whether the timer is still set, and with this generation, is decided by
the agent's own record when the entry fires; so nothing is ever removed from the heap, and a timer
cancelled at its last moment is safe.
"""

from __future__ import annotations

import asyncio
import heapq
from typing import TYPE_CHECKING

from holdfast.clock import Clock
from holdfast.records.messages import Timer

if TYPE_CHECKING:
    from holdfast.serving.shards.shard import Shard

_LOOK_SECONDS_MAX = 1.0
"""Look again at least so often: the wall clock may jump."""


class Timers:
    """The timers of all shards that a node owns."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._heap: list[tuple[float, int, Shard, str, Timer]] = []
        self._count = 0
        self._handle: asyncio.TimerHandle | None = None
        self._handle_due = 0.0

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, due: float, shard: Shard, token: str, timer: Timer) -> None:
        """Have ``shard.fire(token, timer)`` called when the clock shows ``due`` (s since 1970)."""
        self._count += 1
        heapq.heappush(self._heap, (due, self._count, shard, token, timer))
        self._schedule()

    def _schedule(self) -> None:
        if not self._heap:
            return
        due = self._heap[0][0]
        if self._handle is not None:
            if self._handle_due <= due:
                return
            self._handle.cancel()
        self._handle_due = due
        seconds = min(max(due - self._clock.now(), 0.0), _LOOK_SECONDS_MAX)
        self._handle = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        self._handle = None
        now = self._clock.now()
        try:
            while self._heap and self._heap[0][0] <= now:
                _, _, shard, token, timer = heapq.heappop(self._heap)
                shard.fire(token, timer)
        finally:  # whatever one did, the others are due as well
            self._schedule()

    def close(self) -> None:
        """Fire nothing more."""
        self._heap.clear()
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
