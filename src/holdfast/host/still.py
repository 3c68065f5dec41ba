"""Whether a node of this host stands still, by what it says and by its silence, and when it is to
be ended for that.

A handler that never returns, or code in C that keeps the interpreter, takes the whole loop of its
node with it, and a node that was stopped from outside does nothing at all. Others take its shards
over, but nothing else would ever end it. A thread of the node says how long its loop has stood
still; where that thread is silent too, the host counts the time in which it could have heard. A
node that merely got no processor is left alone for longer, and one that a debugger holds for ever.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from holdfast import limits
from holdfast.agents import places
from holdfast.cluster.members.standstills import FUNCTIONS_MAX, TEXT_MAX, Standstill
from holdfast.host import processes
from holdfast.node.process import STACKS_SIGNAL

_LOOK_SECONDS: Final = 0.25
_STILL_MAX: Final = 16
_REPORT_SECONDS: Final = 3.0
"""A node that stands still for so long is reported to whoever runs the host."""

_TELL_SECONDS: Final = 1.0
_HELD: Final = "t"
"""The state of a process that a debugger holds, as the system shows it."""

_STOPPED: Final = ("T", _HELD)
_TEXT_MAX: Final = 1000
_STACK_BYTES_MAX: Final = 64 * 1024
_FRAME: Final = re.compile(r'^  File "(.*)", line (\d+) in (.*)$', re.MULTILINE)


class Child(Protocol):
    """What is to be known of a host's node."""

    name: str
    process: asyncio.subprocess.Process | None
    watch: Watch
    error: str


class Watchman:
    """Looks after all nodes of a host, and ends those that stand still for too long. ``say``: tells
    the others at once."""

    def __init__(
        self,
        children: Sequence[Child],
        report: Callable[[str, dict[str, Any]], None],
        say: Callable[[], None],
    ) -> None:
        self._children = children
        self._report = report
        self._say = say
        self._over: deque[Standstill] = deque(maxlen=_STILL_MAX)
        """Of those that were ended for it."""

    async def run(self) -> None:
        """Look, for ever."""
        loop = asyncio.get_running_loop()
        looked_at = loop.time()
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            # A host that was frozen itself could not hear its nodes.
            passed, looked_at = min(loop.time() - looked_at, 2 * _LOOK_SECONDS), loop.time()
            for child in self._children:
                if child.process is not None and child.process.returncode is None:
                    self._look(child, child.process, passed)

    def _look(self, child: Child, process: asyncio.subprocess.Process, passed: float) -> None:
        watch = child.watch
        watch.look(process.pid, passed)
        still = watch.standstill(process.pid)
        if watch.is_news(still):
            self._say()  # whoever takes its shards over is to know what not to try at once
        if still is None or (still.seconds < _REPORT_SECONDS and not watch.is_to_end()):
            return
        if not watch.told:
            watch.told = True
            facts = {
                "node": child.name,
                "text": still.text,
                "agent": still.token,
                "stack": watch.stack,
            }
            self._report("node-still", facts)
            self._say()
        if watch.is_to_end():
            child.error = f"{still.text}: its host ended it"
            if not watch.stopped():
                self._over.append(msgspec.structs.replace(still, ended=True))
                watch.over = True
            process.kill()

    def standstills(self) -> list[Standstill]:
        """Those that are under way, and the last that were ended; not of nodes that were stopped
        from outside."""
        pids = [
            (child.watch, child.process.pid)
            for child in self._children
            if child.process is not None
        ]
        found = [watch.standstill(pid) for watch, pid in pids if not watch.stopped()]
        return [*self._over, *(one for one in found if one is not None)]

    def stopped(self) -> list[str]:
        """Incarnations that are stopped from outside now."""
        return [child.watch.incarnation for child in self._children if child.watch.stopped()]


