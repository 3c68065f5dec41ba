"""A node as its host has it: one process after the other, how they ended, and whether it serves at
all.

A node whose processes end one after the other is ready for a moment each time, and one that starts
is not ready for a while. So a host calls a node away only where it has not served for longer than a
start takes; and one that ended more than once serves again once it has been ready for a while.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from holdfast.host.rpc.facts import NodeAway
from holdfast.host.server.keeper import STABLE_SECONDS
from holdfast.host.still import Watch

AWAY_SECONDS: Final = 2 * STABLE_SECONDS
"""A node may take so long to start, or to be back after an end, before its host calls it away."""

_ENDS_MAX: Final = 64
_RECENT_SECONDS: Final = 600.0
_WHY_CHARACTERS_MAX: Final = 300


class NodeChild:
    """One of its nodes: a process, and the next one after its end."""

    def __init__(self, name: str, now: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self._now = now
        self.incarnation = ""
        self.process: asyncio.subprocess.Process | None = None
        """Until its end is known: what it started may live longer."""
        self.ready = False
        self.error = ""
        self.starts = 0
        self.last_end = ""
        self.watch = Watch("")
        """Whether it stands still."""
        self._ends: deque[float] = deque(maxlen=_ENDS_MAX)
        self._ready_at = 0.0
        self._away_at = 0.0
        """When it began to start, or when the last process ended that had served for a while."""
        self._ends_away = 0
        """How many of its processes ended since, that one included."""

    def begins(self, incarnation: str) -> None:
        """A process of it is about to be started."""
        self.incarnation, self.ready, self.error, self.watch = (
            incarnation,
            False,
            "",
            Watch(incarnation),
        )
        if not self.starts:
            self._away_at = self._now()
        self.starts += 1

    def serves(self) -> None:
        """Its process is ready."""
        self.ready, self._ready_at = True, self._now()

    def ended(self, code: int) -> None:
        """Its process ended."""
        self.last_end = f"code {code}" + (f": {self.error}" if self.error else "")
        now = self._now()
        if self._is_stable(now):
            self._away_at, self._ends_away = now, 0
        self.ready = False
        self._ends.append(now)
        self._ends_away += 1

    def ends_recent(self) -> int:
        """How many of its processes ended in the last ten minutes."""
        return sum(at > self._now() - _RECENT_SECONDS for at in self._ends)

    def _is_stable(self, now: float) -> bool:
        return self.ready and now - self._ready_at > STABLE_SECONDS

    def away(self) -> NodeAway | None:
        """What is said of it where it does not serve, or does so for moments only; None where it
        serves or just starts."""
        now = self._now()
        seconds = now - self._away_at
        up = self.ready if self._ends_away < 2 else self._is_stable(now)
        if up or not self.starts or seconds < AWAY_SECONDS:
            return None
        why = self.last_end[:_WHY_CHARACTERS_MAX] if self._ends_away else ""
        return NodeAway(self.name, seconds, self._ends_away, why)
