"""Notices when a node's loop stands still, says in which line, and remembers it for a while.

All agents of a node share one loop: a handler that computes or blocks on it holds up every other, and after some seconds
the node is taken for dead. The loop sets a mark every quarter of a second, and a thread looks whether it did. Code in C that
does not give up the interpreter stops that thread as well; it is known by the processor time that it took, and not where it
was. Where the thread is late and no such time was taken, the machine was slow, or the process was frozen: no stall. Nor is
the time for which the loop waited for a processor, which Linux tells.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import sysconfig
import threading
import time
from collections import deque
from pathlib import Path
from types import FrameType
from typing import Final

import msgspec

from holdfast import limits

_logger = logging.getLogger(__name__)
_LOOK_SECONDS: Final = 0.25
_HERE: Final = str(Path(__file__).parents[1])
_LIBRARIES: Final = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_ADVICE: Final = 'a handler that computes says runs_in="process", one that blocks runs_in="thread"'


class Stall(msgspec.Struct, frozen=True):
    """A time in which a loop stood still. ``ended_at``: on the monotonic clock; ``where``: empty if it is not known."""

    ended_at: float
    seconds: float
    where: str


class Stalls:
    """See the module."""

    def __init__(self) -> None:
        self.count = 0
        self._node = ""
        self._recent: deque[Stall] = deque(maxlen=256)
        self._due = self._cpu = self._waited = 0.0
        self._scheduler = Path()
        self._where = ""
        self._handle: asyncio.TimerHandle | None = None
        self._ended = threading.Event()

    def start(self, loop: asyncio.AbstractEventLoop, node: str) -> None:
        """Begin to watch the running loop. ``node``: its name, for the log."""
        self._node = node
        self._scheduler = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
        self._due, self._cpu = time.monotonic() + _LOOK_SECONDS, time.process_time()
        self._waited = self._waited_for_processor()
        self._handle = loop.call_later(_LOOK_SECONDS, self._mark, loop)
        arguments = (threading.get_ident(),)
        threading.Thread(target=self._watch, args=arguments, name="holdfast-stalls", daemon=True).start()

    def close(self) -> None:
        """Watch no longer."""
        self._ended.set()
        if self._handle is not None:
            self._handle.cancel()

    def _mark(self, loop: asyncio.AbstractEventLoop) -> None:
        now = time.monotonic()
        cpu, waited = time.process_time(), self._waited_for_processor()
        late = now - self._due - (waited - self._waited)
        if late > limits.STALL_SECONDS and (self._where or cpu - self._cpu > late / 2):
            self.count += 1
            self._recent.append(Stall(now, late, self._where))
            where = f" in {self._where}" if self._where else ", in C code"
            _logger.warning("the loop of node %s stood still for %.1f s%s: %s", self._node, late, where, _ADVICE)
        self._where = ""
        self._due, self._cpu, self._waited = now + _LOOK_SECONDS, cpu, waited
        self._handle = loop.call_later(_LOOK_SECONDS, self._mark, loop)

    def _waited_for_processor(self) -> float:
        """Seconds for which the loop's thread could have run and did not get to; 0 where the system does not say."""
        try:
            return int(self._scheduler.read_bytes().split()[1]) / 1e9
        except (OSError, IndexError, ValueError):
            return 0.0

    def _watch(self, thread: int) -> None:
        looked_at = time.monotonic()
        while not self._ended.wait(_LOOK_SECONDS):
            now = time.monotonic()
            late, looked_at = now - looked_at - _LOOK_SECONDS, now
            if now - self._due > limits.STALL_SECONDS and not self._where and late < _LOOK_SECONDS / 2:
                frame = sys._current_frames().get(thread)
                self._where = "" if frame is None else _line(frame)

    def text(self) -> str:
        """For people: how the loop stood still within the last minute; empty where it did not."""
        oldest = time.monotonic() - limits.DEGRADED_SECONDS
        while self._recent and self._recent[0].ended_at < oldest:
            self._recent.popleft()
        if not self._recent:
            return ""
        longest = max(self._recent, key=lambda stall: stall.seconds)
        where = f", in {longest.where}" if longest.where else ""
        return (
            f"its loop stood still {len(self._recent)} times within a minute, for up to {longest.seconds:.1f} s{where}"
        )


def _line(frame: FrameType) -> str:
    """The innermost line of a user's code, else of any."""
    inner: FrameType | None = frame
    while inner is not None:
        path = inner.f_code.co_filename
        if not path.startswith((_HERE, *_LIBRARIES, "<")):
            frame = inner
            break
        inner = inner.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} ({frame.f_code.co_name})"
