"""Pipes between a process of ours and its parent: one for its events, others for whatever its code
prints.

What user code prints is data: anybody may print anything, as fast as it likes, and a program that
it started may keep the pipe. So a child says what its parent acts on through a pipe of its own,
which no other program inherits. Printed text comes through other pipes, line by line; each line has
a bound, and so has the number of lines a second.

Neither side ever waits for the other. A `Teller` keeps what does not fit into its pipe, up to a
bound; a `Writer` writes to a terminal, file or pipe that may be read slowly, or never. The reading
side is in `lines`.

While the interpreter ends, no thread starts or goes on, so whoever waits for one, or for its lock,
waits for ever. What is logged then, as of tasks that nobody awaited, is dropped.
"""

from __future__ import annotations

import fcntl
import os
import queue
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import msgspec

from holdfast import limits

_PIPE_BYTES: Final = 1024 * 1024
_F_SETPIPE_SZ: Final = 1031


def make() -> tuple[int, int]:
    """A pipe for text: (reading end, writing end). It holds a mebibyte where the system lets us
    (Linux)."""
    reading, writing = os.pipe()
    if sys.platform.startswith("linux"):
        with suppress(OSError):  # all pipes of a user together have a bound
            fcntl.fcntl(writing, _F_SETPIPE_SZ, _PIPE_BYTES)
    return reading, writing


class Rate:
    """So many a second, and a burst; it counts what is over that. After the burst they come a
    second's worth at a time."""

    def __init__(
        self, per_second: float = limits.SAID_LINES_PER_SECOND, burst: int = limits.SAID_LINES_BURST
    ) -> None:
        self._per_second = per_second
        self._burst = burst
        self._left = float(burst)
        self._needed = 1.0
        self._at = time.monotonic()
        self.dropped = 0
        """Since `take_dropped`."""

    def room(self) -> bool:
        """Whether one more is within the rate."""
        if self._left < self._needed:
            now = time.monotonic()
            self._left = min(self._left + (now - self._at) * self._per_second, self._burst)
            self._at = now
            if self._left < (enough := min(self._per_second, self._burst)):
                self._needed = enough
                return False
        self._needed = 1.0
        return True

    def take(self) -> bool:
        """Take one, or count it as dropped."""
        if self.room():
            self._left -= 1.0
            return True
        self.dropped += 1
        return False

    def refused(self, count: int) -> None:
        """So many had no room elsewhere: take none for a second."""
        self.dropped += count
        self._left, self._needed = 0.0, min(self._per_second, self._burst)

    def take_dropped(self) -> int:
        """How many were dropped since the last call."""
        dropped, self.dropped = self.dropped, 0
        return dropped


class Teller:
    """Writes events into a pipe, one JSON object a line, from any thread, and never waits for the
    reader.

    No program that this process starts inherits the pipe. A fork that goes on with this process's
    memory says nothing.
    """

    def __init__(self, pipe: int) -> None:
        os.set_inheritable(pipe, False)
        os.set_blocking(pipe, False)
        self.pipe = pipe
        self.closed = False
        self._lock = threading.RLock()
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._writing = self._helped = False
        os.register_at_fork(after_in_child=self._forked)

    def tell(self, event: str, facts: dict[str, Any], may_drop: bool = False) -> bool:
        """Say an event; False where it was dropped, as too much waits, or nobody is there to read
        it.

        ``may_drop``: rather drop it than keep it.
        """
        try:
            line = msgspec.json.encode({"event": event, "pid": os.getpid(), **facts}) + b"\n"
        except (TypeError, ValueError, UnicodeError):  # lone surrogates, in a name or a text
            plain = {key: _printable(value) for key, value in facts.items()}
            line = msgspec.json.encode({"event": event, "pid": os.getpid(), **plain}) + b"\n"
        if sys.is_finalizing():
            return False
        with self._lock:
            if self._waiting:
                self._flush()
            too_much = (
                bool(self._waiting) if may_drop else self._bytes > limits.EVENTS_WAITING_BYTES_MAX
            )
            if self.closed or too_much:
                return False
            self._waiting.append(line)
            self._bytes += len(line)
            self._flush()
            if self._waiting and not self._helped:
                self._helped = True
                threading.Thread(target=self._help, name="holdfast-events", daemon=True).start()
        return True

    def _flush(self) -> None:
        if self._writing:  # a signal's handler says something while this thread does
            return
        self._writing = True
        try:
            while self._waiting:
                count = os.write(self.pipe, self._waiting[0])
                self._bytes -= count
                if count == len(self._waiting[0]):
                    self._waiting.popleft()
                else:
                    self._waiting[0] = self._waiting[0][count:]
        except BlockingIOError:
            pass
        except OSError:
            self._give_up()
        finally:
            self._writing = False

    def _help(self) -> None:
        poll = select.poll()
        poll.register(self.pipe, select.POLLOUT)
        while True:
            poll.poll()
            with self._lock:
                self._flush()
                if not self._waiting:
                    self._helped = False
                    return

    def _give_up(self) -> None:
        self.closed = True
        self._waiting.clear()
        self._bytes = 0

    def _forked(self) -> None:
        self._lock = threading.RLock()  # another thread may have held it
        self._give_up()


def _printable(value: Any) -> Any:
    """As much of a value as JSON takes."""
    text = value if isinstance(value, str) else repr(value)
    return text.encode("utf-8", "backslashreplace").decode()


class Writer:
    """Writes in a thread of its own, so that nobody waits for a reader that is slow, or that does
    not read at all.

    Over ``limits.WRITER_LINES_MAX`` lines that wait, further ones are dropped; how many is said
    when there is room again.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._queue: queue.Queue[str | None] = queue.Queue(limits.WRITER_LINES_MAX)
        self._dropped = 0
        self._closing = False
        self._thread: threading.Thread | None = None

    def put(self, text: str) -> None:
        """Have a text written, soon or never."""
        if sys.is_finalizing():
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="holdfast-writer", daemon=True)
            self._thread.start()
        try:
            self._queue.put_nowait(text)
        except queue.Full:
            self._dropped += 1

    def _run(self) -> None:
        while True:
            text = self._queue.get()
            if text is not None:
                self._try(text)
            if self._dropped and (text is None or self._queue.empty()):
                dropped, self._dropped = self._dropped, 0
                self._try(dropped_text(dropped) + "\n")
            if text is None:
                return

    def _try(self, text: str) -> None:
        with suppress(OSError):  # nobody will read it any more
            self._write(text)

    def close(self, seconds: float = 1.0) -> None:
        """Write what waits, for so long at most."""
        if self._thread is None:
            return
        with suppress(queue.Full):
            if not self._closing:
                self._queue.put(None, timeout=seconds)
                self._closing = True
            self._thread.join(seconds)
        if not self._thread.is_alive():
            self._thread, self._closing = None, False


def dropped_text(count: int) -> str:
    """What is said in the place of lines that were dropped."""
    return f"... {count} lines dropped"


def cut_text(text: str, beyond: int) -> str:
    """A line's text, and how much of it was cut off."""
    return f"{text}... {beyond} more" if beyond else text


def write_all(pipe: int, data: bytes) -> None:
    """Write all of it, waiting where the reader is slow; for a `Writer`, whose thread may wait."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(pipe, view) :]
        except BlockingIOError:
            select.select([], [pipe], [], 1.0)
