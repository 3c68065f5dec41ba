"""The marks in an agent's record: which messages were about to run alone, and how many processes
ended while they did.

A mark's value holds the epoch in which it was written, and two counts: of ends that its message may
be the cause of, and of ends that something else is known to have caused. A mark counts for an end
only where the owner of its epoch ended with it in hand; one that let go of the shard in order did
not. Counts of 0 blame nobody: the message is to run alone. A name that begins with ``!`` says why a
message is marked; a name of ``*`` stands for any message of the agent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from holdfast import limits
from holdfast.serving import delivery

if TYPE_CHECKING:
    from holdfast.serving.delivery import Delivery
    from holdfast.serving.turns.activation import Activation

ANY_MESSAGE: Final = "*"
_WHY: Final = "!"
_OTHER: Final = "="
"""In front of a key that looks like one of the names above."""

_COUNT_BITS: Final = 4
_COUNT_MAX: Final = 3
"""Of either count."""

_AGAIN_SECONDS: Final = 2 * limits.ATTEMPT_SECONDS
"""After a claim: by then callers have asked again what was in the hands of the owner before."""

Marks = dict[str, int]


def name_of(key: str) -> str:
    """The name of a message's mark."""
    return _OTHER + key if key[:1] in (ANY_MESSAGE, _WHY, _OTHER) else key


def value(epoch: int, ends: int, excused: int = 0) -> int:
    """Of a mark: it was written in this epoch, and so many processes ended, or are about to, while
    its message ran."""
    return epoch << _COUNT_BITS | min(excused, _COUNT_MAX) << 2 | min(ends, _COUNT_MAX)


def ends(marks: Marks, name: str, epoch: int) -> int:
    """How many processes ended behind a mark; one that was written in this very epoch has not ended
    anything."""
    found = marks.get(name, 0)
    count = found & _COUNT_MAX
    return count - 1 if count and found >> _COUNT_BITS == epoch else count


def epoch_of(marks: Marks, name: str) -> int:
    """In which epoch a mark was written; 0: by code that did not say so, or none."""
    return marks.get(name, 0) >> _COUNT_BITS


def excused(marks: Marks, name: str) -> int:
    """How many ends behind a mark had another cause."""
    return marks.get(name, 0) >> 2 & _COUNT_MAX


def excuse(marks: Marks, name: str, counted: bool) -> None:
    """The last end behind a mark had another cause. ``counted``: such ends are counted."""
    marks[name] = value(0, max((marks[name] & _COUNT_MAX) - 1, 0), excused(marks, name) + counted)


def put(marks: Marks, name: str, epoch: int, ends: int, why: str = "") -> None:
    """Mark a message, and keep why, where it is known; make room where there are too many."""
    marks[name] = value(epoch, ends, excused(marks, name))
    if why:
        explain(marks, name, why)
    named = [other for other in marks if other[:1] != _WHY and other not in (ANY_MESSAGE, name)]
    for other in named[: max(len(named) + 1 - limits.ATTEMPT_MARKS_MAX, 0)]:
        forget(marks, other)


def explain(marks: Marks, name: str, why: str) -> None:
    """Keep why a message is marked."""
    _forget_why(marks, name)
    marks[f"{_WHY}{name}\n{why}"] = 0


def why(marks: Marks, name: str) -> str:
    """Why a message is marked, where that is known."""
    start = f"{_WHY}{name}\n"
    return next((other[len(start) :] for other in marks if other.startswith(start)), "")


def forget(marks: Marks, name: str) -> None:
    """The message was handled, or given up."""
    if marks.pop(name, None) is not None:
        _forget_why(marks, name)


def handled(activation: Activation, message: Delivery) -> None:
    """A message is done with: its own mark goes, and the agent's where no interrupted one may come
    that is the cause of it.

    Behind one that was loaded a process ended. What ended it comes again a moment after the claim,
    if it comes at all.
    """
    marks, shard = activation.attempts or {}, activation.shard
    forget(marks, name_of(message.key))
    if message.interrupted:
        over = activation.probation and not shard.has_interrupted(activation)
    else:
        over = activation.probation or shard.runtime.loop.time() > shard.claimed_at + _AGAIN_SECONDS
    if over:
        marks.pop(ANY_MESSAGE, None)
    activation.attempts = marks or None


def take_back(marks: Marks, name: str) -> None:
    """The last run of a message ended nothing. One that stood still before is to run alone
    again."""
    before = (marks[name] & _COUNT_MAX) - 1
    if name != ANY_MESSAGE and (before > 0 or why(marks, name)):
        marks[name] = value(0, max(before, 0), excused(marks, name))
    else:
        forget(marks, name)


def _forget_why(marks: Marks, name: str) -> None:
    start = f"{_WHY}{name}\n"
    for other in [other for other in marks if other.startswith(start)]:
        del marks[other]


def counting(activation: Activation, marks: Marks) -> Marks:
    """Those that count for a new owner: not of an owner that let go of the shard in order, nor of
    this very process."""
    released, outlived = activation.shard.claim.released, activation.shard.runtime.marks
    found = dict(marks)
    for name, number in marks.items():
        if (activation.token, name) in outlived or (released and number >> _COUNT_BITS == released):
            take_back(found, name)
    if found != marks:
        activation.shard.runtime.loop.call_soon(_rewrite, activation)
    return found


def _rewrite(activation: Activation) -> None:
    """Have the log drop them as well: the next owner does not know any more that they count for
    nothing."""
    if activation.loaded:
        activation.note(delivery.mark(activation.shard.runtime.loop.create_future()))


# Timers -------------------------------------------------------------------------------------------


def rings(activation: Activation, message: Delivery) -> bool:
    """Whether a timer that is due is in hand already, or waits for another attempt; now it is."""
    if message.timer is None:
        return False
    if activation.ringing is None:
        activation.ringing = set()
    if message.key in activation.ringing and not message.attempts:
        return True
    activation.ringing.add(message.key)
    return False


def rang(activation: Activation, message: Delivery) -> None:
    """A timer's message is settled."""
    if message.timer is not None and activation.ringing is not None:
        activation.ringing.discard(message.key)
        activation.ringing = activation.ringing or None
