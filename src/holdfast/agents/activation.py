"""One agent's life in memory on one node, at one epoch: its mailbox, its turns, and what of them is committed.

The naive actor commits each turn before it starts the next; a hot agent then does one turn per disk write. Here an
agent goes on with its next turns on the uncommitted state, and all turns since the last batch become one record. The
price is that nobody may learn of a turn before its record is acknowledged: every reply, an error's too, waits in
`pending` for the batch that covers it. Readers see the committed state only.

A handler works on `state`; `state_bytes` is what it was after the last turn that succeeded, so a handler that raises
costs one decode. Encoding after each turn also checks types and size while the turn that is guilty is still known.
"""

from __future__ import annotations

import asyncio
import traceback
from collections import deque
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from holdfast import codec, ids, limits
from holdfast.agents import mailbox
from holdfast.agents.context import Context
from holdfast.agents.mailbox import Delivery, error_bytes
from holdfast.agents.messages import BUSY, NOT_OWNER, DeadRecord, InboxMessage, Timer
from holdfast.agents.record import FORM, AgentRecord
from holdfast.core import delivery
from holdfast.errors import (
    BadMessage,
    DeadlineExceeded,
    HandlerFailed,
    HoldfastError,
    OutcomeUnknown,
    Overloaded,
    ReplayMismatch,
    TooLarge,
    UnknownKind,
    to_wire,
)

if TYPE_CHECKING:
    from holdfast.agents.agent import Kind
    from holdfast.agents.handler import _Method
    from holdfast.agents.router import Router
    from holdfast.agents.shard import Shard


