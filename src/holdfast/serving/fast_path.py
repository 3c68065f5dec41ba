"""The fast path: an ask that finds its agent at rest, from its frame to the next batch in one
function, and likewise readers.

Nearly all asks are of this sort: a numbered one that is new, for a handler that waits for nothing,
of an agent in memory that does nothing else. What `Activation.deliver`, `repeats.already_seen`,
`turn.start` and `turn.finished` do for one is done here, without what only others need: a place in
the mailbox, a place in hand (`repeats.in_hand` finds it when another attempt comes before its batch
is written), a context that nobody asks for. Whatever is out of the ordinary is left to them, before
the handler ran or after it. What is written out here of `Seen` and of the codecs is for speed
alone: as calls it cost a node 7 % more instructions an ask. `_read` does the same for a reader that
was asked for the first time and finds the state decoded: what `reading.take` and what follows it
do.
"""

from __future__ import annotations

from typing import Any, Final

from msgspec.structs import astuple

from holdfast import limits
from holdfast.agents import over
from holdfast.agents.calls import Sink
from holdfast.agents.context import Context
from holdfast.agents.guard import Raised, fresh
from holdfast.agents.handler import Method
from holdfast.agents.over import PAST
from holdfast.codec import encode_raw
from holdfast.records.messages import OK, Call
from holdfast.serving.delivery import Delivery
from holdfast.serving.turns import reading, turn
from holdfast.serving.turns.activation import Activation

SMALL_BYTES: Final = limits.BLOB_THRESHOLD_BYTES // 4
"""A larger state or reply is left to others, and so are more answers that are kept: together they
may need a blob."""
assert (
    min(limits.STATE_BYTES_MAX, limits.REPLY_BYTES_MAX, limits.ANSWERS_BYTES_MAX) > SMALL_BYTES
), "or it is refused"


def take(activation: Activation, call: Call, sink: Sink) -> bool:
    """Do all of a call's turn; False where it is to go the general way, and nothing was done
    yet."""
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
        or call.interrupted
        or not activation.at_rest
        or activation.running is not None
        or activation.in_hand
        or not shard.active
        or shard.draining
        or committer.waiting >= limits.UNWRITTEN_TURNS_MAX
        or seen.bytes_kept > SMALL_BYTES
        or len(activation.state_bytes) > SMALL_BYTES
    ):
        return method is not None and method.reads_at_once and _read(activation, method, call, sink)
    if caller is None:
        if len(seen.callers) >= limits.CALLERS_MAX:
            return False
    elif number < caller.low or number in caller.answers:
        return False
    clock = shard.runtime.clock
    if call.deadline < clock.now() or clock.monotonic() >= shard.runtime.life.live_until:
        return False
    pending, in_batch = activation.pending, activation.in_batch
    if (pending or in_batch) and len(pending) + len(in_batch) >= activation.kind.mailbox_max:
        return False
    try:
        args = astuple(method.decode_at_once(call.arguments))
    except BaseException as error:  # by name, or not what the handler takes
        turn.pass_on(activation, error)
        return False

    if caller is not None and low > caller.low:
        seen.free_below(caller, low)
    message = Delivery(call.handler, call.arguments, "", call, sink)
    activation.running = message
    agent = activation.agent
    agent._holdfast_state = activation.state  # from here to there: `over.begin`, `over.end`
    agent._holdfast_context = None
    try:
        fresh().run(method.function(agent, *args).send, None)
        raise RuntimeError(f"{method} waited, although it has no await")
    except StopIteration as end:
        value: Any = end.value
    except BaseException as error:
        over.end(agent)
        activation.take_in_hand(message)
        turn.raised(activation, message, error)
        return True

    context = agent._holdfast_context
    try:
        live = agent._holdfast_state
    except AttributeError:  # the handler deleted it
        live = PAST
    agent._holdfast_state = agent._holdfast_context = PAST
    fits = context is None
    if context is not None:
        context._over = True
        fits = context.outgoing is None and context.timers is None
    if fits:
        try:
            kind = activation.kind
            # no code of users' runs
            if type(value) is method.plain_reply and type(live) is kind.plain:
                reply = encode_raw(value)
                state_bytes = kind.encode_bytes(live)
                state = kind.decode_state(state_bytes)  # what a reload would give: `Kind.keep`
                if kind.exact is None:
                    fits = not kind.losses.find(live, state_bytes, state)
            else:
                reply, state_bytes, state = fresh().run(
                    turn.left, activation, method, None, value, live
                )
            fits = fits and len(reply) <= SMALL_BYTES and len(state_bytes) <= SMALL_BYTES
        except BaseException as error:
            turn.pass_on(activation, error)
            fits = False
    if not fits:
        activation.take_in_hand(message)
        turn.finished(activation, message, method, context, value, live)
        return True
    activation.running = None
    activation.state = state
    if state_bytes != activation.state_bytes:
        activation.state_bytes = state_bytes
    if caller is None:
        seen.note_caller(call.caller, number, low, call.deadline, reply)
    else:
        caller.answers[number] = reply
        seen.bytes_kept += len(reply)
        if call.deadline > caller.deadline:
            caller.deadline = call.deadline
    message.reply = reply
    message.fast = True
    activation.pending.append(message)
    committer.dirty[activation] = None
    committer.waiting += 1
    if committer.waiting >= committer.enough:
        committer.wake()
    if activation.mailbox or activation.inbox:  # what the handler told its own agent
        activation.pump()
    return True


def _read(activation: Activation, method: Method[Any, Any, Any], call: Call, sink: Sink) -> bool:
    """Do all that a reader asks for; False where it is to go the general way, and nothing was done
    yet."""
    shard = activation.shard
    view = activation.view
    runtime = shard.runtime
    if (
        view is None
        or not activation.kind.has_plain_attributes
        or call.fresh
        or call.interrupted
        or activation.readers
        or activation.broken is not None
        or not activation.loaded
        or not shard.active
        or shard.draining
        or call.deadline < runtime.clock.now()
    ):
        return False
    try:
        args = astuple(method.decode_ordered(call.arguments))
    except Exception:  # by name, or not what the reader takes
        return False

    activation.last_used = runtime.loop.time()
    message = Delivery(call.handler, call.arguments, "", call, sink)
    context = Context(activation, message.key, call.deadline, call.keep_until, call.path, True)
    whole = activation.agent
    agent = object.__new__(activation.kind.cls)  # from here on: `reading.twin`, `reading.at_once`
    agent.__dict__ = whole.__dict__
    agent._holdfast_host = activation
    agent._holdfast_state = view
    agent._holdfast_context = context
    before = whole._holdfast_state, whole._holdfast_context
    whole._holdfast_state, whole._holdfast_context = view, context
    try:
        fresh().run(method.function(agent, *args).send, None)
        value: Any = Raised(RuntimeError(f"{method} waited, although it has no await"))
    except StopIteration as end:
        value = end.value
    except BaseException as error:
        value = Raised(error)
    whole._holdfast_state, whole._holdfast_context = before
    if (
        type(value) is method.plain_reply
        and shard.active
        and runtime.clock.monotonic() < runtime.life.live_until
    ):
        try:
            reply = encode_raw(value)
        except Exception:
            reply = b""  # it cannot be sent
        if 0 < len(reply) <= SMALL_BYTES:
            sink(call.reference, OK, reply)
            return True
    try:
        reading.done(activation, message, method, value)
    finally:
        del value  # an error holds this frame, which holds the arguments and the state
    return True
