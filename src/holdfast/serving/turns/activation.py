"""One agent's life in memory on one node, at one epoch: its mailbox, and what of its turns is
committed.

The naive actor commits each turn before it starts the next; a hot agent then does one turn per disk
write. Here an agent goes on with its next turns on the uncommitted state, and all turns since the
last batch become one record. The price is that nobody may learn of a turn before its record is
acknowledged: every reply, an error's too, waits in `pending` for the batch that covers it. Readers
see the committed state only. How one turn runs is in `turn`; this file decides which message is
next, and what becomes of the finished ones.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from holdfast import limits
from holdfast.agents.calls import Outcome, Sink
from holdfast.agents.context import Context
from holdfast.core.delivery import NO_IDS, Seen
from holdfast.errors import HoldfastError
from holdfast.records.agent_record import AgentRecord
from holdfast.records.messages import BUSY, NOT_OWNER, OK, Call, Timer
from holdfast.serving.delivery import (
    Delivery,
    call_key,
    context_of,
    is_same_ask,
    refusal_bytes,
    too_late,
)
from holdfast.serving.turns import attempts, deadlocks, poison, reading, received, reviving, turn

if TYPE_CHECKING:
    from holdfast.agents.kind import Kind
    from holdfast.calling.router import Router
    from holdfast.serving.shards.shard import Shard


class Activation:
    """See the module. Times are in seconds, sequences are the cell's."""

    __slots__ = (
        "agent",
        "at_rest",
        "attempts",
        "blob",
        "broken",
        "committed_bytes",
        "consumed",
        "digest_part",
        "generation",
        "held",
        "in_batch",
        "in_hand",
        "inbox",
        "kind",
        "last_used",
        "loaded",
        "mailbox",
        "old_blobs",
        "outgoing_bytes",
        "outgoing_records",
        "pending",
        "probation",
        "pumping",
        "readers",
        "reading",
        "retry_at",
        "ringing",
        "running",
        "seen",
        "senders",
        "sequence",
        "shard",
        "solo",
        "state",
        "state_bytes",
        "state_in_blob",
        "state_version",
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
        """With all turns that were finished, and the one that runs."""
        self.state_bytes = b""
        """… as of the last finished turn: what a handler that raises goes back to. No bytes: no
        state was made yet."""
        self.state_version = kind.state_version
        """The version of the schema of ``state_bytes``: an older one while the code that upgrades
        it raises."""
        self.broken: HoldfastError | None = None
        """What the code raised that makes the state and the agent of ``state_bytes``; each message
        tries it again."""
        self.committed_bytes = b""
        self.view: Any = None
        """The committed state as readers see it; None where it is not decoded now."""
        self.sequence = 0
        self.digest_part = 0
        """What its newest record adds to the shard's digest; 0 where that is not kept."""
        self.version = self.consumed = 0
        self.seen = Seen({}, NO_IDS)
        self.senders: dict[str, tuple[int, float]] | None = None
        self.timers: dict[str, Timer] | None = None
        self.ringing: set[str] | None = None
        """The keys of those that fired and are not settled: their messages wait here, or for
        another attempt."""
        self.generation = 0
        self.attempts: dict[str, int] | None = None
        self.probation = False
        self.blob = ""
        self.state_in_blob: bytes | None = None
        self.old_blobs: list[str] | None = None
        self.loaded = False
        self.at_rest = False
        """Since `committed` found that no turn runs, waits or is held back, only the fast path had
        to do with it."""
        self.running: Delivery | None = None
        self.solo = False
        self.pumping = False
        # while its state is put into a blob: no further turn may change it before its commit
        self.held = False
        self.task: asyncio.Task[Any] | None = None
        self.mailbox: deque[Delivery] | None = None
        self.inbox: deque[Delivery | int] | None = None
        """Messages from the log, in order; beyond the read-ahead only their sequences."""
        self.reading = False
        self.waiting_readers: list[Delivery] | None = None
        self.readers: dict[str, tuple[Call, Sink | None]] | None = None
        """Of each reader that is not answered yet, the newest attempt."""
        self.in_hand: dict[str, Delivery] | None = None
        self.pending: list[Delivery] = []
        self.in_batch: Sequence[Delivery] = ()
        self.outgoing_records = self.outgoing_bytes = 0
        self.retry_at = 0.0
        self.turn_from_inbox = False
        self.last_used = shard.runtime.loop.time()

    # What a turn's context needs ------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        return self.shard.epoch

    @property
    def router(self) -> Router:
        return self.shard.runtime.router

    def is_live(self) -> bool:
        return self.loaded and self.shard.live()

    def now(self) -> float:
        return self.shard.runtime.clock.now()

    def next_generation(self) -> int:
        """A generation for a timer that no timer of this agent had before."""
        self.generation += 1
        return self.generation

    def new_context(self) -> Context:
        """A context for what runs now; few handlers ask for it."""
        return context_of(self, self.running)

    def outcome(self, message_id: str) -> Outcome:
        """What became of an earlier message; see `AgentRef.outcome`."""
        return received.outcome(self, message_id)

    # Loading --------------------------------------------------------------------------------------

    def load(self, record: AgentRecord | None, state: bytes, sequence: int) -> None:
        """Take over what the log has; None: nothing. Raises `BadState` for a newer schema; see
        `reviving` for the rest."""
        if record is not None:
            self.kind.check_version(record.state_version)
            self.state_bytes = state
            self.state_version = record.state_version
            self.version = record.version
            self.consumed = record.consumed
            self.seen = Seen(record.callers, record.ids or NO_IDS)
            self.senders = record.senders or None
            self.timers = {timer.name: timer for timer in record.timers} or None
            self.generation = record.generation
            self.attempts = (record.attempts and attempts.counting(self, record.attempts)) or None
            self.blob = record.blob
            if record.blob:
                self.state_in_blob = state
            for timer in record.timers:
                # it may have fired into an activation that came to nothing
                if timer.due <= self.now():
                    self.shard.watch(self.token, timer)
        self.sequence = sequence
        self.committed_bytes = self.state_bytes
        reviving.revive(self)
        self.loaded = True
        readers, self.waiting_readers = self.waiting_readers, None
        for reader in readers or ():
            reading.begin(self, reader)
        self.pump()

    # Arrival --------------------------------------------------------------------------------------

    def deliver(self, message: Delivery) -> None:
        """Take a call: join it to the same one in hand, read at once, or put it in the mailbox."""
        self.last_used = self.shard.runtime.loop.time()
        call = message.call
        assert call is not None
        method = self.kind.methods.get(call.handler)
        if method is None:
            turn.refuse(message, self.kind.lacks(call.handler))
        elif method.reads_only:
            reading.take(self, message, method)
        elif (call.number or call.message_id) and (
            known := received.in_hand(self, call, message)
        ) is not None:
            received.join(self, known, call, message)
        elif (error := turn.overloaded(self, call)) is not None:
            turn.refuse(message, error)
        else:
            self.at_rest = False
            if call.number or call.message_id:
                self.take_in_hand(message)
            if self.mailbox or self.inbox or not self._may_start():
                self._put(message)
                deadlocks.look(self, message)
            else:  # nothing is before it
                self._begin(message)

    def _put(self, message: Delivery) -> None:
        if self.mailbox is None:
            self.mailbox = deque()
        self.mailbox.append(message)
        self.pump()

    def deliver_timer(self, message: Delivery) -> None:
        """Take a timer that is due, unless it is in hand already, or a reader that is to run
        alone."""
        if attempts.rings(self, message):
            return
        self.last_used = self.shard.runtime.loop.time()
        self.at_rest = False
        self._put(message)

    def deliver_inbox(self, message: Delivery | int) -> None:
        """Take the next inbox message, or the sequence of one that is still to be read."""
        self.last_used = self.shard.runtime.loop.time()
        self.at_rest = False
        if self.inbox is None:
            self.inbox = deque()
        if len(self.inbox) >= limits.INBOX_READ_AHEAD and isinstance(message, Delivery):
            message = message.sequence
        self.inbox.append(message)
        self.pump()

    def cancel(self, call: Call) -> None:
        """Its caller gave up: a message that waits is dropped, a handler that waits is
        cancelled."""
        message = (self.in_hand or {}).get(call_key(call))
        if message is None or message.shared or not is_same_ask(message.call, call):
            return
        if self.mailbox and message in self.mailbox:
            self.mailbox.remove(message)
            self._let_go(message)
        elif self.running is message and self.task is not None:
            self.task.cancel()

    # Turns ----------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Start what can be started: one turn at a time, mailbox and inbox by turns."""
        if self.pumping or not (self.mailbox or self.inbox):
            return  # pumping: a turn that ended at once; the loop that started it goes on
        self.pumping = True
        try:
            while (
                (self.mailbox or self.inbox)
                and self._may_start()
                and (message := self._next()) is not None
            ):
                self._begin(message)
        finally:
            self.pumping = False

    def _may_start(self) -> bool:
        if (
            self.running is not None
            or self.held
            or not self.loaded
            or not self.shard.active
            or self.shard.draining
        ):
            return False
        if (self.solo and (self.pending or self.in_batch)) or not self.shard.runtime.life.live():
            return False
        return (
            self.outgoing_records < limits.TURN_RECORDS_MAX
            and self.outgoing_bytes < limits.TURN_BYTES_MAX // 4
        )

    def _next(self) -> Delivery | None:
        if self.inbox and self.retry_at == 0.0 and (self.turn_from_inbox or not self.mailbox):
            head = self.inbox[0]
            if not isinstance(head, int):
                self.turn_from_inbox = False
                self.inbox.popleft()
                return head
            if not self.reading:
                self.reading = True
                self.shard.refill(self)
        self.turn_from_inbox = True
        return self.mailbox.popleft() if self.mailbox else None

    def _begin(self, message: Delivery) -> None:
        if received.already_seen(self, message):
            attempts.rang(self, message)
            return
        call = message.call
        if call is not None:
            if call.deadline and call.deadline < self.now():
                self.settle(message, too_late(call, self.now()))
                return
            if self.seen.full():
                self.seen.expire(self.now())
                if self.seen.full():
                    self._let_go(message)
                    message.turn_away(BUSY)
                    return
        names = self.shard.runtime.standstills.names
        if message.interrupted or self.attempts or (names and (self.token, message.key) in names):
            poison.start(self, message)
        else:
            turn.start(self, message)

    def settle(self, message: Delivery, error: HoldfastError | None = None) -> None:
        """Answer a call that needs no turn, but not before what is uncommitted now is committed."""
        if error is not None:
            message.error = refusal_bytes(error)
        if self.pending or self.in_batch:
            self.note(message)
        else:
            self._release(message)

    def refuse(self, message: Delivery, error: HoldfastError) -> None:
        """Take a call that waits out of the mailbox, and have it never happen."""
        assert self.mailbox is not None
        self.mailbox.remove(message)
        if not received.already_seen(self, message):
            turn.never(self, message, error)

    def note(self, message: Delivery) -> None:
        """The message waits for the batch that will cover it."""
        # it was abandoned while a task of it went on: nothing of it may be written any more
        if not self.loaded:
            message.turn_away(NOT_OWNER)
            return
        self.pending.append(message)
        if message.outgoing:
            self.at_rest = False
            self.outgoing_records += len(message.outgoing)
            self.outgoing_bytes += sum(len(sent.message.arguments) for sent in message.outgoing)
        self.shard.committer.mark(self)

    # Commit ---------------------------------------------------------------------------------------

    def snapshot(
        self, version: int, now: float, commit: int, digest: int, count: int
    ) -> AgentRecord:
        """The record of all turns up to now. What waited for a commit waits for this one."""
        seen = self.seen
        self.in_batch, self.pending = self.pending, []
        if self.outgoing_records:
            self.outgoing_records = self.outgoing_bytes = 0
        if now > seen.stale_at:
            seen.expire(now)
        state = self.state_bytes
        if self.blob:
            self.held = False
            if self.state_in_blob is state:
                state = b""
            else:
                self.old_blobs, self.blob, self.state_in_blob = (
                    [*(self.old_blobs or ()), self.blob],
                    "",
                    None,
                )
        senders = received.recent_senders(self, now) if self.senders else {}
        timers = list(self.timers.values()) if self.timers else []
        return AgentRecord(
            version,
            commit,
            self.sequence,
            digest,
            count,
            self.version + 1,
            self.state_version,
            state,
            self.blob,
            self.consumed,
            seen.callers,
            seen.ids,
            senders,
            timers,
            self.generation,
            self.attempts or {},
            now if version > 1 else 0.0,
        )

    def not_written(self) -> None:
        """The batch was certainly not written: what waited for it waits for the next."""
        self.pending = [*self.in_batch, *self.pending]
        self.in_batch = ()
        sent = [one.message for message in self.pending for one in message.outgoing or ()]
        self.outgoing_records = len(sent)
        self.outgoing_bytes = sum(len(message.arguments) for message in sent)

    def committed(self, sequence: int, state_bytes: bytes) -> None:
        """The batch was acknowledged: release what waited for it."""
        self.sequence = sequence
        self.version += 1
        if self.committed_bytes is not state_bytes and state_bytes:
            self.committed_bytes = state_bytes
            self.view = None
        done, self.in_batch = self.in_batch, ()
        for message in done:
            if message.fast:
                # it has both
                message.sink(message.call.reference, OK, message.reply)  # type: ignore[union-attr, misc]
            else:
                self._release(message)
        if self.at_rest:
            return
        if self.solo and not self.mailbox and not self.pending:
            self.solo = False
        self.pump()
        busy = self.running or self.mailbox or self.inbox or self.held or self.outgoing_records
        rests = self.loaded and not (busy or self.solo or self.attempts or self.broken)
        self.at_rest = rests and self.kind.has_plain_attributes

    def _release(self, message: Delivery) -> None:
        if message.call is not None:
            if message.read_after:
                reading.read(self, message)
                return
            self._let_go(message)
            message.respond()
        elif message.sequence:
            self.shard.consumed(message.sequence)
        elif message.done is not None and not message.done.done():
            message.done.set_result(None)

    def take_in_hand(self, message: Delivery) -> None:
        """Have further attempts of a call join this one, until it is answered."""
        self.in_hand = self.in_hand or {}
        self.in_hand[message.key] = message

    def _let_go(self, message: Delivery) -> None:
        if self.in_hand is not None:
            self.in_hand.pop(message.key, None)
            self.in_hand = self.in_hand or None

    # End ------------------------------------------------------------------------------------------

    def abandon(self) -> list[Delivery | int]:
        """End this activation; return every message in hand, in order, none of them answered."""
        if (
            self.task is not None
            and not self.task.done()
            and self.task is not asyncio.current_task()
        ):
            self.task.cancel()
        found: dict[Delivery | int, None] = {}
        for message in (*self.in_batch, *self.pending):
            if message.done is not None:
                message.done.cancel()
            else:
                found[message] = None
        found.update({} if self.running is None else {self.running: None})
        begun = len(found)
        for more in (self.mailbox, self.inbox, self.waiting_readers):
            found.update(dict.fromkeys(more or ()))
        self.in_batch, self.pending, self.in_hand = (), [], None
        self.mailbox = self.inbox = self.waiting_readers = self.running = self.ringing = None
        self.loaded = self.at_rest = False
        for place, item in enumerate(found):
            if isinstance(item, Delivery):
                item.begun = item.begun or place < begun
                item.error = item.reply = item.dead = b""
                item.fast = False
                item.outgoing = None
        return list(found)

    def idle(self, now: float) -> bool:
        """Whether it may leave memory."""
        busy = self.running or self.pending or self.in_batch or self.mailbox or self.inbox
        return (
            not (busy or self.ringing)
            and self.loaded
            and now - self.last_used > self.kind.idle_seconds
        )
