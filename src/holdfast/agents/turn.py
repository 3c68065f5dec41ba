"""One turn: run the handler on the uncommitted state, and put what it did into the tables that the next batch writes.

A handler without an ``await`` is run to its end at once, without a task: a task per turn is a third of the cost of one.
One that waits runs as a task, and one that would stall the loop in a thread or a process (`workers`). A handler that
raises costs one decode: the state goes back to the bytes of the last finished turn. The state is encoded after each turn, so
that its type and size are checked while the guilty turn is known.

A numbered call that fails is remembered as well: its caller is told that it will never happen, so an older attempt that
turns up later must not run.
"""

from __future__ import annotations

import asyncio
import types
from collections import deque
from collections.abc import Coroutine, Generator
from typing import TYPE_CHECKING, Any, Final

from holdfast import codec, limits
from holdfast.agents import mailbox, workers
from holdfast.agents.context import Context, context_of
from holdfast.agents.mailbox import ERROR_MARK, Delivery, error_bytes
from holdfast.agents.messages import BUSY, NOT_OWNER, Call, DeadRecord, InboxMessage
from holdfast.agents.workers import Done
from holdfast.errors import (
    BadMessage,
    DeadlineExceeded,
    HandlerFailed,
    HoldfastError,
    Overloaded,
    TooLarge,
    UnknownKind,
    to_wire,
)

if TYPE_CHECKING:
    from holdfast.agents.activation import Activation
    from holdfast.agents.handler import _Method
    from holdfast.cluster.life import Life

ANY_MESSAGE: Final = "*"
"""The mark of a suspect for any message of an agent; the others name one."""


def refuse(message: Delivery, error: HoldfastError) -> None:
    """Answer a call that saw nothing of the agent's state.

    Of one with an id nobody can say that nothing was done: it may have been carried out before. It is to be tried again.
    """
    if isinstance(error, Overloaded) and message.call is not None and message.call.message_id:
        message.turn_away(BUSY)
        return
    message.error = error_bytes(error)
    message.respond()


def overloaded(activation: Activation, call: Call) -> Overloaded | None:
    """Why no more calls can be taken now. What a turn asks for is part of work that was taken, and is not refused for
    the node's sake."""
    waiting = len(activation.pending) + len(activation.in_batch)
    if activation.mailbox:
        waiting += len(activation.mailbox)
    if waiting >= (most := activation.kind.mailbox_max):
        text = f"{most} messages wait for {activation.token}"
        return Overloaded(f"{text}: call it more slowly, or spread the work over more agents")
    if activation.shard.committer.waiting >= limits.UNWRITTEN_TURNS_MAX and not call.chain:
        text = f"{limits.UNWRITTEN_TURNS_MAX} turns of one node wait to be written"
        return Overloaded(f"{text}: call more slowly, or add nodes and servers")
    return None


def _method(activation: Activation, message: Delivery) -> tuple[_Method[Any, Any, Any], tuple[Any, ...]]:
    method = activation.kind.methods.get(message.handler)
    if method is None:
        raise UnknownKind(f"{activation.kind.name} has no handler {message.handler!r}")
    return method, method.decode_arguments(message.arguments)


# Running -----------------------------------------------------------------------------------------------------------


def start(activation: Activation, message: Delivery) -> None:
    """Run the handler: to its end where it does not wait, else as a task."""
    activation.running = None  # a suspect was it while it waited for its mark
    if message.attempts >= limits.ATTEMPTS_MAX:
        bury(activation, message, TooLarge(f"what {message.handler} did to {activation.token} cannot be written"))
        return
    try:
        method, args = _method(activation, message)
        if method.reads_only:
            raise BadMessage(f"{activation.kind.name}.{method.name} is a reader: it can be asked, not sent")
    except HoldfastError as error:
        _failed(activation, message, error)
        return
    activation.running = message
    if method.waits or method.runs_in != "loop":
        context = context_of(activation, message)
        activation.task = activation.shard.runtime.spawn(_run(activation, message, method, args, context))
        return
    agent = activation.agent
    agent.state = activation.state
    agent._holdfast_context = None
    try:
        method.bind(agent, args).send(None)
    except StopIteration as end:
        finished(activation, message, method, agent._holdfast_context, end.value)
    except Exception as error:
        raised(activation, message, error)
    else:
        raise AssertionError(f"{method} waited, although it has no await")


