"""Reading what another process writes into a pipe, line by line: events of ours, or text of
anybody's (see `pipes`).

The loop takes what is there and waits for nothing else. A line has a bound, whatever the other side
writes.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import msgspec

from holdfast import limits
from holdfast.pipes import Rate, cut_text, dropped_text

_READ_BYTES: Final = 65536
_FINISH_READS_MAX: Final = 64

_decode = msgspec.json.Decoder(dict[str, Any]).decode
_ends = re.compile(rb"\r\n|\r|\n").finditer


class LineReader:
    """Reads lines from a pipe in the running loop, and closes it at its end.

    ``on_line`` gets a line without its end, and how many bytes were cut off it. A line is at most
    ``longest`` bytes.
    """

    def __init__(self, pipe: int, on_line: Callable[[bytes, int], None], longest: int) -> None:
        self.closed = False
        self._pipe = pipe
        self._on_line = on_line
        self._longest = longest
        self._part = bytearray()
        self._beyond = 0
        self._loop = asyncio.get_running_loop()
        os.set_blocking(pipe, False)
        self._loop.add_reader(pipe, self._read)

    def _read(self) -> bool:
        """Take what is there, up to 64 KiB; whether there was something."""
        try:
            data = os.read(self._pipe, _READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self.close()
            return False
        self._take(data)
        return True

    def _take(self, data: bytes) -> None:
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            self._add(data[start:end])
            self._emit()
            start = end + 1
        self._add(data[start:])

    def _add(self, data: bytes) -> None:
        room = self._longest - len(self._part)
        self._part += data[:room]
        self._beyond += max(len(data) - room, 0)

    def _emit(self) -> None:
        line, beyond = bytes(self._part), self._beyond
        self._part.clear()
        self._beyond = 0
        self._on_line(line, beyond)

    def finish(self) -> None:
        """Take what is in the pipe now, though others may still have it open."""
        for _ in range(_FINISH_READS_MAX):
            if self.closed or not self._read():
                break

    def close(self) -> None:
        """Read no further."""
        if self.closed:
            return
        self.closed = True
        with suppress(RuntimeError):  # the loop is closed
            self._loop.remove_reader(self._pipe)
        os.close(self._pipe)


class TextReader(LineReader):
    """Reads what programs print. ``on_text`` gets each line, cut where it is long, and how many
    were dropped.

    A carriage return ends a line as well, as of a progress bar; and what is not ended for a second
    is taken for a line.
    """

    def __init__(self, pipe: int, on_text: Callable[[str], None]) -> None:
        super().__init__(pipe, self._line, limits.SAID_LINE_BYTES_MAX)
        self._on_text = on_text
        self._rate = Rate()
        self._after_return = False
        self._late: asyncio.TimerHandle | None = None
        self._dropped: asyncio.TimerHandle | None = None

    def _take(self, data: bytes) -> None:
        if self._after_return and data[:1] == b"\n":
            data = data[1:]
        self._after_return = data[-1:] == b"\r"
        if not self._rate.room() and len(data) == _READ_BYTES:
            self._rate.dropped += data.count(b"\n") + data.count(b"\r")
            self._say_dropped()
            return
        start = 0
        for found in _ends(data):
            self._add(data[start : found.start()])
            if self._part or found[0] != b"\r":
                self._emit()
            start = found.end()
        self._add(data[start:])
        if self._part and self._late is None:
            self._late = self._loop.call_later(limits.SAID_PART_SECONDS, self._end_part)

    def _end_part(self) -> None:
        self._late = None
        if self._part:
            self._emit()

    def _line(self, line: bytes, beyond: int) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
        if self._rate.take():
            self._on_text(cut_text(line.decode(errors="backslashreplace"), beyond))
        else:
            self._say_dropped()

    def _say_dropped(self) -> None:
        if self._dropped is None:
            self._dropped = self._loop.call_later(limits.SAID_PART_SECONDS, self._now_say_dropped)

    def _now_say_dropped(self) -> None:
        self._dropped = None
        if dropped := self._rate.take_dropped():
            self._on_text(dropped_text(dropped))

    def finish(self) -> None:
        """Take what is in the pipe now; what was begun is taken for a line."""
        super().finish()
        self._end_part()

    def close(self) -> None:
        """Read no further; what was begun is taken for a line."""
        if self.closed:
            return
        super().close()
        self._end_part()
        for timer in (self._late, self._dropped):
            if timer is not None:
                timer.cancel()
        self._now_say_dropped()


class EventReader:
    """Reads what a `Teller` says. ``on_event`` gets its name and its facts; what is no event is
    dropped, and said once."""

    def __init__(
        self,
        pipe: int,
        on_event: Callable[[str, dict[str, Any]], None],
        on_nonsense: Callable[[str], None],
    ):
        self._on_event = on_event
        self._on_nonsense = on_nonsense
        self._was_said = False
        self.lines = LineReader(pipe, self._take, limits.EVENT_BYTES_MAX)

    def _take(self, line: bytes, beyond: int) -> None:
        try:
            facts = {} if beyond else _decode(line)
            event = facts.pop("event", None)
        except (msgspec.MsgspecError, UnicodeError, ValueError, RecursionError):
            event = None
        try:
            if isinstance(event, str):
                self._on_event(event, facts)
                return
            why = "bytes that are not an event were dropped"
        except (LookupError, TypeError, ValueError) as error:
            why = f"bytes of an event {event!r} were dropped: {error!r}"
        if not self._was_said:
            self._was_said = True
            self._on_nonsense(f"{len(line) + beyond} {why}")
