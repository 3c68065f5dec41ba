"""Time. Everything above the floors takes its time from a `Clock`, so that tests and simulations
can move it."""

from __future__ import annotations

import time
from functools import partial
from typing import Protocol


class Clock(Protocol):
    """Two clocks: one to compare with other processes, one to measure with."""

    def now(self) -> float:
        """Seconds since 1970, as other hosts understand it; it may jump."""
        ...

    def monotonic(self) -> float:
        """Seconds on a clock that only grows, and that counts the time that the machine was
        suspended."""
        ...


_BOOTTIME: int | None = getattr(time, "CLOCK_BOOTTIME", None)


class SystemClock:
    """The machine's own clocks."""

    now = staticmethod(time.time)
    monotonic = staticmethod(
        time.monotonic if _BOOTTIME is None else partial(time.clock_gettime, _BOOTTIME)
    )


SYSTEM_CLOCK = SystemClock()
