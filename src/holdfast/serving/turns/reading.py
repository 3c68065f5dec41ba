"""Readers: they run on the committed state, beside whatever turn runs, and answer only while this
node may.

Nothing that a reader does is kept, so it needs no place in the mailbox and no commit. What it
raises is its caller's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from holdfast import limits
from holdfast.agents import guard, over
from holdfast.agents.calls import Sink
from holdfast.agents.context import Context
from holdfast.agents.guard import Raised
from holdfast.errors import BadMessage, BadState, HoldfastError
from holdfast.records.messages import NOT_OWNER, Call
from holdfast.serving.delivery import Delivery, context_of, is_same_ask, ran, running, too_late
from holdfast.serving.turns import reviving
from holdfast.serving.turns.turn import method_of, overloaded, refuse
from holdfast.serving.workers import workers
from holdfast.serving.workers.channel import Done

if TYPE_CHECKING:
    from holdfast.agents.handler import Method
    from holdfast.serving.shards.shard import Shard
    from holdfast.serving.turns.activation import Activation

_ASKED_AGAIN_SECONDS: Final = 2 * limits.ASK_TIMEOUT_SECONDS


def committed_view(activation: Activation) -> Any:
    """The committed state, frozen where its type can be."""
    if not activation.kind.shares_view:
        return activation.kind.view(activation.committed_bytes)
    if activation.view is None:
        activation.view = activation.kind.view(activation.committed_bytes)
    return activation.view


def take(activation: Activation, message: Delivery, method: Method[Any, Any, Any]) -> None:
    """Take a reader that was asked. Another attempt of one that is not answered yet gets its
    answer, and runs nothing."""
    call = message.call
    assert call is not None
    known = activation.readers.get(message.key) if activation.readers else None
    if known is not None and is_same_ask(known[0], call):
        # it is there: see above
        activation.readers[message.key] = call, message.sink  # type: ignore[index]
        return
    lasts = (
        method.waits
        or method.runs_in != "loop"
        or call.fresh
        or call.interrupted
        or not activation.loaded
    )
    if lasts and known is None and call.reference:
        readers = activation.readers = {} if activation.readers is None else activation.readers
        readers[message.key] = call, message.sink
        message.sink = partial(_answer, readers, message.key)
    if activation.loaded:
        begin(activation, message)
    else:
        activation.waiting_readers = [*(activation.waiting_readers or ()), message]


def begin(activation: Activation, message: Delivery) -> None:
    """Run a reader of an agent that is loaded; one that may have ended a process takes its turn, as
    handlers do."""
    call, shard = message.call, activation.shard
    assert call is not None
    if call.interrupted and (
        _after_an_end(shard) or activation.attempts or shard.runtime.standstills.names
    ):
        if (error := overloaded(activation, call)) is not None:
            refuse(message, error)
        else:
            activation.deliver_timer(message)
        return
    message.interrupted = False  # whoever had it before let go of it in order
    if call.fresh:
        message.read_after = True
        activation.note(message)
    else:
        read(activation, message)


def _after_an_end(shard: Shard) -> bool:
    """Whether a process ended with the shard in hand so short a while ago that callers still ask it
    again."""
    return (
        not shard.claim.clean
        or shard.runtime.clock.now() - shard.interrupted_due < _ASKED_AGAIN_SECONDS
    )


def _answer(
    readers: dict[str, tuple[Call, Sink | None]],
    key: str,
    _reference: int,
    outcome: int,
    payload: bytes,
) -> None:
    # one that was turned away may come to its end nevertheless
    call, sink = readers.pop(key, (None, None))
    if call is not None and sink is not None:
        sink(call.reference, outcome, payload)


def _spawn(
    activation: Activation,
    message: Delivery,
    method: Method[Any, Any, Any],
    work: Coroutine[Any, Any, Any],
) -> asyncio.Task[None]:
    task = activation.shard.runtime.spawn(
        _read_later(activation, message, method, work), may_be_cancelled=True
    )
    task.set_name(f"{activation.token}: {message.handler}")
    return task


def read(activation: Activation, message: Delivery) -> asyncio.Task[None] | None:
    """Run a reader on the committed state, beside whatever turn runs; return its task where it
    waits."""
    call = message.call
    assert call is not None
    if call.deadline and call.deadline < activation.now():
        refuse(message, too_late(call, activation.now()))
        return None
    try:
        if activation.broken is not None and (error := reviving.revive(activation)) is not None:
            raise error
        method, args = method_of(activation, message)
    except HoldfastError as error:
        refuse(message, error)
        return None
    context = context_of(activation, message, reads_only=True)
    running(message)
    if method.runs_in != "loop":
        job = workers.job(activation, method, message, context, activation.committed_bytes)
        work: Coroutine[Any, Any, Any] = activation.shard.runtime.workers.run(
            activation, method, job
        )
        return _spawn(activation, message, method, work)
    try:
        agent = guard.call(BadState, activation.kind.unreadable, twin, activation, context)
    except HoldfastError as error:
        refuse(message, error)
        return None
    if method.waits:
        work = _in_turn(method.bind, agent, args, context)
        return _spawn(activation, message, method, work)
    done(activation, message, method, at_once(activation, method, agent, args, context))
    return None


async def _in_turn(
    bind: Callable[..., Coroutine[Any, Any, Any]],
    agent: Any,
    args: tuple[Any, ...],
    context: Context,
) -> Any:
    over.begin_waiting(agent, context, agent._holdfast_state)
    return await bind(agent, args)


def at_once(
    activation: Activation,
    method: Method[Any, Any, Any],
    agent: Any,
    args: tuple[Any, ...],
    context: Context,
) -> Any:
    """Run it; what the agent's ``__init__`` gave its instance to sees the same state as the
    reader's own instance."""
    whole = activation.agent
    before = over.held(whole)
    over.hold(whole, over.held(agent)[0], context)
    value = guard.at_once(method.bind, agent, args)
    over.hold(whole, *before)
    return value


