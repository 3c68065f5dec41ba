"""One turn: run the handler on the uncommitted state, and put what it did into the tables that the
next batch writes.

A handler without an ``await`` is run to its end at once, without a task: a task per turn is a third
of the cost of one. One that waits runs as a task, and one that would stall the loop in a thread or
a process (`workers`). A handler that raises costs one decode: the state goes back to the bytes of
the last finished turn. The state is encoded after each turn, so that its type and size are checked
while the guilty turn is known.

A numbered call that fails is remembered as well: its caller is told that it will never happen, so
an older attempt that turns up later must not run.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from holdfast import codec, limits
from holdfast.agents import guard, over
from holdfast.agents.context import Context
from holdfast.agents.guard import Raised
from holdfast.errors import (
    BadMessage,
    HandlerFailed,
    HoldfastError,
    Overloaded,
    TooLarge,
    UnknownKind,
    to_wire,
)
from holdfast.records.messages import BUSY, ERROR_PREFIX, Call, DeadRecord, InboxMessage
from holdfast.serving import delivery
from holdfast.serving.delivery import Delivery, context_of, error_bytes, refusal_bytes
from holdfast.serving.turns import attempts, reviving
from holdfast.serving.workers import workers
from holdfast.serving.workers.channel import Done

if TYPE_CHECKING:
    from holdfast.agents.handler import Method
    from holdfast.serving.turns.activation import Activation


def refuse(message: Delivery, error: HoldfastError) -> None:
    """Answer a call that saw nothing of the agent's state.

    Of one with an id nobody can say that nothing was done: it may have been carried out before. It
    is to be tried again.
    """
    if isinstance(error, Overloaded) and message.call is not None and message.call.message_id:
        message.turn_away(BUSY)
        return
    message.error = refusal_bytes(error)
    message.respond()


def overloaded(activation: Activation, call: Call) -> Overloaded | None:
    """Why no more calls can be taken now. What a turn asks for is part of work that was taken, and
    is not refused for the node's sake."""
    waiting = len(activation.pending) + len(activation.in_batch)
    if activation.mailbox:
        waiting += len(activation.mailbox)
    if waiting >= (most := activation.kind.mailbox_max):
        text = f"{most} messages wait for {activation.token}"
        return Overloaded(f"{text}: call it more slowly, or spread the work over more agents")
    if activation.shard.committer.waiting >= limits.UNWRITTEN_TURNS_MAX and not call.path:
        text = f"{limits.UNWRITTEN_TURNS_MAX} turns of one node wait to be written"
        return Overloaded(f"{text}: call more slowly, or add nodes and servers")
    return None


def method_of(
    activation: Activation, message: Delivery
) -> tuple[Method[Any, Any, Any], tuple[Any, ...]]:
    method = activation.kind.methods.get(message.handler)
    if method is None:
        raise activation.kind.lacks(message.handler)
    if method.plain:  # no code of users' runs
        return method, method.decode_arguments(message.arguments)
    what = f"the arguments of {activation.kind.name}.{method.name}"
    return method, guard.call(BadMessage, what, method.decode_arguments, message.arguments)


# Running ------------------------------------------------------------------------------------------


def start(activation: Activation, message: Delivery) -> None:
    """Run the handler: to its end where it does not wait, else as a task."""
    activation.running = None  # an interrupted message was it while it waited for its mark
    if message.attempts >= limits.ATTEMPTS_MAX:
        bury(
            activation,
            message,
            TooLarge(f"what {message.handler} did to {activation.token} cannot be written"),
        )
        return
    try:
        if activation.broken is not None and (error := reviving.revive(activation)) is not None:
            raise error
        method, args = method_of(activation, message)
        if method.reads_only:
            raise BadMessage(
                f"{activation.kind.name}.{method.name} is a reader: it can be asked, not sent"
            )
    except HoldfastError as error:
        _failed(activation, message, error)
        return
    activation.running = message
    delivery.running(message)
    if method.waits or method.runs_in != "loop":
        spawn(
            activation,
            message,
            _run(activation, message, method, args, context_of(activation, message)),
        )
        return
    agent = activation.agent
    over.begin(agent, activation.state)
    value = guard.at_once(method.bind, agent, args)
    state, context = over.end(agent)
    if type(value) is Raised:
        raised(activation, message, value.error)
    else:
        finished(activation, message, method, context, value, state)


