"""Which messages an agent has seen: what makes a retried message have one effect and one answer.

Naive: remember every message id for a while. A while is either too short for a message that was
held in a frozen server, or too long for a table. Here a caller numbers its asks per receiver, and
sends along the lowest number still open; the receiver keeps answers from there up. A caller's entry
may go only when the deadlines of all its messages are over, on any host's clock: an older attempt
that turns up later is past its deadline, and is never started.

Ids that users give (and calls made inside a turn) have no order, so they are kept until a stated
time, in a bounded table.

All is plain data in, decision out; the tables are part of the agent's record and are committed with
its state.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum
from functools import lru_cache
from typing import Final

import msgspec

from holdfast import limits

_KEPT_SECONDS: Final = limits.CLOCK_SKEW_SECONDS - 0.001
"""For so long a caller is kept behind its newest deadline for certain: rounding errors are less."""


@lru_cache(maxsize=1024)
def _shared(name: str) -> str:
    """One copy of a caller's name for all agents."""
    return name


class Caller(msgspec.Struct, array_like=True, gc=False):
    """What a receiver knows of one caller: its lowest open number, newest deadline, and the answers
    from there up."""

    low: int
    deadline: float
    answers: dict[int, bytes]


class Remembered(msgspec.Struct, array_like=True, gc=False):
    """An id given with a message: until when it is kept (s), a digest of the message, and the
    answer.

    ``canonical``: a digest of what the message means, whatever its bytes are; 0 where only one
    message means it.
    """

    until: float
    digest: int
    answer: bytes
    canonical: int = 0


NO_IDS: Final[dict[str, Remembered]] = {}
"""For all agents that remember no ids, so that each need not have a table. `Seen` adds nothing to
it."""


class Verdict(Enum):
    """What to do with a message that came in, where there is no answer to give yet."""

    NEW = "new"
    DROPPED = "dropped"
    FULL = "full"
    MISMATCH = "mismatch"


class Seen:
    """An agent's tables of callers and of ids. ``bytes_kept``: the size of all answers in them;
    ``stale_at``: when the first of them may be forgotten, or before (s)."""

    __slots__ = ("bytes_kept", "callers", "ids", "stale_at")

    def __init__(self, callers: dict[str, Caller], ids: dict[str, Remembered]) -> None:
        self.callers = callers
        self.ids = ids
        answers = sum(
            len(answer) for caller in callers.values() for answer in caller.answers.values()
        )
        self.bytes_kept = answers + sum(len(entry.answer) for entry in ids.values())
        self.stale_at = self._first_stale()

    def check_caller(self, name: str, number: int, low: int) -> Verdict | bytes:
        """Decide on a numbered ask: `bytes` is the first answer. The caller's ``low`` frees the
        answers below it."""
        caller = self.callers.get(name)
        if caller is None:
            return Verdict.NEW if len(self.callers) < limits.CALLERS_MAX else Verdict.FULL
        if low > caller.low:
            self.free_below(caller, low)
        if number < caller.low:
            return Verdict.DROPPED
        return caller.answers.get(number, Verdict.NEW)

    def free_below(self, caller: Caller, low: int) -> None:
        """Forget the answers to asks that their caller closed."""
        caller.low = low
        answers = caller.answers
        # as it mostly is, of a caller that waits for one answer before it asks again
        if len(answers) == 1:
            known, answer = answers.popitem()
            if known < low:
                self.bytes_kept -= len(answer)
            else:
                answers[known] = answer
            return
        for known in [*answers]:
            if known < low:
                self.bytes_kept -= len(answers.pop(known))

    def check_id(
        self, message_id: str, digest: int, canonical: Callable[[], int]
    ) -> Verdict | bytes:
        """Decide on a message with an id: `bytes` is the first answer. ``canonical``: asked where
        the digests differ."""
        kept = self.ids.get(message_id)
        if kept is None:
            return Verdict.NEW if len(self.ids) < limits.MESSAGE_IDS_MAX else Verdict.FULL
        if kept.digest == digest or canonical() in (kept.digest, kept.canonical or kept.digest):
            return kept.answer
        return Verdict.MISMATCH

    def note_caller(self, name: str, number: int, low: int, deadline: float, answer: bytes) -> None:
        """Remember the answer to a numbered ask, as part of its turn."""
        self.bytes_kept += len(answer)
        caller = self.callers.get(name)
        if caller is None:
            self.callers[_shared(name)] = Caller(low, deadline, {number: answer})
            self.stale_at = min(self.stale_at, deadline + _KEPT_SECONDS)
            return
        caller.answers[number] = answer
        if deadline > caller.deadline:
            caller.deadline = deadline

    def note_id(
        self, message_id: str, until: float, digest: int, answer: bytes, canonical: int = 0
    ) -> None:
        """Remember the answer to a message with an id, as part of its turn."""
        if not self.ids:
            self.ids = {}
        self.ids[message_id] = Remembered(until, digest, answer, canonical)
        self.stale_at = min(self.stale_at, until)
        self.bytes_kept += len(answer)

    def full(self) -> bool:
        """Whether the answers kept are so many that none may be added."""
        return self.bytes_kept > limits.ANSWERS_BYTES_MAX

    def expire(self, now: float) -> None:
        """Forget callers whose messages can no longer be started anywhere, and ids past their
        time."""
        if now <= self.stale_at:
            return
        limit = now - limits.CLOCK_SKEW_SECONDS
        for name in [name for name, caller in self.callers.items() if caller.deadline < limit]:
            self.bytes_kept -= sum(map(len, self.callers.pop(name).answers.values()))
        for key in [key for key, entry in self.ids.items() if entry.until < now]:
            self.bytes_kept -= len(self.ids.pop(key).answer)
        self.stale_at = self._first_stale()

    def _first_stale(self) -> float:
        callers = min((caller.deadline for caller in self.callers.values()), default=math.inf)
        ids = min((entry.until for entry in self.ids.values()), default=math.inf)
        return min(callers + _KEPT_SECONDS, ids)
