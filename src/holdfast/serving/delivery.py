"""A message in an agent's hands: from its arrival until its turn is committed and answered."""

from __future__ import annotations

import time
from asyncio import Future
from typing import Any

import msgspec

from holdfast import codec, errors, ids, telemetry
from holdfast.agents import guard
from holdfast.agents.calls import Sink
from holdfast.agents.context import Context, TurnHost, context_after
from holdfast.agents.handler import Method
from holdfast.errors import BadMessage, DeadlineExceeded, HandlerFailed, HoldfastError
from holdfast.records.messages import (
    ATTEMPT_BITS,
    BEGUN,
    ERROR,
    ERROR_PREFIX,
    OK,
    UNRECORDED,
    Call,
    InboxMessage,
    Outgoing,
    Timer,
    inbox_key,
)


class Delivery(msgspec.Struct, eq=False):
    """One message, whatever way it came: a call, an inbox message (with its sequence), a timer, or
    a bare mark."""

    handler: str
    arguments: bytes
    known_key: str = ""
    call: Call | None = None
    sink: Sink | None = None
    message: InboxMessage | None = None
    sequence: int = 0
    timer: Timer | None = None
    attempts: int = 0
    begun: bool = False
    """Whether its turn ran, or began to, in an activation that came to an end before its commit was
    known."""
    interrupted: bool = False
    shared: bool = False
    """Several callers asked it, under one message id: not all of them gave up if one did."""
    read_after: bool = False
    """A reader that runs when the commit that it waits for is acknowledged."""
    outgoing: list[Outgoing] | None = None
    reply: bytes = b""
    error: bytes = b""
    dead: bytes = b""
    done: Future[None] | None = None
    """Of a mark: done when the record is committed."""
    fast: bool = False
    """It took the fast path: what is left to do is to give its caller the reply, and nobody else
    joined it."""
    ran_at: float = 0.0
    """When its code began to run, by `time.perf_counter`; 0 where nobody listens to telemetry."""

    @property
    def key(self) -> str:
        """What makes it the same message again, empty for a mark."""
        if not self.known_key and self.call is not None:
            self.known_key = call_key(self.call)
        return self.known_key

    def respond(self) -> None:
        """Give the reply, or the error, to whoever waits for it."""
        if self.sink is not None and self.call is not None:
            if self.error:
                self.sink(self.call.reference, ERROR, self.error)
            elif self.reply[:1] == ERROR_PREFIX:
                self.sink(self.call.reference, ERROR, self.reply[1:])
            else:
                self.sink(self.call.reference, OK, self.reply)

    def turn_away(self, outcome: int, next_owner: bytes = b"") -> None:
        """Tell the caller to try again, and whether its turn had begun; who waits for a mark is
        cancelled.

        ``next_owner``: the node to try, where it is known. An inbox message or a timer is in the
        log.
        """
        if self.done is not None:
            self.done.cancel()
        if self.sink is not None and self.call is not None:
            self.sink(self.call.reference, BEGUN if self.begun else outcome, next_owner)


def call_key(call: Call) -> str:
    """What makes a call the same call again."""
    if call.message_id:
        return call.message_id
    if call.number:
        return f"{call.caller}:{call.number}"
    # What is read is known by its ask, so that its attempts are one. A tell has nothing of its own.
    return (
        f"{call.caller}?{call.reference >> ATTEMPT_BITS}" if call.reference else ids.new_id("tell")
    )


def is_same_ask(one: Call | None, other: Call) -> bool:
    """Whether these are attempts of one ask; several callers may ask under one message id."""
    return (
        one is not None
        and one.caller == other.caller
        and one.reference >> ATTEMPT_BITS == other.reference >> ATTEMPT_BITS
    )


def from_call(call: Call, sink: Sink | None) -> Delivery:
    """A delivery of an ask or a tell."""
    return Delivery(call.handler, call.arguments, "", call, sink, interrupted=call.interrupted)


def from_inbox(sequence: int, message: InboxMessage, interrupted: bool) -> Delivery:
    """A delivery of an inbox message."""
    key = inbox_key(sequence, message)
    return Delivery(
        message.handler,
        message.arguments,
        key,
        message=message,
        sequence=sequence,
        interrupted=interrupted,
    )


def mark(done: Future[None]) -> Delivery:
    """No message: it only has the agent's record written, and tells when that was acknowledged."""
    return Delivery("", b"", "", done=done)


def from_timer(timer: Timer, interrupted: bool) -> Delivery:
    """A delivery of a timer that is due. ``interrupted``: it may have been in the hands of a
    process that died."""
    return Delivery(
        timer.handler,
        timer.arguments,
        f"tm:{timer.name}:{timer.generation}",
        timer=timer,
        interrupted=interrupted,
    )


def running(message: Delivery) -> None:
    """Note for telemetry that the code of a message begins to run."""
    if telemetry.listeners:
        message.ran_at = time.perf_counter()


def ran(token: str, message: Delivery, outcome: str) -> None:
    """Tell of a turn whose code has run to its end, if it was heard of when it began."""
    if message.ran_at:
        seconds, message.ran_at = time.perf_counter() - message.ran_at, 0.0
        agent = "/".join(ids.from_agent_token(token))
        facts = {"agent": agent, "handler": message.handler, "outcome": outcome}
        telemetry.tell("turn", seconds, facts)


def error_bytes(error: BaseException) -> bytes:
    """An error as it travels in a reply."""
    return codec.encode_raw(errors.to_wire(error))


def refusal_bytes(error: BaseException) -> bytes:
    """An error as `error_bytes` gives it, of a call that left nothing in the agent's record."""
    name, text, kind, details = errors.to_wire(error)
    return codec.encode_raw(
        (name, text, kind if isinstance(error, HandlerFailed) else UNRECORDED, details)
    )


def too_late(call: Call, now: float) -> DeadlineExceeded:
    """Why a call is not started any more."""
    late = (
        f"its deadline was over for {now - call.deadline:.1f} s when its turn came, so it was not "
        "started"
    )
    return DeadlineExceeded(
        f"{call.token} {call.handler}: {late}: the agent was busy, or two hosts' clocks differ"
    )


def digest(handler: str, arguments: bytes) -> int:
    """64 bits that tell one message from another under the same id."""
    return ids.digest64(handler.encode() + b"\n" + arguments)


def meaning(method: Method[Any, Any, Any] | None, arguments: bytes) -> bytes:
    """What a message means: the same for a set in any order, and for a whole number as a float.

    ``method``: its handler's. A message without one means its bytes, and so does one that code of
    users cannot read.
    """
    if method is None:
        return arguments
    try:
        return guard.call(BadMessage, method.name, method.canonical, arguments)
    except HoldfastError:
        return arguments


def canonical_digest(method: Method[Any, Any, Any] | None, handler: str, arguments: bytes) -> int:
    """The digest of what a message means."""
    return digest(handler, meaning(method, arguments))


def context_of(host: TurnHost, message: Delivery | None, reads_only: bool = False) -> Context:
    """The context of a turn that handles a message. None stands for code that goes on after its
    turn ended."""
    if message is None:
        return context_after(host)
    call = message.call
    if call is None:
        return Context(host, message.key, 0.0, 0.0, (host.token,), reads_only)
    # a reader keeps its agent from nothing
    path = call.path if reads_only else (*call.path, host.token)
    return Context(host, message.key, call.deadline, call.keep_until, path, reads_only)
