"""Child processes: they do not outlive who started them, share processors, and may be told to wake
less often."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Final

_ROOT: Final = Path(__file__).resolve().parents[1]

PROCESSORS: Final = (
    len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
)
"""How many this process may run on."""


def share(processes: int) -> int:
    """The processors of each, where so many are to share them: two at least, so that work which
    takes long stops no other."""
    return max(2, PROCESSORS // processes)


def python(module: str) -> list[str]:
    """The command line that runs a module of ours. Files of the working directory that are called
    like modules of the standard library, or like one that we use, do not get in its way."""
    safe = [] if Path.cwd() == _ROOT else ["-P"]  # else it would not find us
    return [sys.executable, *safe, "-m", module]


_PR_SET_PDEATHSIG = 1
_PR_SET_TIMERSLACK = 29


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when ``parent``, which started it, ends (Linux; elsewhere
    this does nothing)."""
    if not sys.platform.startswith("linux"):
        return
    _prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:  # it ended before the kernel was told
        os._exit(1)


def wake_late(seconds: float) -> None:
    """Let the kernel wake this process, and what it executes, so much later than asked, together
    with others (Linux).

    What it waits for from others is not late: only its own timers are.
    """
    if sys.platform.startswith("linux"):
        _prctl(_PR_SET_TIMERSLACK, int(seconds * 1e9))


def _prctl(what: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(what, value, 0, 0, 0)