def spawn(activation: Activation, message: Delivery, work: Coroutine[Any, Any, None]) -> None:
    """Run what has the agent's next turn in its hands. It may be cancelled before its first step;
    then the turn fails here."""

    def ended(task: asyncio.Task[Any]) -> None:
        if activation.running is message and activation.task is task:
            cancelled(activation, message)

    activation.task = task = activation.shard.runtime.spawn(work, may_be_cancelled=True)
    task.set_name(f"{activation.token}: {message.handler}")
    task.add_done_callback(ended)


async def _run(
    activation: Activation,
    message: Delivery,
    method: Method[Any, Any, Any],
    args: tuple[Any, ...],
    context: Context,
) -> None:
    runtime, agent = activation.shard.runtime, activation.agent
    over.begin_waiting(agent, context, activation.state)
    if method.runs_in == "loop":
        work: Any = guard.begun(method.bind, agent, args)
    else:
        work = _off_loop(activation, message, method, context)
    try:
        value = await guard.until_done(work, runtime.life)
    except GeneratorExit as error:
        value = guard.exited(error)
    state = over.end_waiting(agent, context)
    if activation.running is message:
        if type(value) is Raised:
            raised(activation, message, value.error)
        else:
            finished(activation, message, method, context, value, state)
    elif type(value) is Raised and isinstance(
        value.error, (asyncio.CancelledError, *guard.INTERRUPTIONS)
    ):
        raise value.error


async def _off_loop(
    activation: Activation, message: Delivery, method: Method[Any, Any, Any], context: Context
) -> Done:
    """Run the handler beside the loop, and see that what it sent has a place."""
    runtime = activation.shard.runtime
    job = workers.job(activation, method, message, context, activation.state_bytes)
    done = await runtime.workers.run(activation, method, job)
    for sent in done.outgoing:
        await runtime.router.place(sent.token, None)
    if not runtime.life.live():
        runtime.life.look()
        raise asyncio.CancelledError
    return done


def raised(activation: Activation, message: Delivery, error: BaseException) -> None:
    """The state goes back; an error of our own keeps its class, a user's becomes
    `HandlerFailed`."""
    pass_on(activation, error)
    delivery.ran(activation.token, message, type(error).__name__)
    title = f"{activation.kind.name}.{message.handler}"
    try:
        failure = guard.shown(title, error)  # its text may take the time of the turn
    except Exception:  # no stack or memory is left
        failure = HandlerFailed(f"{title}: {(name := type(error).__name__)}", name)
    finally:
        activation.running = None
        reviving.restore(activation)
    _failed(activation, message, failure, ran=True)
    activation.pump()


def pass_on(activation: Activation, error: BaseException) -> None:
    """Raise it where it means the whole process: the turn never was, and its message is not
    answered."""
    if guard.interrupts(error):
        reviving.restore(activation)
        activation.running = None
        raise error


def cancelled(activation: Activation, message: Delivery) -> bool:
    """End a turn that its caller gave up; false where the activation itself has come to its end."""
    if not activation.shard.active or activation.running is not message:
        return False
    raised(activation, message, HandlerFailed("the handler was cancelled", "CancelledError"))
    return True


def finished(
    activation: Activation,
    message: Delivery,
    method: Method[Any, Any, Any],
    context: Context | None,
    value: Any,
    state: Any,
) -> None:
    """The handler returned: its state, reply, timers and messages wait for the batch. ``context``:
    if it was asked for."""
    try:
        what = f"what {activation.kind.name}.{method.name} left cannot be kept"
        found = guard.call(BadMessage, what, left, activation, method, context, value, state)
        message.reply, state_bytes, state = found
        digests = _digests(activation, message)
    except BaseException as error:
        raised(activation, message, error)
        return
    delivery.ran(activation.token, message, "ok")
    activation.state = state
    if state_bytes != activation.state_bytes:
        activation.state_bytes = state_bytes
    if context is not None:
        if context.timers:
            _keep_timers(activation, context)
        message.outgoing = context.outgoing
    activation.running = None
    _consume(activation, message, digests)
    activation.note(message)
    activation.pump()


def left(
    activation: Activation,
    method: Method[Any, Any, Any],
    context: Context | None,
    value: Any,
    state: Any,
) -> tuple[bytes, bytes, Any]:
    """The reply, and the state as bytes and as these give it back."""
    kind = activation.kind
    if type(value) is Done:
        assert context is not None
        context.outgoing, context.timers, activation.generation = (
            value.outgoing,
            value.timers,
            value.generation,
        )
        return value.reply, value.state, kind.load_state(value.state, kind.state_version)
    return method.encode_reply(value), *kind.keep(state)


