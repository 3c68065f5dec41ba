"""Which messages an agent has seen: what makes a retried message have one effect and one answer.

Naive: remember every message id for a while. A while is either too short for a message that was held in a frozen
server, or too long for a table. Here a caller numbers its asks per receiver, and sends along the lowest number still
open; the receiver keeps answers from there up. A caller's entry may go only when the deadlines of all its messages are
over, on any host's clock: an older attempt that turns up later is past its deadline, and is never started.

Ids that users give (and calls made inside a turn) have no order, so they are kept until a stated time, in a bounded table.

All is plain data in, decision out; the tables are part of the agent's record and are committed with its state.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from holdfast import limits


class Caller(msgspec.Struct, array_like=True):
    """What a receiver knows of one caller: its lowest open number, newest deadline, and the answers from there up."""

    low: int
    deadline: float
    answers: dict[int, bytes]


class Remembered(msgspec.Struct, array_like=True):
    """An id given with a message: until when it is kept (s), a digest of the message, and the answer."""

    until: float
    digest: int
    answer: bytes


class Verdict(Enum):
    """What to do with an ask that came in."""

    NEW = "new"
    DROPPED = "dropped"
    FULL = "full"


def check_caller(callers: dict[str, Caller], name: str, number: int, low: int) -> Verdict | bytes:
    """Decide on an ask: `bytes` is the first answer. The caller's ``low`` frees the answers below it."""
    caller = callers.get(name)
    if caller is None:
        return Verdict.NEW if len(callers) < limits.CALLERS_MAX else Verdict.FULL
    if low > caller.low:
        caller.low = low
        answers = caller.answers
        for old in [known for known in answers if known < low]:
            del answers[old]
    if number < caller.low:
        return Verdict.DROPPED
    return caller.answers.get(number, Verdict.NEW)


def note_answer(callers: dict[str, Caller], name: str, number: int, low: int, deadline: float, answer: bytes) -> None:
    """Remember the answer to an ask, as part of its turn."""
    caller = callers.get(name)
    if caller is None:
        callers[name] = Caller(low, deadline, {number: answer})
        return
    caller.answers[number] = answer
    if deadline > caller.deadline:
        caller.deadline = deadline


def expire(callers: dict[str, Caller], ids: dict[str, Remembered], now: float) -> None:
    """Forget callers whose messages can no longer be started anywhere, and ids past their time."""
    limit = now - limits.CLOCK_SKEW_SECONDS
    for name in [name for name, caller in callers.items() if caller.deadline < limit]:
        del callers[name]
    for key in [key for key, entry in ids.items() if entry.until < now]:
        del ids[key]


def answers_bytes(callers: dict[str, Caller]) -> int:
    """The size of all answers kept for callers."""
    return sum(len(answer) for caller in callers.values() for answer in caller.answers.values())
