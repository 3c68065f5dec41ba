"""The fast path: an ask that finds its agent at rest, from its frame to the next batch in one function.

Nearly all asks are of this sort: a numbered one that is new, for a handler that waits for nothing, of an agent in memory
that does nothing else. What `Activation.deliver`, `repeats.already_seen`, `turn.start` and `turn.finished` do for one is
done here in the same order, without what only others need: a place in the mailbox or among those in hand, a context that
nobody asks for. Whatever is out of the ordinary is left to them, before the handler ran or after it.
"""

from __future__ import annotations

from typing import Any, Final

from msgspec.structs import astuple

from holdfast import limits
from holdfast.agents import turn
from holdfast.agents.activation import Activation
from holdfast.agents.mailbox import Delivery, Sink
from holdfast.agents.messages import Call
from holdfast.codec import encode_raw

_SMALL_BYTES: Final = 64 * 1024
"""A state with its replies that needs no look at what it may be at most."""


def take(activation: Activation, call: Call, sink: Sink) -> bool:
    """Do all of a call's turn; False where it is to go the general way, and nothing was done yet."""
    method = activation.kind.methods.get(call.handler)
    shard = activation.shard
    committer = shard.committer
    seen = activation.seen
    number = call.number
    low = call.low
    caller = seen.callers.get(call.caller)
    if (
        method is None
        or not method.at_once
        or call.message_id
        or number < (low or 1)
        or call.suspect
        or not activation.loaded
        or activation.running is not None
        or activation.mailbox
        or activation.inbox
        or activation.held
        or activation.solo
        or activation.attempts
        or activation.outgoing_records
        or not shard.active
        or shard.draining
        or committer.waiting >= limits.UNWRITTEN_TURNS_MAX
        or seen.bytes_kept > _SMALL_BYTES
    ):
        return False
    if caller is None:
        if len(seen.callers) >= limits.CALLERS_MAX:
            return False
    elif number < caller.low or number in caller.answers:
        return False
    runtime = shard.runtime
    if call.deadline < runtime.clock.now() or not runtime.life.live():
        return False
    if activation.pending and len(activation.pending) + len(activation.in_batch) >= activation.kind.mailbox_max:
        return False
    try:
        args = astuple(method.decode_ordered(call.arguments))
    except Exception:  # by name, or not what the handler takes
        return False

    message = Delivery(call.handler, call.arguments, "", call, sink)
    activation.running = message
    agent = activation.agent
    agent.state = activation.state
    agent._context = None
    agent._message = message
    try:
        method.function(agent, *args).send(None)
    except StopIteration as end:
        value: Any = end.value
    except Exception as error:
        turn.raised(activation, message, error)
        return True
    else:
        raise AssertionError(f"{method} waited, although it has no await")

    state = agent.state
    context = agent._context
    try:
        reply = encode_raw(value)
        state_bytes = encode_raw(state)
        view = activation.kind.decode_view(state_bytes)
    except Exception:
        reply, state_bytes, view = b"", b"", None
    if (
        not state_bytes
        or type(value) is not method.plain_reply
        or len(reply) + len(state_bytes) > _SMALL_BYTES
        or (context is not None and (context.timers is not None or context.outgoing is not None))
    ):
        turn.finished(activation, message, method, agent.context, value)
        return True
    activation.running = None
    activation.state = state
    if state_bytes != activation.state_bytes:
        activation.state_bytes = state_bytes
        activation.next_view = view
    if caller is None or low < number:
        seen.check_caller(call.caller, number, low)  # frees the answers below
        seen.note_caller(call.caller, number, low, call.deadline, reply)
    else:  # no other ask of this caller is open
        answers = caller.answers
        seen.bytes_kept += len(reply) - sum(map(len, answers.values()))
        answers.clear()
        answers[number] = reply
        caller.low = low
        if call.deadline > caller.deadline:
            caller.deadline = call.deadline
    message.reply = reply
    message.plain = True
    activation.pending.append(message)
    committer.dirty[activation] = None
    committer.waiting += 1
    if committer.waiting >= committer.enough:
        committer.wake.set()
    if activation.mailbox or activation.inbox:  # what the handler told its own agent
        activation.pump()
    return True
