"""What the code in a node or a worker prints and logs, on its way to people: with the agent whose
turn it was.

A process of ours replaces ``sys.stdout`` and ``sys.stderr`` by streams that hand each line to its
parent as an event, which carries time and agent. A line that the parent has no room for is dropped,
so printing never blocks a loop. What is written past Python, by a library in C or by a program that
was started, goes to the process's standard output as ever, which the parent reads as plain text.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple

from holdfast import limits
from holdfast.errors import ConfigError
from holdfast.pipes import Rate, Teller, Writer, cut_text

LEVEL_VARIABLE: Final = "HOLDFAST_LOG"
"""The environment variable that says from which level on records of `logging` are shown: info if it
is not set."""

SAID: Final = "said"
"""The event of a printed line."""

_FORMAT: Final = "%(levelname)s %(name)s: %(message)s"


class _Part(NamedTuple):
    agent: str
    text: str
    beyond: int
    """Characters that were cut off."""
    at: float


class _Stream(io.TextIOWrapper):
    """A standard stream of this process. ``begun`` is set when text waits for the end of its line,
    or was dropped."""

    def __init__(
        self,
        number: int,
        teller: Teller,
        rate: Rate,
        who: Callable[[], str],
        begun: threading.Event,
    ) -> None:
        super().__init__(
            open(number, "wb", closefd=False),  # noqa: SIM115
            "utf-8",
            "backslashreplace",
            line_buffering=True,
        )
        self._teller = teller
        self._rate = rate
        self._who = who
        self._begun = begun
        self._stream = {1: "out", 2: "err"}[number]
        self._lock = threading.RLock()
        self._parts: dict[int, _Part] = {}
        """Of each thread."""

    def write(self, text: str) -> int:
        """Hand on the lines that this ends. The rest waits for its end, for `flush`, or for a
        second."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if self._teller.closed:  # a fork of the process
            return super().write(text)
        if not self._rate.room():
            self._rate.dropped += text.count("\n")
            self._begun.set()
            return len(text)
        agent = self._who()
        thread = threading.get_ident()
        with self._lock:
            part = self._parts.pop(thread, None)
            if part is not None and part.agent != agent:
                self._say(*part)
                part = None
            first, *others = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
            begun, beyond = (part.text, part.beyond) if part is not None else ("", 0)
            room = limits.SAID_LINE_BYTES_MAX - len(begun)
            part = _Part(
                agent, begun + first[:room], beyond + max(len(first) - room, 0), time.monotonic()
            )
            for line in others:
                if part.text or "\r" not in text:
                    self._say(*part)
                part = _Part(
                    agent,
                    line[: limits.SAID_LINE_BYTES_MAX],
                    max(len(line) - limits.SAID_LINE_BYTES_MAX, 0),
                    part.at,
                )
            if part.text:
                self._parts[thread] = part
                if not self._begun.is_set():
                    self._begun.set()
        return len(text)

    def flush(self) -> None:
        """Hand on what this thread printed without an end of the line."""
        if hasattr(self, "_parts") and not self._teller.closed:
            with self._lock:
                part = self._parts.pop(threading.get_ident(), None)
                if part is not None:
                    self._say(*part)
        super().flush()

    def end_parts(self) -> bool:
        """Hand on what waits for the end of its line for too long; whether something waits for less
        long."""
        oldest = time.monotonic() - limits.SAID_PART_SECONDS
        with self._lock:
            for thread, part in list(self._parts.items()):
                if part.at <= oldest:
                    del self._parts[thread]
                    self._say(*part)
            return bool(self._parts)

    def _say(self, agent: str, line: str, beyond: int, _at: float) -> None:
        if not self._rate.take():
            return
        facts = {
            "at": time.time(),
            "agent": agent,
            "stream": self._stream,
            "text": cut_text(line, beyond),
        }
        if not self._teller.tell(SAID, facts, may_drop=True):
            self._rate.refused(1)
            self._begun.set()

    def say(self, agent: str, line: str) -> None:
        """Hand on a line of an agent whose code runs elsewhere."""
        if self._rate.room():
            self._say(agent, line, 0, 0.0)
        else:
            self._rate.dropped += 1
            self._begun.set()

    def say_dropped(self) -> None:
        """Say how many lines were dropped."""
        dropped = self._rate.take_dropped()
        if dropped and not self._teller.tell(
            SAID, {"at": time.time(), "dropped": dropped}, may_drop=True
        ):
            self._rate.refused(dropped)
            self._begun.set()