def _keep_timers(activation: Activation, context: Context) -> None:
    timers = activation.timers if activation.timers is not None else {}
    for name, timer in (context.timers or {}).items():
        if timer is None:
            timers.pop(name, None)
        else:
            timers[name] = timer
            activation.shard.watch(activation.token, timer)
    activation.timers = timers or None


def _digests(activation: Activation, message: Delivery) -> tuple[int, int]:
    """Of a message with an id: what it is, and what it means, 0 where that is the same. Code of
    users may run for it."""
    of = message.call or message.message
    if of is None or not of.message_id:
        return 0, 0
    arguments = of.arguments
    meaning = delivery.meaning(activation.kind.methods.get(of.handler), arguments)
    digest = delivery.digest(of.handler, arguments)
    canonical = digest if meaning is arguments else delivery.digest(of.handler, meaning)
    return digest, canonical * (canonical != digest)


def _consume(activation: Activation, message: Delivery, digests: tuple[int, int]) -> None:
    """Put into the tables of the record that this message was handled."""
    call = message.call
    if activation.attempts:
        attempts.handled(activation, message)
    if call is not None:
        _remember(activation, call, message.reply, digests)
    elif (letter := message.message) is not None:
        activation.consumed = message.sequence
        now = activation.now()
        if letter.sender:
            if activation.senders is None:
                activation.senders = {}
            activation.senders[letter.sender] = (letter.number, now)
        if letter.message_id:
            until = now + activation.kind.dedup_seconds
            activation.seen.note_id(letter.message_id, until, digests[0], message.reply, digests[1])
    elif (timer := message.timer) is not None:
        attempts.rang(activation, message)
        if activation.timers is not None and activation.timers.get(timer.name) == timer:
            del activation.timers[timer.name]


def _remember(activation: Activation, call: Call, answer: bytes, digests: tuple[int, int]) -> None:
    if call.message_id:
        until = max(
            call.keep_until,
            activation.now() + activation.kind.dedup_seconds * (not call.keep_until),
        )
        activation.seen.note_id(call.message_id, until, digests[0], answer, digests[1])
    elif call.number:
        activation.seen.note_caller(call.caller, call.number, call.low, call.deadline, answer)


# Failing ------------------------------------------------------------------------------------------


def _failed(
    activation: Activation, message: Delivery, error: HoldfastError, ran: bool = False
) -> None:
    """A message without an effect: the caller gets the error; a durable message is tried again,
    then buried."""
    call = message.call
    if call is not None:
        says = ran or activation.broken is not None
        if ran and (call.number or call.message_id):
            message.reply = ERROR_PREFIX + error_bytes(error)
            _consume(activation, message, _digests(activation, message))
            activation.note(message)
        else:
            activation.settle(message, error)
        if says:
            activation.shard.runtime.complaints.failed(activation.token, message, error)
        return
    message.attempts += 1
    if message.attempts >= limits.ATTEMPTS_MAX or isinstance(error, (BadMessage, UnknownKind)):
        bury(activation, message, error)
        return
    seconds = limits.BACKOFF_SECONDS_MIN * 4**message.attempts
    if message.timer is not None:
        activation.shard.later(seconds, activation.shard.hand, activation.token, message)
    else:
        if activation.inbox is None:
            activation.inbox = deque()
        activation.inbox.appendleft(message)
        activation.retry_at = activation.shard.runtime.loop.time() + seconds
        activation.shard.later(seconds, _reopen, activation)
    activation.shard.runtime.complaints.failed(activation.token, message, error)


def never(activation: Activation, message: Delivery, error: HoldfastError) -> None:
    """Refuse a call that waits, for good: another attempt of it, which may be on its way, must not
    run. A turn may run."""
    assert message.call is not None
    message.reply = ERROR_PREFIX + error_bytes(error)
    _remember(activation, message.call, message.reply, _digests(activation, message))
    activation.note(message)


def _reopen(activation: Activation) -> None:
    activation.retry_at = 0.0
    activation.pump()


def bury(activation: Activation, message: Delivery, error: HoldfastError) -> None:
    """Give up a message: its caller gets the error, a durable one becomes a dead letter."""
    if message.call is None:
        letter = message.message or InboxMessage(
            message.handler, message.arguments, sent_at=activation.now()
        )
        dead = DeadRecord(letter, to_wire(error), max(message.attempts, 1), activation.now())
        message.dead = codec.seal(codec.encode_raw(dead))
    message.reply = ERROR_PREFIX + error_bytes(error)
    _consume(activation, message, _digests(activation, message))
    activation.note(message)
    if message.call is None:
        activation.shard.runtime.complaints.failed(activation.token, message, error, buried=True)