async def _run(
    activation: Activation,
    message: Delivery,
    method: _Method[Any, Any, Any],
    args: tuple[Any, ...],
    context: Context,
) -> None:
    runtime = activation.shard.runtime
    activation.agent.state = activation.state
    activation.agent._holdfast_context = context
    try:
        if method.runs_in == "loop":
            value = await _while_live(method.bind(activation.agent, args), runtime.life)
        else:
            value = await _off_loop(activation, message, method, context)
    except asyncio.CancelledError:
        if not cancelled(activation, message):
            raise
    except Exception as error:
        if activation.running is message:
            raised(activation, message, error)
    else:
        if activation.running is message:
            finished(activation, message, method, context, value)


async def _off_loop(
    activation: Activation, message: Delivery, method: _Method[Any, Any, Any], context: Context
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


@types.coroutine
def _while_live(work: Coroutine[Any, Any, Any], life: Life) -> Generator[Any, Any, Any]:
    """Await it, and cancel it where it would go on after a wait in which this node ceased to be live.

    A node that was frozen finds timers and messages that are due before it finds out that it was replaced.
    """
    error: BaseException | None = None
    while True:
        try:
            waits_for = work.send(None) if error is None else work.throw(error)
        except StopIteration as end:
            return end.value
        error = None
        try:
            yield waits_for
        except BaseException as found:
            error = found
        if error is None and not life.live():
            life.look()
            error = asyncio.CancelledError()


def raised(activation: Activation, message: Delivery, error: Exception) -> None:
    """The state goes back; an error of our own keeps its class, a user's becomes `HandlerFailed`."""
    activation.state = activation.kind.load_state(activation.state_bytes, activation.kind.state_version)
    activation.running = None
    _failed(activation, message, mailbox.shown(activation.kind.name, message.handler, error), ran=True)
    activation.pump()


def cancelled(activation: Activation, message: Delivery) -> bool:
    """End a turn that its caller gave up; false where the activation itself has come to its end."""
    if not activation.shard.active or activation.running is not message:
        return False
    raised(activation, message, HandlerFailed("the handler was cancelled", "CancelledError"))
    return True


def finished(
    activation: Activation, message: Delivery, method: _Method[Any, Any, Any], context: Context | None, value: Any
) -> None:
    """The handler returned: its state, reply, timers and messages wait for the batch. ``context``: if it was asked for."""
    kind = activation.kind
    try:
        if isinstance(value, Done):
            message.reply, state_bytes, activation.generation = value.reply, value.state, value.generation
            assert context is not None
            context.outgoing, context.timers = value.outgoing, value.timers
            state = kind.load_state(state_bytes, kind.state_version)
        else:
            message.reply = method.encode_reply(value)
            state_bytes, state = kind.keep(activation.agent.state)
    except HoldfastError as error:
        raised(activation, message, error)
        return
    except Exception as error:  # a user's own codec or property
        raised(activation, message, BadMessage(f"{type(error).__name__}: {error}"))
        return
    activation.state = state
    if state_bytes != activation.state_bytes:
        activation.state_bytes = state_bytes
    if context is not None:
        if context.timers:
            _keep_timers(activation, context)
        message.outgoing = context.outgoing
    activation.running = None
    _consume(activation, message)
    activation.note(message)
    activation.pump()


def _keep_timers(activation: Activation, context: Context) -> None:
    timers = activation.timers if activation.timers is not None else {}
    for name, timer in (context.timers or {}).items():
        if timer is None:
            timers.pop(name, None)
        else:
            timers[name] = timer
            activation.shard.watch(activation.token, timer)
    activation.timers = timers or None


def _consume(activation: Activation, message: Delivery) -> None:
    """Put into the tables of the record that this message was handled."""
    call = message.call
    if activation.attempts:
        activation.attempts.pop(message.key, None)
        # A mark that was loaded stays, where suspects come: behind it a process ended, by one of them.
        if not message.suspect or (activation.probation and not activation.shard.has_suspects(activation)):
            activation.attempts.pop(ANY_MESSAGE, None)
        activation.attempts = activation.attempts or None
    if call is not None:
        if call.message_id:
            until = max(call.keep_until, activation.now() + activation.kind.dedup_seconds * (not call.keep_until))
            _note_id(activation, call, until, message.reply)
        elif call.number:
            activation.seen.note_caller(call.caller, call.number, call.low, call.deadline, message.reply)
    elif (letter := message.message) is not None:
        activation.consumed = message.sequence
        now = activation.now()
        if letter.sender:
            if activation.senders is None:
                activation.senders = {}
            activation.senders[letter.sender] = (letter.number, now)
        if letter.message_id:
            until = now + activation.kind.dedup_seconds
            _note_id(activation, letter, until, message.reply)
    elif (timer := message.timer) is not None and (activation.timers or {}).get(timer.name) == timer:
        assert activation.timers is not None
        del activation.timers[timer.name]


def _note_id(activation: Activation, message: Call | InboxMessage, until: float, reply: bytes) -> None:
    handler, arguments = message.handler, message.arguments
    digest = mailbox.digest(handler, arguments)
    canonical = mailbox.canonical_digest(activation.kind.methods.get(handler), handler, arguments)
    activation.seen.note_id(message.message_id, until, digest, reply, canonical * (canonical != digest))


# Failing -----------------------------------------------------------------------------------------------------------


def _failed(activation: Activation, message: Delivery, error: HoldfastError, ran: bool = False) -> None:
    """A message without an effect: the caller gets the error; a durable message is tried again, then buried."""
    call = message.call
    if call is not None:
        if ran and (call.number or call.message_id):
            message.reply = ERROR_MARK + error_bytes(error)
            _consume(activation, message)
            activation.note(message)
        else:
            activation.settle(message, error)
        return
    message.attempts += 1
    if message.attempts >= limits.ATTEMPTS_MAX or isinstance(error, (BadMessage, UnknownKind)):
        bury(activation, message, error)
        return
    seconds = limits.BACKOFF_SECONDS_MIN * 4**message.attempts
    if message.timer is not None:
        activation.shard.later(seconds, activation.deliver_timer, message)
        return
    if activation.inbox is None:
        activation.inbox = deque()
    activation.inbox.appendleft(message)
    activation.retry_at = activation.shard.runtime.loop.time() + seconds
    activation.shard.later(seconds, _reopen, activation)


def _reopen(activation: Activation) -> None:
    activation.retry_at = 0.0
    activation.pump()


def bury(activation: Activation, message: Delivery, error: HoldfastError) -> None:
    """Give up a message: its caller gets the error, a durable one becomes a dead letter."""
    if message.call is None:
        letter = message.message or InboxMessage(message.handler, message.arguments, sent_at=activation.now())
        dead = DeadRecord(letter, to_wire(error), max(message.attempts, 1), activation.now())
        message.dead = codec.seal(codec.encode_raw(dead))
    message.reply = ERROR_MARK + error_bytes(error)
    _consume(activation, message)
    activation.note(message)


# Reading -----------------------------------------------------------------------------------------------------------


def committed_view(activation: Activation) -> Any:
    """The committed state, frozen where its type can be. Raises `BadState`."""
    if not activation.kind.shares_view:
        return activation.kind.view(activation.committed_bytes)
    if activation.view is None:
        activation.view = activation.kind.view(activation.committed_bytes)
    return activation.view


def read(activation: Activation, message: Delivery) -> None:
    """Run a reader on the committed state, beside whatever turn runs."""
    call = message.call
    assert call is not None
    if call.deadline and call.deadline < activation.now():
        refuse(message, DeadlineExceeded("the deadline passed before the message was started"))
        return
    try:
        method, args = _method(activation, message)
    except HoldfastError as error:
        refuse(message, error)
        return
    context = context_of(activation, message, reads_only=True)
    if method.runs_in != "loop":
        job = workers.job(activation, method, message, context, activation.committed_bytes)
        work = activation.shard.runtime.workers.run(activation, method, job)
        activation.shard.runtime.spawn(_read_later(activation, message, method, work))
        return
    agent = object.__new__(activation.kind.cls)
    agent.__dict__ = activation.agent.__dict__
    try:
        agent.state = committed_view(activation)
    except HoldfastError as error:
        refuse(message, error)
        return
    agent._holdfast_context = context
    run = method.bind(agent, args)
    if method.waits:
        activation.shard.runtime.spawn(_read_later(activation, message, method, run))
        return
    try:
        run.send(None)
    except StopIteration as end:
        _read_done(activation, message, method, end.value)
    except Exception as error:
        refuse(message, mailbox.shown(activation.kind.name, message.handler, error))


async def _read_later(
    activation: Activation, message: Delivery, method: _Method[Any, Any, Any], run: Coroutine[Any, Any, Any]
) -> None:
    try:
        value = await run
    except Exception as error:
        refuse(message, mailbox.shown(activation.kind.name, message.handler, error))
    else:
        _read_done(activation, message, method, value)


def _read_done(activation: Activation, message: Delivery, method: _Method[Any, Any, Any], value: Any) -> None:
    # Liveness is checked after the read: an owner that was cut off meanwhile must not answer.
    if not activation.shard.live():
        message.turn_away(NOT_OWNER)
        return
    try:
        message.reply = value.reply if isinstance(value, Done) else method.encode_reply(value)
    except HoldfastError as error:
        refuse(message, error)
        return
    message.respond()
