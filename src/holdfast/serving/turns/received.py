"""Messages that came before: answered from the agent's record, or turned away, but never run
again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from holdfast import limits
from holdfast.agents.calls import Outcome
from holdfast.core.delivery import Verdict
from holdfast.errors import OutcomeUnknown, Overloaded, ReplayMismatch
from holdfast.records.messages import ERROR_PREFIX, Call, InboxMessage
from holdfast.serving import delivery
from holdfast.serving.delivery import Delivery, is_same_ask
from holdfast.serving.turns import deadlocks, turn

if TYPE_CHECKING:
    from holdfast.serving.turns.activation import Activation


def mismatch(message_id: str) -> ReplayMismatch:
    """The error for an id that came with another message before."""
    return ReplayMismatch(
        f"the message id {message_id!r} was used before, with another message: give each its own id"
    )


def in_hand(activation: Activation, call: Call, message: Delivery) -> Delivery | None:
    """The same message in the agent's hands, of an attempt before or of another caller."""
    known = (activation.in_hand or {}).get(message.key)
    finished = (*activation.in_batch, *activation.pending) if known is None and call.number else ()
    caller = activation.seen.callers.get(call.caller) if finished else None
    if caller is not None and call.number in caller.answers:
        for one in finished:  # what took the fast path was not noted
            if one.fast:
                one.fast = False
                activation.take_in_hand(one)
        known = (activation.in_hand or {}).get(message.key)
    return known


def join(activation: Activation, known: Delivery, call: Call, message: Delivery) -> None:
    """Another attempt of what is in the agent's hands, or another caller under the same id: it gets
    the answer."""
    if call.message_id and not _means_the_same(activation, known, call):
        turn.refuse(message, mismatch(call.message_id))
    else:
        known.shared = known.shared or not is_same_ask(known.call, call)
        known.call, known.sink = call, message.sink
        deadlocks.hint(activation, known, message)
        deadlocks.look(activation, known)


def _means_the_same(activation: Activation, known: Delivery, call: Call) -> bool:
    if known.handler != call.handler or known.arguments == call.arguments:
        return known.handler == call.handler
    method = activation.kind.methods.get(call.handler)
    return delivery.meaning(method, known.arguments) == delivery.meaning(method, call.arguments)


def _check_id(activation: Activation, message: Call | InboxMessage) -> Verdict | bytes:
    handler, arguments = message.handler, message.arguments
    method = activation.kind.methods.get(handler)
    return activation.seen.check_id(
        message.message_id,
        delivery.digest(handler, arguments),
        lambda: delivery.canonical_digest(method, handler, arguments),
    )


def already_seen(activation: Activation, message: Delivery) -> bool:
    """Whether what earlier turns left in the record answers the message, or turns it away."""
    call = message.call
    if call is None:
        return _inbox_seen(activation, message)
    verdict: Verdict | bytes = Verdict.NEW
    if call.message_id:
        verdict = _check_id(activation, call)
    elif call.number:
        verdict = activation.seen.check_caller(call.caller, call.number, call.low)
    if verdict is Verdict.NEW:
        return False
    if isinstance(verdict, bytes):
        message.reply = verdict
        activation.settle(message)
    elif verdict is Verdict.MISMATCH:
        activation.settle(message, mismatch(call.message_id))
    elif verdict is Verdict.DROPPED:
        activation.settle(
            message,
            OutcomeUnknown("the caller closed this message before; whether it ran is not known"),
        )
    else:
        activation.seen.expire(activation.now())
        if (
            len(activation.seen.callers) < limits.CALLERS_MAX
            and len(activation.seen.ids) < limits.MESSAGE_IDS_MAX
        ):
            return False
        text = (
            f"{activation.token} remembers all the callers or message ids that it may, and none is "
            "old enough to go"
        )
        activation.settle(message, Overloaded(text))
    return True


def recent_senders(activation: Activation, now: float) -> dict[str, tuple[int, float]]:
    """The senders outside turns that are to be remembered."""
    senders = activation.senders or {}
    if len(senders) > limits.CALLERS_MAX:
        limit = now - limits.DEDUP_SECONDS
        activation.senders = senders = {
            name: seen for name, seen in senders.items() if seen[1] > limit
        }
    return senders


def _inbox_seen(activation: Activation, message: Delivery) -> bool:
    letter = message.message
    if letter is None:
        timer = message.timer
        return timer is not None and (activation.timers or {}).get(timer.name) != timer
    if message.sequence <= activation.consumed:
        activation.shard.consumed(message.sequence)
        return True
    again = (
        bool(letter.sender)
        and letter.number <= (activation.senders or {}).get(letter.sender, (0, 0.0))[0]
    )
    if letter.message_id and not again:
        verdict = _check_id(activation, letter)
        if verdict is Verdict.MISMATCH:
            turn.bury(activation, message, mismatch(letter.message_id))
            return True
        if verdict is Verdict.FULL:
            activation.seen.expire(activation.now())
        again = isinstance(verdict, bytes)
    if not again:
        return False
    # A second copy of a message that was consumed: only its place in the inbox is to be noted.
    activation.consumed = message.sequence
    activation.note(message)
    return True


def outcome(activation: Activation, message_id: str) -> Outcome:
    """What became of a message that was given an id; see `AgentRef.outcome`."""
    kept = activation.seen.ids.get(message_id)
    if kept is None:
        # Of those in the inbox beyond the read-ahead, only the sequence is known.
        letters = (activation.running, *(activation.inbox or ()))
        waits = any(
            isinstance(one, int) or (one is not None and one.key == message_id) for one in letters
        )
        waits = waits or message_id in (activation.in_hand or ())
        return Outcome("waiting" if waits else "not seen")
    if kept.answer[:1] != ERROR_PREFIX:
        return Outcome("done")
    name, text, *_ = msgspec.msgpack.decode(kept.answer[1:], type=tuple[str, str, str, str])
    return Outcome("failed", name, text)
