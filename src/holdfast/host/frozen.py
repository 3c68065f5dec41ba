"""Whether a process is frozen: a nats-server, as its host sees it, or a host, as whoever runs
several of them sees it.

A frozen process is told from a slow one by the kernel: it was stopped, or it answers nobody and
used no processor time at all. A machine that is overloaded gives every process some. All of it is
counted in looks, not in time: who was frozen itself, as on a machine that was suspended, learns
nothing from a clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from holdfast import limits
from holdfast.host import processes

_LOOK_SECONDS: Final = 1.0
_STOPPED: Final = "T"


async def watch(
    what: str,
    pid_of: Callable[[], int],
    answers: Callable[[], Awaitable[bool]],
    say: Callable[[str, dict[str, Any]], None],
    end: Callable[[], Awaitable[None]],
) -> None:
    """Look for ever: say after some looks that the process is frozen, and end it after some more.

    ``pid_of``: the process that is to run at this moment, 0 for none. ``say`` hears of the events
    ``<what>-frozen`` and ``<what>-back``.
    """
    seen = FrozenWatch()
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        pid = pid_of()
        if not pid:
            seen = FrozenWatch()
            continue
        found = processes.progress_of(pid)
        stopped = found is not None and found.state == _STOPPED
        answered = not stopped and await answers()
        if pid != pid_of():
            continue
        verdict = seen.look(pid, answered, found)
        if verdict == "said":
            say(f"{what}-frozen", {f"{what}_pid": pid, "why": seen.why})
        elif verdict == "back":
            say(f"{what}-back", {f"{what}_pid": pid})
        elif verdict == "end":
            await end()


class FrozenWatch:
    """What some looks at one process tell: a decision, without a clock."""

    def __init__(self) -> None:
        self.why = ""
        self._pid = 0
        self._silent = 0
        """Looks in a row at which it answered nobody, and was stopped or had made no progress."""
        self._ticks = -1
        self._told = False

    def look(self, pid: int, answers: bool, found: processes.Progress | None) -> str:
        """Empty, or ``said``: it is to be told of; ``back``: it answers again; ``end``: it is to be
        killed."""
        stopped = found is not None and found.state == _STOPPED
        moved = found is not None and found.ticks != self._ticks and not stopped
        if pid != self._pid:
            self._pid, self._told = pid, False
            self._silent, self._ticks = 0, -1 if found is None else found.ticks
            return ""
        if answers or moved:
            self._silent, self._ticks = 0, -1 if found is None else found.ticks
            told, self._told = self._told, self._told and not answers
            return "back" if told and answers else ""
        self._silent += 1
        self.why = "it was stopped (SIGSTOP)" if stopped else "it answers nobody, and does nothing"
        if self._silent >= limits.SERVER_FROZEN_LOOKS_MAX:
            return "end"
        if self._silent >= limits.SERVER_FROZEN_LOOKS and not self._told:
            self._told = True
            return "said"
        return ""