def take_over(teller: Teller, who: Callable[[], str]) -> None:
    """Have what Python code of this process prints told to its parent. ``who``: the agent whose
    code runs, or nothing."""
    rate, begun = Rate(), threading.Event()
    streams = [_Stream(number, teller, rate, who, begun) for number in (1, 2)]
    sys.stdout, sys.stderr = streams
    threading.Thread(
        target=_end_parts, args=(streams, begun), name="holdfast-said", daemon=True
    ).start()


def _end_parts(streams: list[_Stream], begun: threading.Event) -> None:
    while begun.wait():
        time.sleep(limits.SAID_PART_SECONDS)
        begun.clear()
        for stream in streams:
            if stream.end_parts():
                begun.set()
            stream.say_dropped()


def hand_on(agent: str, text: str, number: int) -> None:
    """Print a line for an agent whose code ran elsewhere. ``number``: 1 for the standard output, 2
    for the standard error."""
    stream = sys.stdout if number == 1 else sys.stderr
    if isinstance(stream, _Stream):
        stream.say(agent, text)
    else:
        with suppress(OSError, ValueError, AttributeError):  # it is closed, or there is none
            stream.write(f"{agent}: {visible(text)}\n")
            stream.flush()


def level() -> int:
    """What `LEVEL_VARIABLE` says. Raises `ConfigError`."""
    name = os.environ.get(LEVEL_VARIABLE, "") or "info"
    found = logging.getLevelNamesMapping().get(name.upper())
    if found is None:
        raise ConfigError(f"{LEVEL_VARIABLE}={name}: write debug, info, warning, error or critical")
    return found


class _Shown(logging.Formatter):
    """Text of users is data in a log as well: only what can be seen, and no second line that looks
    like a first one."""

    def __init__(self) -> None:
        super().__init__(_FORMAT)

    def format(self, record: logging.LogRecord) -> str:
        first, *others = super().format(record).expandtabs(4).split("\n")
        return "\n".join([visible(first), *(f"  {visible(line)}" for line in others)])


def show_warnings() -> None:
    """Have warnings shown that nobody has said how to show; an application's own settings come
    first, whenever it makes them."""
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(_Shown())
    logging.lastResort = handler


def set_up_logging(from_level: int | None = None) -> None:
    """Show what is logged, unless the application has said itself how. Raises `ConfigError`."""
    chosen = level() if from_level is None else from_level
    handler = logging.StreamHandler()
    handler.setFormatter(_Shown())
    # does nothing where the root has a handler
    logging.basicConfig(level=chosen, handlers=[handler])


class _Written(logging.Handler):
    def __init__(self, writer: Writer) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._writer.put(self.format(record))
        except Exception:
            self.handleError(record)


def log_to(writer: Writer) -> None:
    """Have what this process logs written by a writer, so that logging waits for nobody. Raises
    `ConfigError`."""
    handler = _Written(writer)
    handler.setFormatter(_Shown())
    logging.basicConfig(level=level(), handlers=[handler])


SAID_EVENTS: Final = frozenset({"node-said", "host-said"})
"""What a host reports of the lines that its nodes, and its own process, print."""


def who(facts: dict[str, Any]) -> str:
    """Who said such a line: the node, and the agent where that is known; or the host."""
    return " ".join(str(facts[key]) for key in ("node", "agent") if facts.get(key)) or str(
        facts.get("host", "")
    )


def said_line(facts: dict[str, Any]) -> str:
    """Such a line with who said it, for people and files."""
    return visible(f"{who(facts)}: {facts.get('text', '')}")


def show(event: str, facts: dict[str, Any]) -> None:
    """Print such a line on the standard error; other events are not shown."""
    if event in SAID_EVENTS:
        with suppress(OSError, ValueError, AttributeError):  # it is closed, or there is none
            sys.stderr.write(f"{said_line(facts)}\n")
            sys.stderr.flush()


def visible(text: str) -> str:
    """The text in one line: a character that cannot be seen, or that moves a terminal's cursor, is
    written as an escape."""
    return (
        text
        if text.isprintable()
        else "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)
    )
