"""Messages that were in the hands of a process that died or stood still: one of them may do so
again to the next.

A message is blamed only for what ended while it ran alone, behind a committed mark that names it,
or for a standstill of its node in it. An owner that lets go in order blames nobody, and who was
killed from outside is tried once more.
"""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from typing import TYPE_CHECKING, Final

from holdfast import limits
from holdfast.errors import BadState, DeadlineExceeded, HandlerFailed
from holdfast.serving import delivery
from holdfast.serving.delivery import Delivery
from holdfast.serving.turns import attempts, reading, turn
from holdfast.serving.turns.attempts import ANY_MESSAGE

if TYPE_CHECKING:
    from holdfast.cluster.members.standstills import Standstill
    from holdfast.serving.shards.shard import Shard
    from holdfast.serving.turns.activation import Activation

_REST_SECONDS: Final = 1.0
"""What stood still waits for so long after a claim, so that the others of its shard are served
before it may do so again."""

_LOOK_SECONDS: Final = 0.25
_BEFORE_SECONDS: Final = limits.SUSPECT_SECONDS
"""Before a claim: what was heard to stand still within it may be why the shard was lost."""


def reach(shard: Shard, token: str) -> Activation:
    """The agent for a message. Raises what `Shard.activation` does, and `BadState` where nodes
    stood still loading it."""
    if (
        token not in shard.activations
        and (still := shard.runtime.standstills.rests(token)) is not None
    ):
        raise BadState(
            f"a node {still.text} while it loaded {token}: it is not loaded again for a while"
        )
    return shard.activation(token)


def start(activation: Activation, message: Delivery) -> None:
    """Run a message so that it ends three processes at most, and stands still on two nodes at most.

    First behind a committed mark on the agent. Where that process ended too, or where it is heard
    that the message stood still: one message of the node at a time, each behind a mark that names
    it. A message that bears such a mark of a process that ended is given up. A process may lose a
    shard and claim it anew: its own marks in it blame nobody, as it has not ended
    (`attempts.counting`).
    """
    marks = activation.attempts = activation.attempts or {}
    name = attempts.name_of(message.key)
    if _is_open(activation, message, name):
        activation.running = message
        turn.spawn(activation, message, _when_told(activation, message))
        return
    still = _standstill(activation, message)
    for marked in (name, ANY_MESSAGE):
        if marked in marks:
            _excuse(activation, message, marked)
    if why := _guilty(activation, message, name, still):
        _give_up(activation, message, why)
    elif still is not None or name in marks or (message.interrupted and _alone(activation)):
        # whoever owns the agent next is to know it, however this one lets go of it
        if still is not None:
            marks.setdefault(name, 0)
            if still.ended:
                attempts.explain(marks, name, still.text)
        _begin(activation, message, name)
    elif not message.interrupted or (
        activation.probation and ANY_MESSAGE in marks and not _reads(activation, message)
    ):
        activation.attempts = marks or None
        turn.start(activation, message)
    else:
        activation.probation = True
        _begin(activation, message, ANY_MESSAGE)


def _is_open(activation: Activation, message: Delivery, name: str) -> bool:
    """Whether a process wrote a mark that may accuse this message, and it is not known yet whether
    it ends.

    It is there, as its host says, and silent. That counts for a while after the claim; a debugger
    may hold it for ever.
    """
    shard, accuse = activation.shard, (name, ANY_MESSAGE) if message.interrupted else (name,)
    if shard.runtime.loop.time() > shard.claimed_at + 3 * limits.FROZEN_SECONDS:
        return False
    heard = shard.runtime.standstills
    owners = filter(None, (_writer(activation, marked) for marked in accuse))
    return any(heard.is_there(owner) and not heard.goes_on(owner) for owner in owners)


async def _when_told(activation: Activation, message: Delivery) -> None:
    """Wait for the last word on the processes that wrote the marks, and judge then."""
    name = attempts.name_of(message.key)
    while _is_open(activation, message, name):
        await asyncio.sleep(_LOOK_SECONDS)
    if activation.running is message:
        activation.running = None
        start(activation, message)
        activation.pump()