def twin(activation: Activation, context: Context) -> Any:
    """An instance with the committed state, that shares all else with the one that handles
    messages."""
    agent: Any = object.__new__(activation.kind.cls)
    agent.__dict__ = activation.agent.__dict__
    agent._holdfast_host = activation
    agent._holdfast_state = committed_view(activation)
    agent._holdfast_context = context
    return agent


async def _read_later(
    activation: Activation,
    message: Delivery,
    method: Method[Any, Any, Any],
    work: Coroutine[Any, Any, Any],
) -> None:
    try:
        value = await guard.until_done(work, activation.shard.runtime.life)
    except GeneratorExit as error:
        value = guard.exited(error)
    done(activation, message, method, value)


def done(
    activation: Activation, message: Delivery, method: Method[Any, Any, Any], value: Any
) -> None:
    if type(value) is Raised and guard.interrupts(value.error):
        raise value.error
    ran(
        activation.token,
        message,
        type(value.error).__name__ if type(value) is Raised else "ok",
    )
    # Liveness is checked after the read: an owner that was cut off meanwhile must not answer.
    if not activation.shard.live():
        message.turn_away(NOT_OWNER)
        if type(value) is Raised and isinstance(value.error, asyncio.CancelledError):
            raise value.error
        return
    if type(value) is Raised:
        error = guard.shown(f"{activation.kind.name}.{message.handler}", value.error)
        refuse(message, error)
        activation.shard.runtime.complaints.failed(activation.token, message, error)
        return
    try:
        if type(value) is Done:
            message.reply = value.reply
        elif type(value) is method.plain_reply:  # no code of users' runs
            message.reply = method.encode_reply(value)
        else:
            what = f"the reply of {activation.kind.name}.{message.handler}"
            message.reply = guard.call(BadMessage, what, method.encode_reply, value)
    except HoldfastError as error:
        refuse(message, error)
        return
    message.respond()