class Watch:
    """One process of a node."""

    def __init__(self, incarnation: str) -> None:
        self.incarnation = incarnation
        self.told = False
        """Whether somebody was told that it stands still."""
        self.stack = ""
        self._known: tuple[str, ...] = ()
        self.over = False
        """Whether it was ended for it."""
        self._seconds = self._gone = self._quiet = 0.0
        self._named: dict[str, str] = {}
        self._functions: tuple[str, ...] = ()
        self._stacks = -1
        self._written = 0
        self._asked = False
        self._watched = False
        self._state = "?"
        self._ticks = -1
        self._idle = 0.0
        """Of the time in which nothing was heard: for so long it used no processor at all."""

    def heard(self, what: str, event: dict[str, Any]) -> None:
        """The node said something."""
        self._quiet = 0.0
        self._asked = False
        if what == "pulse":
            self._seconds, self._gone = _number(event.get("seconds")), _number(event.get("gone"))
            if self._gone < _TELL_SECONDS / 2:
                self._named, self.told, self.stack = {}, False, ""
        elif what == "standing":
            self._seconds = _number(event.get("seconds"))
            self._named = {
                name: str(event.get(name, ""))[:_TEXT_MAX] for name in ("token", "key", "where")
            }
            functions = event.get("functions", ())
            self._functions = _cut(functions) if isinstance(functions, list) else ()
        elif what == "ready":
            self._watched = True
            stacks = event.get("stacks", -1)
            self._stacks = stacks if isinstance(stacks, int) else -1
        elif what == "ending":
            self._watched = False

    def look(self, pid: int, passed: float) -> None:
        """So much time passed in which the host could have heard of it."""
        if not self._watched:
            return
        self._quiet += passed
        self._see(pid, passed)
        if (
            self._quiet >= limits.QUIET_SECONDS
            and not self._asked
            and self._stacks >= 0
            and STACKS_SIGNAL
        ):
            self._asked, self.stack = True, ""
            with suppress(OSError):
                # of an earlier silence: nothing of this one
                self._written = self._file(pid).stat().st_size
                os.kill(pid, STACKS_SIGNAL)

    def _see(self, pid: int, passed: float) -> None:
        if self._quiet < limits.QUIET_SECONDS:
            self._state, self._ticks, self._idle = "?", -1, 0.0
            return
        found = processes.progress_of(pid)
        was_stopped = self.stopped()
        self._state = "?" if found is None else found.state
        # it goes on: what it does from here on is another silence
        if was_stopped and not self.stopped():
            self._quiet, self._asked, self.told, self.stack = 0.0, False, False, ""
        if found is not None:
            self._idle += passed if found.ticks == self._ticks else 0.0
            self._ticks = found.ticks

    def standstill(self, pid: int) -> Standstill | None:
        """How it stands still now, if it does."""
        if self.over:
            return None
        if self._quiet >= limits.QUIET_SECONDS:
            # again, because it may have been half written
            self.stack = self._read_stacks(pid) or self.stack
            functions, where = _running(self.stack)
            seconds = self._quiet + self._gone
            return Standstill(self.incarnation, seconds, where=where, functions=functions)
        if self._named:
            token, key, where = (self._named[name] for name in ("token", "key", "where"))
            return Standstill(self.incarnation, self._seconds, token, key, where, self._functions)
        return None

    def is_news(self, still: Standstill | None) -> bool:
        """Whether it stands still in something else than when this was asked last."""
        before = self._known
        self._known = (
            () if still is None else (still.token, still.key) if still.token else still.functions
        )
        return bool(self._known) and self._known != before

    def stopped(self) -> bool:
        """Whether it was stopped from outside, so that nothing that it has in hand is the cause."""
        return self._state in _STOPPED

    def is_to_end(self) -> bool:
        """Whether it stands still for too long."""
        if self._quiet < limits.QUIET_SECONDS:
            starved = self._gone >= limits.STARVED_SECONDS and self._seconds >= _TELL_SECONDS
            return self._seconds >= limits.STANDSTILL_SECONDS or starved
        if self.stopped():
            return self._state != _HELD and self._quiet >= limits.FROZEN_SECONDS
        # It may be swapped out, or wait for a disk: it could not say anything.
        return (
            self._quiet - self._idle >= limits.STANDSTILL_SECONDS
            or self._quiet >= limits.STARVED_SECONDS
        )

    def _file(self, pid: int) -> Path:
        """Where the node writes its stacks, one time behind the other."""
        return Path(f"/proc/{pid}/fd/{self._stacks}")

    def _read_stacks(self, pid: int) -> str:
        if self._stacks < 0:
            return ""
        try:
            with self._file(pid).open("rb") as file:
                file.seek(self._written)
                return file.read(_STACK_BYTES_MAX).decode(errors="replace")
        except OSError:
            return ""


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and 0 <= value < 1e9 else 0.0


def _running(stack: str) -> tuple[tuple[str, ...], str]:
    """The functions of a user's that the current thread of these stacks is in, and in which
    line."""
    current = stack.rpartition("Current thread")[2].partition("\n\n")[0]
    frames = _FRAME.findall(current)
    own = [frame for frame in frames if places.is_users(frame[0])]
    where = f"{Path(own[0][0]).name}:{own[0][1]} ({own[0][2]})" if own else ""
    return _cut([name for _, _, name in own]), where[:TEXT_MAX]


def _cut(names: list[Any]) -> tuple[str, ...]:
    return tuple(str(name)[:TEXT_MAX] for name in names[:FUNCTIONS_MAX])