def _alone(activation: Activation) -> bool:
    """Whether a process ended that ran interrupted messages of this agent behind the mark of the
    agent, and it may be for one of them."""
    marks = activation.attempts or {}
    return (
        attempts.ends(marks, ANY_MESSAGE, activation.shard.epoch) > 0 and not activation.probation
    )


def _excuse(activation: Activation, message: Delivery, name: str) -> None:
    """Take back an end behind a mark that something else is known to have caused.

    A standstill in another message always does, as that one is given up for it. Whatever else is
    heard does so a few times: if the cause is this message nevertheless, it would come back for
    ever.
    """
    owner, marks = _writer(activation, name), activation.attempts or {}
    if not owner:
        return
    heard = activation.shard.runtime.standstills
    if (still := heard.of(owner)) is not None and still.ended:
        excused, sure = not _may_be(activation, message, still), bool(still.token)
    else:  # somebody else ended it; or it lost the shard as it was not heard, and goes on
        goes_on = heard.goes_on(owner) and _blocked(activation, message, owner) is None
        excused, sure = name != ANY_MESSAGE and (heard.was_killed(owner) or goes_on), False
    if excused and (sure or attempts.excused(marks, name) < limits.ALONE_ENDS_MAX - 1):
        attempts.excuse(marks, name, counted=not sure)


def _writer(activation: Activation, name: str) -> str:
    """Whose process wrote a mark, and ended without letting go of the shard; empty where that is
    not known."""
    return activation.shard.claim.owner_in(attempts.epoch_of(activation.attempts or {}, name))


def _standstill(activation: Activation, message: Delivery) -> Standstill | None:
    """How a node stood still with this message in its hands, as far as is heard: in it, or in one
    that it could not name.

    It need not be the node of the owner before, which may have ended for something else before it
    could judge.
    """
    heard, name = activation.shard.runtime.standstills, attempts.name_of(message.key)
    if (still := heard.named(activation.token, message.key)) is not None:
        return still
    marked = [_writer(activation, mark) for mark in (name, ANY_MESSAGE)]
    owners = [activation.shard.claim.owner, *marked] if message.interrupted else []
    found = [still for owner in owners if owner and (still := heard.of(owner)) is not None]
    return next((still for still in found if _may_be(activation, message, still)), None)


def _blocked(activation: Activation, message: Delivery, owner: str) -> Standstill | None:
    """How a process that goes on stood still in this message when it lost the shard.

    A block that was over by then is not meant: the claim comes after a silence that is longer than
    `_BEFORE_SECONDS`.
    """
    shard = activation.shard
    heard = shard.runtime.standstills
    last = heard.last(owner, shard.claimed_at - _BEFORE_SECONDS) if heard.goes_on(owner) else None
    return last if last is not None and _may_be(activation, message, last) else None


def _may_be(activation: Activation, message: Delivery, still: Standstill) -> bool:
    """Whether it was this message that stood still; where the message is not known, the functions
    that ran tell."""
    if still.token:
        return (still.token, still.key) == (activation.token, message.key)
    method = activation.kind.methods.get(message.handler)
    return method is not None and method.function.__name__ in still.functions


def _guilty(activation: Activation, message: Delivery, name: str, still: Standstill | None) -> str:
    """Why a message is to be given up; empty where it is not."""
    marks, claim = activation.attempts or {}, activation.shard.claim
    if not attempts.ends(marks, name, activation.shard.epoch):
        # Behind the mark of the agent it ran for the second time, if the word that it stood still
        # came late.
        marked = ANY_MESSAGE in marks and not activation.probation
        second = marked and attempts.epoch_of(marks, ANY_MESSAGE) == claim.before > 0
        return still.text if second and still is not None and still.key and still.ended else ""
    # It is the mark that judges. A word that comes late, of how the end came about, is said all the
    # same.
    still = still or _blocked(activation, message, _writer(activation, name))
    newest = still.text if still is not None else ""
    return (
        newest
        or attempts.why(marks, name)
        or f"this message ended {limits.UNCLEAN_ENDS_MAX} processes"
    )


