"""Notices when a node's loop stands still, says in which line and which message, while it does and
afterwards.

All agents of a node share one loop: a handler that computes or blocks on it holds up every other,
and after some seconds the node is taken for dead. The loop sets a mark every quarter of a second,
and a thread looks whether it did. What runs is found in the frames of the loop's thread, so a turn
need not note it anywhere. Code in C that does not give up the interpreter stops the looking thread
as well: the node's host notices its silence, and afterwards the processor time that it took tells.
A time in which the looking thread did not run, and none was taken, is no stall: the machine was
slow, or the process was frozen. Nor is the time for which the loop waited for a processor, which
Linux tells.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Final

import msgspec

from holdfast import limits
from holdfast.agents import places
from holdfast.serving.delivery import Delivery

_logger = logging.getLogger(__name__)
_LOOK_SECONDS: Final = 0.25
_TELL_SECONDS: Final = 1.0
"""A standstill is told when it lasts for so long, and again each time that it has lasted twice as
long."""
_PULSE_LOOKS: Final = 2
_FRAMES_MAX: Final = 500
_HERE: Final = str(Path(__file__).parents[1])
_ADVICE: Final = 'a handler that computes says runs_in="process", one that blocks runs_in="thread"'


class Stall(msgspec.Struct, frozen=True):
    """A time in which a loop stood still. ``ended_at``: on the monotonic clock; ``where``: empty if
    it is not known."""

    ended_at: float
    seconds: float
    where: str


class InHand(msgspec.Struct, frozen=True):
    """What a thread is doing: in which line, and for which message of which agent, as far as its
    frames tell.

    ``key``: of the message, see `Delivery.key`; empty where the agent is being loaded.
    """

    where: str
    token: str = ""
    key: str = ""
    handler: str = ""
    functions: tuple[str, ...] = ()
    """Of a user's, that are running."""
    stack: str = ""

    @property
    def text(self) -> str:
        """For people."""
        agent = (
            f" ({self.token} {self.handler})"
            if self.handler
            else f" ({self.token})"
            if self.token
            else ""
        )
        return f"{self.where}{agent}"


class Stalls:
    """See the module. ``tell``: hears from the looking thread that it looks (``pulse``), and what
    stands still (``standing``, with the seconds and what is in hand). A pulse says for how long the
    loop has stood still, with (``gone``) and without the time in which it got no processor."""

    def __init__(self) -> None:
        self.count = 0
        self.tell: Callable[[str, dict[str, Any]], object] | None = None
        self._node = ""
        self._recent: deque[Stall] = deque(maxlen=256)
        self._due = self._cpu = self._waited = 0.0
        self._not_looked = 0.0
        """Since the last mark, the time in which neither thread ran: it is nobody's standstill."""
        self._tell_at = self._named_at = _TELL_SECONDS
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
        threading.Thread(
            target=self._watch, args=arguments, name="holdfast-stalls", daemon=True
        ).start()

    async def close(self) -> None:
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
            _logger.warning(
                "the loop of node %s stood still for %.1f s%s: %s", self._node, late, where, _ADVICE
            )
        self._due, self._cpu, self._waited = now + _LOOK_SECONDS, cpu, waited
        self._where, self._not_looked = "", 0.0
        self._tell_at = self._named_at = _TELL_SECONDS
        self._handle = loop.call_later(_LOOK_SECONDS, self._mark, loop)

    def _waited_for_processor(self) -> float:
        """Seconds for which the loop's thread could have run and did not get to; 0 where the system
        does not say."""
        try:
            return int(self._scheduler.read_bytes().split()[1]) / 1e9
        except (OSError, IndexError, ValueError):
            return 0.0

    # In a thread of its own -----------------------------------------------------------------------

    def _watch(self, thread: int) -> None:
        looked_at, cpu, looks = time.monotonic(), time.process_time(), 0
        while not self._ended.wait(_LOOK_SECONDS):
            now, spent, looks = time.monotonic(), time.process_time(), looks + 1
            late, used = now - looked_at - _LOOK_SECONDS, spent - cpu
            looked_at, cpu = now, spent
            if late > 0 and used < late / 2:
                self._not_looked += late
            gone = now - self._due
            seconds = gone - self._not_looked
            if gone > limits.STALL_SECONDS:
                seconds -= self._waited_for_processor() - self._waited
            if self.tell is not None and looks % _PULSE_LOOKS == 0:
                self.tell("pulse", {"seconds": max(seconds, 0.0), "gone": max(gone, 0.0)})
            if gone <= limits.STALL_SECONDS:
                continue
            frame = sys._current_frames().get(thread)
            if (
                not self._where
                and late < _LOOK_SECONDS / 2
                and gone - self._not_looked > limits.STALL_SECONDS
            ):
                self._where = "" if frame is None else _line(frame)
            if frame is not None and gone - self._not_looked >= self._named_at:
                self._named_at *= 2
                self._name(seconds, in_hand(frame))
            if frame is not None and seconds >= self._tell_at:
                self._standing(seconds, in_hand(frame))

    def _name(self, seconds: float, what: InHand) -> None:
        """Tell what is in hand: also of a loop that gets no processor, as it may be taken over for
        that."""
        if self.tell is not None:
            facts = {
                "token": what.token,
                "key": what.key,
                "where": what.where,
                "functions": what.functions,
            }
            self.tell("standing", {"seconds": max(seconds, 0.0), **facts})

    def _standing(self, seconds: float, what: InHand) -> None:
        stack = "\n" + what.stack if self._tell_at == _TELL_SECONDS else ""
        self._tell_at = seconds * 2
        _logger.warning(
            "the loop of node %s has stood still for %.1f s in %s: %s%s",
            self._node, seconds, what.text, _ADVICE, stack,
        )  # fmt: skip

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
            f"its loop stood still {len(self._recent)} times within a minute, for up to "
            f"{longest.seconds:.1f} s{where}"
        )


def in_hand(frame: FrameType) -> InHand:
    """What a thread does whose innermost frame this is, by the frame next to a user's code that
    handles a message."""
    stack = "".join(traceback.format_stack(frame, limit=40))
    inner: FrameType | None = frame
    for _ in range(_FRAMES_MAX):
        if inner is None:
            break
        if inner.f_code.co_filename.startswith(_HERE):
            found: dict[str, Any] = dict(inner.f_locals)
            activation, message = found.get("activation"), found.get("message")
            if activation is None and inner.f_code.co_name == "load":
                activation, message = found.get("self"), None
            token = getattr(activation, "token", None)
            if isinstance(token, str):
                if isinstance(message, Delivery):
                    return InHand(
                        _line(frame), token, message.key, message.handler, (message.handler,), stack
                    )
                if inner.f_code.co_name == "load":
                    return InHand(_line(frame), token, stack=stack)
        inner = inner.f_back
    return InHand(
        _line(frame), functions=tuple(one.f_code.co_name for one in _own(frame)), stack=stack
    )


def _own(frame: FrameType | None) -> Iterator[FrameType]:
    """The frames of a user's code, the innermost first."""
    for _ in range(_FRAMES_MAX):
        if frame is None:
            return
        if places.is_users(frame.f_code.co_filename):
            yield frame
        frame = frame.f_back


def _line(frame: FrameType) -> str:
    """The innermost line of a user's code, else of any."""
    frame = next(_own(frame), frame)
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} ({frame.f_code.co_name})"
