"""Child processes: they do not outlive who started them, share processors, and may be told to wake less often."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Final

PROCESSORS: Final = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
"""How many this process may run on."""


def share(processes: int) -> int:
    """The processors of each, where so many are to share them: two at least, so that work which takes long stops no other."""
    return max(2, PROCESSORS // processes)


_PR_SET_PDEATHSIG = 1
_PR_SET_TIMERSLACK = 29


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when ``parent``, which started it, ends (Linux; elsewhere this does nothing)."""
    if not sys.platform.startswith("linux"):
        return
    _prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:  # it ended before the kernel was told
        os._exit(1)


def wake_late(seconds: float) -> None:
    """Let the kernel wake this process, and what it executes, so much later than asked, together with others (Linux).

    What it waits for from others is not late: only its own timers are.
    """
    if sys.platform.startswith("linux"):
        _prctl(_PR_SET_TIMERSLACK, int(seconds * 1e9))


def _prctl(what: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(what, value, 0, 0, 0)