def _give_up(activation: Activation, message: Delivery, why: str) -> None:
    error = HandlerFailed(why)
    if not _reads(activation, message):
        turn.bury(activation, message, error)
        return
    if activation.attempts:
        attempts.forget(activation.attempts, attempts.name_of(message.key))
    activation.settle(message, error)


def _reads(activation: Activation, message: Delivery) -> bool:
    method = activation.kind.methods.get(message.handler)
    return message.call is not None and method is not None and method.reads_only


def _begin(activation: Activation, message: Delivery, name: str) -> None:
    activation.running = message
    turn.spawn(activation, message, _behind_mark(activation, message, name))


async def _behind_mark(activation: Activation, message: Delivery, name: str) -> None:
    runtime = activation.shard.runtime
    try:
        heard = name != ANY_MESSAGE and _standstill(activation, message) is not None
        if heard or attempts.why(activation.attempts or {}, name):
            await _marked(activation)
            await _calm(activation)
            if (still := _standstill(activation, message)) is not None and still.ended:
                attempts.explain(activation.attempts or {}, name, still.text)
        async with nullcontext() if name == ANY_MESSAGE else runtime.quarantine:
            call = message.call
            if (
                activation.running is message
                and call is not None
                and call.deadline
                and call.deadline < activation.now()
            ):
                activation.running = None
                attempts.forget(activation.attempts or {}, name)
                activation.settle(
                    message,
                    DeadlineExceeded("the deadline passed before the message was started again"),
                )
                await _marked(activation)
            elif activation.running is message:
                await _run(activation, message, name)
        if name not in (activation.attempts or ()):  # until here the log may still show the mark
            runtime.marks.discard((activation.token, name))
    except asyncio.CancelledError:
        if not turn.cancelled(activation, message):
            raise
    else:
        activation.pump()


async def _run(activation: Activation, message: Delivery, name: str) -> None:
    runtime, epoch = activation.shard.runtime, activation.shard.epoch
    # Others' marks stay: two deadly messages would else take turns at wiping out each other's.
    marks = activation.attempts = activation.attempts or {}
    attempts.put(marks, name, epoch, attempts.ends(marks, name, epoch) + 1)
    if len(runtime.marks) >= limits.MARKS_MAX:
        runtime.marks.clear()  # then some count that need not
    runtime.marks.add((activation.token, name))
    await _marked(activation)
    if activation.running is not message:
        return
    if _reads(activation, message):
        task = reading.read(activation, message)
        if task is not None:
            await asyncio.wait([task])
        if activation.running is message:
            activation.running = None
        attempts.forget(marks, attempts.name_of(message.key))
        if activation.probation and not activation.shard.has_interrupted(activation):
            attempts.forget(marks, ANY_MESSAGE)
        activation.attempts = marks or None
    else:
        turn.start(activation, message)
        task = activation.task
        if (
            activation.running is message
            and task is not None
            and task is not asyncio.current_task()
        ):
            await asyncio.wait([task])
    if (
        (left := activation.attempts)
        and name != ANY_MESSAGE
        and attempts.epoch_of(left, name) == epoch
    ):
        attempts.take_back(left, name)  # it failed, and will be tried again: nothing ended
    await _marked(activation)


async def _calm(activation: Activation) -> None:
    """Wait until the others of its shard had their turn, and until no other node stands still, for
    so long as that may take."""
    runtime = activation.shard.runtime
    end = runtime.loop.time() + 3 * limits.FROZEN_SECONDS
    await asyncio.sleep(max(activation.shard.claimed_at + _REST_SECONDS - runtime.loop.time(), 0.0))
    while runtime.standstills.under_way() and runtime.loop.time() < end:
        await asyncio.sleep(_LOOK_SECONDS)


def _marked(activation: Activation) -> asyncio.Future[None]:
    """Commit the record as it is; the future is done when it is acknowledged, cancelled when the
    shard is lost."""
    future: asyncio.Future[None] = activation.shard.runtime.loop.create_future()
    activation.note(delivery.mark(future))
    return future
