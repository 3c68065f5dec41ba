"""How a program of ours hears signals: it ends in order at the first, at once at a second Ctrl-C,
and reloads at SIGHUP.

The handlers are Python's own and not the event loop's: they run between two instructions even where
a handler of a user's keeps the loop. The kernel ignores signals to the first process of a container
that has no handlers, so a program installs them before it does anything else; and whatever that
container's other processes leave behind is the first one's to reap.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, Self

_TWICE_SECONDS: Final = 0.5
"""A second Ctrl-C that comes sooner is the same one: a terminal and a wrapper both pass it on."""

_REAP_SECONDS: Final = 2.0
_INTERRUPTED: Final = 128 + signal.SIGINT


class Signals:
    """Use it with ``with``, inside a running loop. ``stop`` is set at the first signal that ends
    the program.

    ``on_reload``: called at SIGHUP; without it SIGHUP ends the program in order. `nohup` has a
    program ignore SIGHUP, so that nothing ends with its terminal: then it is not ended by SIGHUP,
    but reloads. ``at_once``: called before a second Ctrl-C ends the process, to end its children.
    """

    def __init__(
        self, on_reload: Callable[[], None] | None = None, at_once: Callable[[], None] | None = None
    ) -> None:
        self.stop = asyncio.Event()
        self.number = 0
        """The signal that ended it."""
        self._on_reload = on_reload
        self._at_once = at_once
        self._loop = asyncio.get_running_loop()
        self._interrupted_at = 0.0
        self._before: dict[int, Any] = {}
        self._reaping: asyncio.Task[None] | None = None
        self._ends_with_terminal = _has_terminal() and not _ignores_hangup()

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number == signal.SIGHUP and self._on_reload is None and _ignores_hangup():
                continue
            self._before[number] = signal.signal(number, self._heard)
        if os.getpid() == 1:
            self._reaping = self._loop.create_task(reap_orphans())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._reaping is not None:
            self._reaping.cancel()

    def _heard(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._interrupted_at:
            if time.monotonic() - self._interrupted_at > _TWICE_SECONDS:
                self._end_at_once()
            return
        if number == signal.SIGINT:
            self._interrupted_at = time.monotonic()
        self._loop.call_soon_threadsafe(self._act, number)

    def _act(self, number: int) -> None:
        # The kernel sends SIGHUP as well when a terminal is closed: then nobody is there any more
        # who could stop this.
        if (
            number == signal.SIGHUP
            and self._on_reload is not None
            and (_has_terminal() or not self._ends_with_terminal)
        ):
            self._on_reload()
            return
        self.number = self.number or number
        self.stop.set()

    def _end_at_once(self) -> None:
        with suppress(OSError):
            os.write(
                2, b"\nended at once, at a second Ctrl-C; what was not acknowledged may be lost\n"
            )
        if self._at_once is not None:
            with suppress(Exception):
                self._at_once()
        os._exit(_INTERRUPTED)


def interrupted() -> int:
    """The exit code of a command that a Ctrl-C ends. One that comes while it does ends it at
    once."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return _INTERRUPTED


def kill(pids: list[int]) -> None:
    """End processes at once."""
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def _ignores_hangup() -> bool:
    return signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def _has_terminal() -> bool:
    """Whether this process belongs to a terminal that is there."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


async def reap_orphans() -> None:
    """For the first process of a container: take the ends of processes whose parents ended before
    them, for ever.

    The loop takes those of its own children at once. One that is still there after two looks is
    nobody's.
    """
    seen: set[int] = set()
    while True:
        await asyncio.sleep(_REAP_SECONDS)
        ended = _ended_children(os.getpid())
        _reap(ended & seen)
        seen = ended


def _reap(pids: set[int]) -> None:
    for pid in pids:
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def _ended_children(parent: int) -> set[int]:
    found = set()
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with suppress(OSError, IndexError, ValueError):
                state, its_parent = (
                    (path / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
                )
                if state == "Z" and int(its_parent) == parent:
                    found.add(int(path.name))
    return found