class Activation:
    """See the module. Times are in seconds, sequences are the cell's."""

    __slots__ = (
        "agent",
        "attempt",
        "blob",
        "blob_bytes",
        "callers",
        "committed_bytes",
        "consumed",
        "generation",
        "in_hand",
        "inbox",
        "in_batch",
        "kind",
        "last_used",
        "loaded",
        "mailbox",
        "message_ids",
        "overflow",
        "pending",
        "retry_at",
        "running",
        "senders",
        "sequence",
        "shard",
        "solo",
        "state",
        "state_bytes",
        "task",
        "timers",
        "token",
        "turn_from_inbox",
        "version",
        "view",
        "waiting_readers",
    )

    def __init__(self, shard: Shard, token: str, kind: Kind) -> None:
        self.shard = shard
        self.token = token
        self.kind = kind
        self.agent: Any = None
        self.state: Any = None
        self.state_bytes = b""
        self.committed_bytes = b""
        self.view: Any = None
        self.sequence = 0
        self.version = 0
        self.consumed = 0
        self.callers: dict[str, delivery.Caller] = {}
        self.message_ids: dict[str, delivery.Remembered] = {}
        self.senders: dict[str, tuple[int, float]] = {}
        self.timers: dict[str, Timer] = {}
        self.generation = 0
        self.attempt = ("", 0)
        self.blob = ""
        self.blob_bytes = b""
        self.loaded = False
        self.running = False
        self.solo = False
        self.task: asyncio.Task[Any] | None = None
        self.mailbox: deque[Delivery] | None = None
        self.inbox: deque[Delivery] | None = None
        self.waiting_readers: list[Delivery] | None = None
        self.in_hand: dict[str, Delivery] = {}
        self.pending: list[Delivery] = []
        self.in_batch: list[Delivery] = []
        self.overflow = 0
        self.retry_at = 0.0
        self.turn_from_inbox = False
        self.last_used = shard.runtime.loop.time()

    # What a turn's context needs ---------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """The epoch of the shard that this activation belongs to."""
        return self.shard.epoch

    @property
    def router(self) -> Router:
        """The node's router."""
        return self.shard.runtime.router

    def now(self) -> float:
        """Seconds since 1970."""
        return self.shard.runtime.clock.now()

    def next_generation(self) -> int:
        """A generation for a timer that no timer of this agent had in this activation."""
        self.generation += 1
        return self.generation

    # Loading -----------------------------------------------------------------------------------------------------

    def load(self, record: AgentRecord | None, state: bytes, sequence: int) -> None:
        """Take over what the log has of the agent; None: it is new. Raises `BadState`."""
        kind = self.kind
        if record is None:
            self.state = kind.new_state()
            self.state_bytes, self.view = kind.encode_state(self.state)
        else:
            self.state = kind.load_state(state, record.state_version)
            self.state_bytes = state
            if record.state_version != kind.state_version:
                self.state_bytes, self.view = kind.encode_state(self.state)
            self.version = record.version
            self.consumed = record.consumed
            self.callers = record.callers
            self.message_ids = record.ids
            self.senders = record.senders
            self.timers = {timer.name: timer for timer in record.timers}
            self.generation = max((timer.generation for timer in record.timers), default=0)
            self.attempt = record.attempt
            self.blob = record.blob
            if record.blob:
                self.blob_bytes = state
        self.sequence = sequence
        self.committed_bytes = self.state_bytes
        self.agent = object.__new__(kind.cls)
        self.loaded = True
        readers, self.waiting_readers = self.waiting_readers, None
        for reader in readers or ():
            self._read(reader)
        self.pump()

    def fail_loading(self, error: BaseException) -> None:
        """Answer everything that waits with the error. The agent stays unloaded; the next message tries again."""
        payload = error_bytes(error)
        for waiting in self.abandon():
            waiting.error = payload
            waiting.respond()

    # Arrival -----------------------------------------------------------------------------------------------------

    def deliver(self, message: Delivery) -> None:
        """Take a call: answer it from the record, join it to the same one in hand, or put it in the mailbox."""
        self.last_used = self.shard.runtime.loop.time()
        call = message.call
        assert call is not None
        method = self.kind.methods.get(call.handler)
        if method is None:
            self._refuse(message, UnknownKind(f"{self.kind.name} has no handler or reader {call.handler!r}"))
        elif method.reads_only:
            if not self.loaded:
                self.waiting_readers = [*(self.waiting_readers or ()), message]
            elif call.fresh:
                self._enqueue(message)
            else:
                self._read(message)
        elif call.number or call.message_id:
            known = self.in_hand.get(message.key)
            if known is not None:
                if call.message_id and (known.handler, known.arguments) != (call.handler, call.arguments):
                    self._refuse(message, _mismatch(call.message_id))
                else:
                    known.call, known.sink = call, message.sink
            else:
                self._enqueue(message)
        else:
            self._enqueue(message)

    def _enqueue(self, message: Delivery) -> None:
        if self.mailbox is None:
            self.mailbox = deque()
        if len(self.mailbox) + len(self.pending) + len(self.in_batch) >= self.kind.mailbox_max:
            text = f"{self.kind.mailbox_max} messages wait for {self.token}"
            self._refuse(message, Overloaded(f"{text}: call it more slowly, or spread the work over more agents"))
            return
        call = message.call
        if call is not None and (call.number or call.message_id):
            self.in_hand[message.key] = message
        self.mailbox.append(message)
        if not self.running and self.loaded:
            self.pump()

    def _refuse(self, message: Delivery, error: HoldfastError) -> None:
        message.error = error_bytes(error)
        message.respond()

    def _seen(self, message: Delivery) -> bool:
        """Whether the call was answered, dropped or turned away by what earlier turns left in the record."""
        call = message.call
        if call is None:
            return self._inbox_seen(message)
        if call.message_id:
            kept = self.message_ids.get(call.message_id)
            if kept is not None:
                if kept.digest != _digest(call.handler, call.arguments):
                    self._settle(message, error_bytes(_mismatch(call.message_id)))
                else:
                    message.reply = kept.answer
                    self._settle(message)
                return True
            if len(self.message_ids) >= limits.MESSAGE_IDS_MAX:
                delivery.expire(self.callers, self.message_ids, self.now())
                if len(self.message_ids) >= limits.MESSAGE_IDS_MAX:
                    text = f"{self.token} remembers {limits.MESSAGE_IDS_MAX} message ids, all younger than their time"
                    self._settle(message, error_bytes(Overloaded(text)))
                    return True
            return False
        if not call.number:
            return False
        verdict = delivery.check_caller(self.callers, call.caller, call.number, call.low)
        if isinstance(verdict, bytes):
            message.reply = verdict
            self._settle(message)
            return True
        if verdict is delivery.Verdict.NEW:
            return False
        if verdict is delivery.Verdict.FULL:
            delivery.expire(self.callers, self.message_ids, self.now())
            if len(self.callers) < limits.CALLERS_MAX:
                return False
            self._settle(message, error_bytes(Overloaded(f"{self.token} has {limits.CALLERS_MAX} callers")))
        else:
            self._settle(message, error_bytes(OutcomeUnknown("the caller closed this message before")))
        return True

    def _inbox_seen(self, message: Delivery) -> bool:
        letter = message.message
        if letter is None:
            timer = message.timer
            return timer is not None and self.timers.get(timer.name) != timer
        if message.sequence <= self.consumed:
            return True
        seen = letter.sender and letter.number <= self.senders.get(letter.sender, (0, 0.0))[0]
        kept = self.message_ids.get(letter.message_id) if letter.message_id else None
        if not seen and kept is None:
            return False
        # A second copy of a message that was consumed: only its place in the inbox is to be noted.
        self.consumed = message.sequence
        self._note(message)
        return True

    def _settle(self, message: Delivery, error: bytes = b"") -> None:
        """Answer a call that needs no turn, not before what is uncommitted now is committed."""
        message.error = error
        if self.pending or self.in_batch:
            self.pending.append(message)
            self.shard.mark(self)
        else:
            self._release(message)

    # Turns -------------------------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Start what can be started: one turn at a time, mailbox and inbox by turns."""
        while not self.running and self.loaded and self.shard.active:
            if self.solo and (self.pending or self.in_batch):
                return
            message = self._next()
            if message is None:
                return
            if not self._seen(message):
                self._start(message)

    def _next(self) -> Delivery | None:
        inbox_open = self.inbox and self.retry_at == 0.0
        if inbox_open and (self.turn_from_inbox or not self.mailbox):
            self.turn_from_inbox = False
            message = self.inbox.popleft()  # type: ignore[union-attr]  # inbox_open says that it is there
            if self.overflow and not self.inbox:
                self.shard.refill(self)
            return message
        self.turn_from_inbox = True
        return self.mailbox.popleft() if self.mailbox else None

    def _start(self, message: Delivery) -> None:
        call = message.call
        now = self.now()
        if call is not None and call.deadline and call.deadline < now:
            self._settle(message, error_bytes(DeadlineExceeded("the deadline passed before the message was started")))
            return
        if call is not None and delivery.answers_bytes(self.callers) > limits.ANSWERS_BYTES_MAX:
            delivery.expire(self.callers, self.message_ids, now)
            if delivery.answers_bytes(self.callers) > limits.ANSWERS_BYTES_MAX:
                self.in_hand.pop(message.key, None)
                message.turn_away(BUSY)
                return
        if message.suspect:
            if self.attempt[0] == message.key and self.attempt[1] >= limits.UNCLEAN_ENDS_MAX - 1:
                self._bury(message, HandlerFailed(f"this message ended {limits.UNCLEAN_ENDS_MAX} processes"))
                return
            self.running = True
            self.task = self.shard.runtime.spawn(self._run_suspect(message))
            return
        try:
            method, args = self._method(message)
        except HoldfastError as error:
            self._failed(message, error)
            return
        context = self._context(message)
        self.running = True
        if method.waits:
            self.task = self.shard.runtime.spawn(self._run(message, method, args, context))
            return
        agent = self.agent
        agent.state = self.state
        agent.context = context
        try:
            method.bind(agent, args).send(None)
        except StopIteration as end:
            self._finished(message, method, context, end.value)
        except Exception as error:
            self._raised(message, error)
        else:
            raise AssertionError(f"{method} waited, although it has no await")

    def _method(self, message: Delivery) -> tuple[_Method[Any, Any, Any], tuple[Any, ...]]:
        method = self.kind.methods.get(message.handler)
        if method is None:
            raise UnknownKind(f"{self.kind.name} has no handler {message.handler!r}")
        return method, method.decode_arguments(message.arguments)

    def _context(self, message: Delivery, reads_only: bool = False) -> Context:
        call = message.call
        if call is None:
            return Context(self, message.key, 0.0, 0.0, (self.token,), reads_only)
        return Context(self, message.key, call.deadline, call.keep_until, (*call.chain, self.token), reads_only)

    async def _run(
        self, message: Delivery, method: _Method[Any, Any, Any], args: tuple[Any, ...], context: Context
    ) -> None:
        self.agent.state = self.state
        self.agent.context = context
        try:
            value = await method.bind(self.agent, args)
        except asyncio.CancelledError:
            if self.shard.active:
                self._raised(message, HandlerFailed("the handler was cancelled", "CancelledError"))
            raise
        except Exception as error:
            self._raised(message, error)
        else:
            self._finished(message, method, context, value)

    async def _run_suspect(self, message: Delivery) -> None:
        """Run a message that may have ended a process: alone, behind a committed mark."""
        async with self.shard.runtime.quarantine:
            count = self.attempt[1] if self.attempt[0] == message.key else 0
            self.attempt = (message.key, count + 1)
            await self._committed()
            message.suspect = False
            self.running = False
            self._start(message)
            while self.running and self.task is not None and self.task is not asyncio.current_task():
                await asyncio.wait([self.task])

    def _committed(self) -> asyncio.Future[None]:
        """Commit the record as it is; the future is done when it is acknowledged."""
        future: asyncio.Future[None] = self.shard.runtime.loop.create_future()
        mark = Delivery("", b"", "")
        mark.call = mailbox.Call(self.token, "", b"", 0)
        mark.sink = lambda *_: None if future.done() else future.set_result(None)
        self._note(mark)
        return future

    def _raised(self, message: Delivery, error: Exception) -> None:
        self.state = self.kind.load_state(self.state_bytes, self.kind.state_version)
        self.running = False
        if isinstance(error, HoldfastError) and not isinstance(error, HandlerFailed):
            shown: HoldfastError = error
        elif isinstance(error, HandlerFailed):
            shown = error
        else:
            details = "".join(traceback.format_exception(error))[-8192:]
            text = str(error) or type(error).__name__
            shown = HandlerFailed(f"{self.kind.name}.{message.handler}: {text}"[:2048], type(error).__name__, details)
        self._failed(message, shown)
        self.pump()

    def _finished(self, message: Delivery, method: _Method[Any, Any, Any], context: Context, value: Any) -> None:
        call = message.call
        try:
            if method.reads_only:
                message.reply = method.encode_reply(value)
            else:
                if call is not None or value is not None:
                    message.reply = method.encode_reply(value)
                    if len(message.reply) > limits.ANSWERS_BYTES_MAX:
                        text = f"the reply of {self.kind.name}.{message.handler} has {len(message.reply)} bytes"
                        raise TooLarge(f"{text}; {limits.ANSWERS_BYTES_MAX} are allowed")
                if sum(len(timer.arguments) for timer in self.timers.values()) > limits.ANSWERS_BYTES_MAX // 4:
                    raise TooLarge(f"the timers of {self.token} hold too much: keep it in the state")
                self.state = self.agent.state
                state_bytes, view = self.kind.encode_state(self.state)
                self.state_bytes = state_bytes
                self.view = view if not (self.pending or self.in_batch) else None
        except HoldfastError as error:
            self._raised(message, error)
            return
        except Exception as error:  # a user's own codec or property
            self._raised(message, BadMessage(f"{self.kind.name}.{message.handler}: {type(error).__name__}: {error}"))
            return
        for name, timer in context.timers.items():
            if timer is None:
                self.timers.pop(name, None)
            else:
                self.timers[name] = timer
                self.shard.watch(self.token, timer)
        message.outgoing = context.outgoing
        self.running = False
        self._consume(message)
        self._note(message)
        self.pump()

    def _consume(self, message: Delivery) -> None:
        """Put into the tables of the record that this message was handled."""
        call = message.call
        letter = message.message
        if message.key == self.attempt[0]:
            self.attempt = ("", 0)
        if call is not None:
            if call.message_id:
                until = max(call.keep_until, self.now() + (0.0 if call.keep_until else self.kind.dedup_seconds))
                kept = delivery.Remembered(until, _digest(call.handler, call.arguments), message.reply)
                self.message_ids[call.message_id] = kept
            elif call.number:
                delivery.note_answer(self.callers, call.caller, call.number, call.low, call.deadline, message.reply)
        elif letter is not None:
            self.consumed = message.sequence
            if letter.sender:
                self.senders[letter.sender] = (letter.number, self.now())
            if letter.message_id:
                until = self.now() + self.kind.dedup_seconds
                kept = delivery.Remembered(until, _digest(letter.handler, letter.arguments), message.reply)
                self.message_ids[letter.message_id] = kept
        elif message.timer is not None and self.timers.get(message.timer.name) == message.timer:
            del self.timers[message.timer.name]

    def _note(self, message: Delivery) -> None:
        """The turn waits for the batch that will cover it."""
        self.pending.append(message)
        self.shard.mark(self)

    def _failed(self, message: Delivery, error: HoldfastError) -> None:
        """A message without an effect: the caller gets the error; a durable message is tried again, then buried."""
        if message.call is not None:
            self._settle(message, error_bytes(error))
            return
        message.attempts += 1
        if message.attempts >= limits.ATTEMPTS_MAX or isinstance(error, (BadMessage, UnknownKind)):
            self._bury(message, error)
            return
        seconds = limits.BACKOFF_SECONDS_MIN * 4**message.attempts
        if message.timer is not None:
            self.shard.later(seconds, self._again, message)
            return
        if self.inbox is None:
            self.inbox = deque()
        self.inbox.appendleft(message)
        self.retry_at = self.shard.runtime.loop.time() + seconds
        self.shard.later(seconds, self._reopen)

    def _again(self, message: Delivery) -> None:
        if self.mailbox is None:
            self.mailbox = deque()
        self.mailbox.append(message)
        self.pump()

    def _reopen(self) -> None:
        self.retry_at = 0.0
        self.pump()

    def _bury(self, message: Delivery, error: HoldfastError) -> None:
        """Give up a message: its caller gets the error, a durable one becomes a dead letter."""
        if message.call is None:
            letter = message.message or InboxMessage(message.handler, message.arguments, sent_at=self.now())
            dead = DeadRecord(letter, to_wire(error), message.attempts, self.now())
            message.dead = codec.seal(codec.encode_raw(dead))
        message.error = error_bytes(error)
        self._consume_buried(message)
        self._note(message)

    def _consume_buried(self, message: Delivery) -> None:
        self.attempt = ("", 0)
        if message.call is None:
            self._consume(message)

    # Reading -----------------------------------------------------------------------------------------------------

    def committed_view(self) -> Any:
        """The committed state, frozen where its type can be."""
        if not self.kind.frozen:
            return self.kind.decode_view(self.committed_bytes)
        if self.view is None:
            self.view = self.kind.decode_view(self.committed_bytes)
        return self.view

    def _read(self, message: Delivery) -> None:
        call = message.call
        assert call is not None
        if call.deadline and call.deadline < self.now():
            self._refuse(message, DeadlineExceeded("the deadline passed before the message was started"))
            return
        try:
            method, args = self._method(message)
        except HoldfastError as error:
            self._refuse(message, error)
            return
        agent = object.__new__(self.kind.cls)
        agent.__dict__ = self.agent.__dict__
        agent.state = self.committed_view()
        agent.context = self._context(message, reads_only=True)
        run = method.bind(agent, args)
        if method.waits:
            self.shard.runtime.spawn(self._read_later(message, method, run))
            return
        try:
            run.send(None)
        except StopIteration as end:
            self._read_done(message, method, end.value)
        except Exception as error:
            self._refuse(message, _handler_failed(self.kind.name, message.handler, error))

    async def _read_later(
        self, message: Delivery, method: _Method[Any, Any, Any], run: Coroutine[Any, Any, Any]
    ) -> None:
        try:
            value = await run
        except Exception as error:
            self._refuse(message, _handler_failed(self.kind.name, message.handler, error))
        else:
            self._read_done(message, method, value)

    def _read_done(self, message: Delivery, method: _Method[Any, Any, Any], value: Any) -> None:
        if not self.shard.live():
            message.turn_away(NOT_OWNER)
            return
        try:
            message.reply = method.encode_reply(value)
            if len(message.reply) > limits.MESSAGE_BYTES_MAX:
                text = f"the reply of {self.kind.name}.{message.handler} has {len(message.reply)} bytes"
                raise TooLarge(f"{text}; {limits.MESSAGE_BYTES_MAX} are allowed")
        except HoldfastError as error:
            self._refuse(message, error)
            return
        message.respond()

    # Commit ------------------------------------------------------------------------------------------------------

    def snapshot(self, commit: int, digest: int, count: int) -> AgentRecord:
        """The record of all turns up to now. What waited for a commit waits for this one."""
        self.in_batch, self.pending = self.pending, []
        now = self.now()
        if self.callers or self.message_ids:
            delivery.expire(self.callers, self.message_ids, now)
        return AgentRecord(
            FORM,
            commit,
            self.sequence,
            digest,
            count,
            self.version + 1,
            self.kind.state_version,
            b"" if self.blob else self.state_bytes,
            self.blob,
            self.consumed,
            self.callers,
            self.message_ids,
            _recent(self.senders, now) if len(self.senders) > limits.CALLERS_MAX else self.senders,
            list(self.timers.values()),
            self.attempt,
        )

    def unsnapshot(self) -> None:
        """The batch was certainly not written."""
        self.pending = self.in_batch + self.pending
        self.in_batch = []

    def committed(self, sequence: int, state_bytes: bytes) -> None:
        """The batch was acknowledged: release what waited for it."""
        self.sequence = sequence
        self.version += 1
        if self.committed_bytes is not state_bytes:
            self.committed_bytes = state_bytes
            if self.state_bytes is not state_bytes or self.pending:
                self.view = None
        done, self.in_batch = self.in_batch, []
        for message in done:
            self._release(message)
        if self.solo:
            if not self.mailbox and not self.pending:
                self.solo = False
            self.pump()

    def _release(self, message: Delivery) -> None:
        if message.call is not None:
            self.in_hand.pop(message.key, None)
            message.respond()
        elif message.sequence:
            self.shard.consumed(message.sequence)

    def abandon(self) -> list[Delivery]:
        """End this activation; return every message in hand, in order, none of them answered."""
        if self.task is not None and not self.task.done() and self.task is not asyncio.current_task():
            self.task.cancel()
        found = [message for message in (*self.in_batch, *self.pending) if message.key and not message.error]
        found += [message for message in self.in_hand.values() if message not in found]
        found += [message for message in self.mailbox or () if message not in found]
        found += self.waiting_readers or []
        self.in_batch, self.pending, self.in_hand = [], [], {}
        self.mailbox = self.inbox = self.waiting_readers = None
        self.loaded = False
        return found

    def idle(self, now: float) -> bool:
        """Whether it may leave memory."""
        busy = self.running or self.pending or self.in_batch or self.mailbox or self.inbox or self.overflow
        return not busy and self.loaded and now - self.last_used > self.kind.idle_seconds


def _recent(senders: dict[str, tuple[int, float]], now: float) -> dict[str, tuple[int, float]]:
    limit = now - limits.DEDUP_SECONDS
    return {name: seen for name, seen in senders.items() if seen[1] > limit}


def _digest(handler: str, arguments: bytes) -> int:
    return ids.digest64(handler.encode() + b"\n" + arguments)


def _mismatch(message_id: str) -> ReplayMismatch:
    return ReplayMismatch(f"the message id {message_id!r} was used before, with another message: give each its own id")


def _handler_failed(kind: str, name: str, error: Exception) -> HoldfastError:
    if isinstance(error, HoldfastError):
        return error
    details = "".join(traceback.format_exception(error))[-8192:]
    return HandlerFailed(f"{kind}.{name}: {str(error) or type(error).__name__}"[:2048], type(error).__name__, details)
