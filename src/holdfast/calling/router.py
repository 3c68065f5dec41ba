"""The caller's side of every message: where it goes, when it is tried again, and what its caller is
told at the end.

A call goes to its agent's shard. Where this node owns the shard it is handed over directly; else it
joins a frame for the node that last answered for the shard, or, when none is known, for the shard's
own subject. Nobody there, another owner by now, an answer that does not come: the call is sent
again until its deadline. The owner joins the attempts of one call, and the agent's record remembers
its answer, so trying again is safe. Failover looks like latency.

At the deadline it matters whether an attempt is unaccounted for: if each was turned away before it
began, nothing happened (`DeadlineExceeded`), else nobody can know (`OutcomeUnknown`). One sweep
looks after all deadlines and attempts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from holdfast import chance, ids, limits, loops
from holdfast.agents import guard
from holdfast.agents.calls import Open, Options, Turn
from holdfast.agents.over import current
from holdfast.calling import clock_skew
from holdfast.calling.frames import Frames, decode_replies
from holdfast.calling.here import Here
from holdfast.calling.inbox_sender import Appender, InboxSender
from holdfast.clock import Clock
from holdfast.core import backoff
from holdfast.core.pools import Pool
from holdfast.engines.base import Bus, Message, Subscription
from holdfast.errors import (
    BadState,
    Closed,
    DeadlineExceeded,
    HoldfastError,
    NotDone,
    OutcomeUnknown,
    Overloaded,
    UnknownKind,
    WouldDeadlock,
    from_wire,
)
from holdfast.records.messages import (
    ATTEMPT_BITS,
    BEGUN,
    BUSY,
    ERROR,
    NOT_OWNER,
    OK,
    UNRECORDED,
    WAITS,
    Call,
    Probe,
)

if TYPE_CHECKING:
    from holdfast.cluster.facts.placement import Placement
    from holdfast.cluster.members.liveness import Liveness

_SWEEP_SECONDS = 0.25
_ATTEMPT_MASK = (1 << ATTEMPT_BITS) - 1
_TOO_LATE = (
    "no answer until its deadline (timeout_seconds, or that of the turn in which it was asked)"
)
_SILENT = "was sent and got no answer, so it may have been done, or may still be"
_decode_error = msgspec.msgpack.Decoder(tuple[str, str, str, str]).decode


class Router:
    """See the module. One per process; all its calls are numbered by one counter.

    ``appenders``: one per cell, in the order of the cells. ``here``: the agents of this process.
    ``owner_of`` takes a shard, and names its owner by the log, empty if none is heard.
    """

    def __init__(
        self,
        bus: Bus,
        clock: Clock,
        caller: str,
        placement: Placement,
        appenders: Sequence[tuple[str, Appender]],
        life: Liveness,
        here: Here,
        owner_of: Callable[[int], str],
    ) -> None:
        self.caller = caller
        self.random = chance.random()
        self.sender = InboxSender(appenders, clock, caller, placement.space)
        self._life = life
        self._here = here
        self._bus = bus
        self._clock = clock
        self.placement = placement
        self.space = placement.space
        self._loop = asyncio.get_running_loop()
        self._number = 0
        self._open: dict[int, Open] = {}
        self._open_to: dict[str, int | dict[int, None]] = {}
        """Per receiver the number still open, or all of them, lowest first."""
        self._owners: dict[int, str] = {}
        self._owner_of = owner_of
        self._frames = Frames(bus, f"hf.r.{caller}")
        self._subscription: Subscription | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self.retries = 0
        self._closed = ""  # or why it takes no more calls
        self._in_turn = asyncio.Lock()
        self._placing = 0
        """Sends that wait until it is known where their kind's agents are."""

    async def start(self) -> None:
        """Begin to hear replies."""
        self._subscription = await self._bus.subscribe(f"{self._frames.reply}.>", self._on_message)
        self._sweeper = loops.start(self._sweep(), "the sweep of calls")

    async def close(self) -> None:
        """Answer every open call with `Closed`, or `OutcomeUnknown` where an attempt is unaccounted
        for."""
        self.fail("the node was closed")
        await self.sender.close()
        await loops.stop(self._sweeper)
        if self._subscription is not None:
            await self._subscription.close()

    def fail(self, why: str) -> None:
        """Take no more calls, and answer those that are open."""
        self._closed = self._closed or why
        for opened in list(self._open.values()):
            self._fail(opened, self._closed, Closed)

    # Asking ---------------------------------------------------------------------------------------

    async def ask(
        self, token: str, handler: str, arguments: bytes, options: Options, reads_only: bool
    ) -> bytes:
        """Ask, and await the encoded reply. See `AgentRef.ask` for what it raises: it does the same
        for what has a type."""
        if (shard := self.space.find(token)) < 0:
            shard = await self.locate(token)
        opened = self.begin(shard, token, handler, arguments, options, reads_only)
        try:
            if opened.future.done():
                # who asks what is here, and nothing else, would keep the loop for itself
                await asyncio.sleep(0)
            outcome, payload = await opened.future
        except asyncio.CancelledError:
            self.give_up(opened, None)
            raise
        if outcome != OK:
            raise self.error(opened, payload)
        return payload

    async def locate(self, token: str) -> int:
        """The shard of an agent of a kind that is not known here yet. Raises `Closed`, `NoQuorum`,
        `Overloaded`."""
        self._check(token)
        await self.placement.knows(token[: token.find("/")])
        return self.space.shard_of(token)

    def check_open(self) -> None:
        """Raise `Closed`, which says why, where no more calls are taken."""
        if self._closed:
            raise Closed(self._closed)

    def _check(self, what: str) -> None:
        if self._closed:
            raise Closed(self._closed)
        if self._life.isolated():
            why, kind = self._life.refusal()
            raise kind(f"{what}: {why}, and nothing was done")
        if len(self._open) >= limits.OPEN_CALLS_MAX:
            raise Overloaded(
                f"this process waits for {limits.OPEN_CALLS_MAX} answers: ask more slowly"
            )

    def begin(
        self, shard: int, token: str, handler: str, arguments: bytes,
        options: Options, reads_only: bool, context: Turn | None = None,
    ) -> Open:  # fmt: skip
        """Send a call on its way. Whoever awaits its future finds the `error` there, or may
        `give_up`.

        As a coroutine of its own, within that of whoever asks, it would cost each ask a twentieth
        more.
        """
        self._check(token)
        timeout_seconds, fresh = options.timeout_seconds, options.fresh
        message_id = "" if reads_only else options.message_id
        deadline, keep_until = self._clock.now() + timeout_seconds, 0.0
        path: tuple[str, ...] = ()
        turn = current.get() if context is None else context
        asker: Turn | None = None
        if turn is not None:
            if turn._task is not None and turn._task is asyncio.current_task():
                asker = turn
            if not turn._over and (asker is not None or context is not None):
                path = turn.path
                if not reads_only and token in path:
                    circle = " → ".join((*path, token))
                    raise WouldDeadlock(
                        f"{token} is waiting for this very call ({circle}): send to it instead"
                    )
            if context is not None and not context._over:
                if context.deadline and context.deadline < deadline:
                    deadline = context.deadline
                if not reads_only and not message_id:
                    message_id = context.next_call_id()
                    keep_until = context.deadline and context.deadline + limits.CLOCK_SKEW_SECONDS
        self._number = number = self._number + 1
        numbered = low = 0
        if not reads_only and not message_id:
            numbered = number
            low = (
                number
                if self._open_to.setdefault(token, number) == number
                else self._beside(token, number)
            )
        call = Call(
            token,
            handler,
            arguments,
            0,
            self.caller,
            numbered,
            low,
            deadline,
            message_id,
            keep_until,
            path,
            fresh,
        )
        future: asyncio.Future[tuple[int, bytes]] = self._loop.create_future()
        self._open[number] = opened = Open(number, call, shard, deadline, future)
        if asker is not None:
            asker._asks = opened
        self._send(opened)
        return opened

    async def place(self, token: str, pool: Pool | str | None) -> None:
        """See that the log knows where an agent's inbox is. Raises `UnknownKind`, `NoQuorum`,
        `OutcomeUnknown`."""
        kind = token[: token.find("/")]
        if kind in self.space.table.kinds and not self._placing:
            return
        self._placing += 1
        try:
            async with self._in_turn:  # what was sent first is placed first
                known = kind in self.space.table.kinds or await self.placement.knows(kind, pool)
        finally:
            self._placing -= 1
        if not known:
            raise UnknownKind(
                f"no node has ever served agents of kind {kind}: serve it once before you send to "
                "it"
            )

    async def send(
        self, token: str, handler: str, arguments: bytes, timeout_seconds: float, message_id: str
    ) -> None:
        """Append to the agent's inbox. See `AgentRef.send` for what it raises."""
        self.check_open()
        await self.sender.send(token, handler, arguments, timeout_seconds, message_id)

    def tell(self, token: str, handler: str, arguments: bytes) -> None:
        """Hand over a message that may be lost. Here too its turn begins later: a chain of them
        must not nest their turns."""
        call = Call(token, handler, arguments, 0, self.caller)
        here, shard = self._here, self.space.shard_of(token)
        if shard in here.shards:
            self._loop.call_soon(here.take, call, None, context=guard.fresh())
        else:
            self._frames.add(self._owners.get(shard) or shard, call)

    def error(self, opened: Open, payload: bytes) -> HoldfastError:
        """What an answer says that is none."""
        try:
            error = from_wire(*(wire := _decode_error(payload)))
        except msgspec.MsgspecError:
            return OutcomeUnknown(f"the answer of {opened.call.token} cannot be read")
        # The code that an agent is broken for may be mended when another attempt comes to it.
        mended = (
            isinstance(error, BadState)
            and wire[2] == UNRECORDED
            and (opened.call.number or opened.call.message_id)
        )
        if (mended or isinstance(error, NotDone)) and opened.unanswered:
            return OutcomeUnknown(f"{opened.call.token}: {error}; an earlier attempt {_SILENT}")
        return clock_skew.explained(
            error, opened.deadline - self._clock.now(), not opened.call.message_id
        )

    # Sending --------------------------------------------------------------------------------------

    def _send(self, opened: Open) -> None:
        opened.attempts = attempts = opened.attempts + 1
        opened.unanswered |= 1 << attempts
        opened.sent_at = self._loop.time()
        call, shard, here = opened.call, opened.shard, self._here
        call.reference = opened.number << ATTEMPT_BITS | attempts
        if shard in here.shards:
            opened.target = here.incarnation
            here.take(call, self._on_reply)
            return
        opened.target = target = self._owners.get(shard) or self._owner_of(shard)
        self._frames.add(target or shard, call)

    def _beside(self, token: str, number: int) -> int:
        """Note one more open call to a receiver; return the lowest number of them."""
        others = self._open_to[token]
        if isinstance(others, int):
            others = self._open_to[token] = {others: None}
        others[number] = None
        return next(iter(others))

    # Answers --------------------------------------------------------------------------------------

    def _on_message(self, message: Message) -> None:
        if message.no_responders:
            for reference in self._frames.unheard(message.subject):
                opened = self._open.get(reference >> ATTEMPT_BITS)
                if opened is not None:
                    self._turned_away(opened, reference, "nobody serves its shard")
            return
        try:
            replies = decode_replies(message.payload)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            self._frames.door.drop(message.payload, error)  # the attempts end unanswered
            return
        opens, owners, open_to, owner = self._open, self._owners, self._open_to, replies.incarnation
        for reply in replies.replies:
            number = reply.reference >> ATTEMPT_BITS
            opened = opens.get(number)
            if opened is None:
                continue
            outcome = reply.outcome
            if outcome <= ERROR:
                owners[opened.shard] = owner
            # What most replies are is done here, without two calls for each.
            if outcome != OK or open_to.get(opened.call.token) != number:
                self._answered(opened, reply.reference, outcome, reply.payload)
                continue
            del opens[number], open_to[opened.call.token]
            if not (future := opened.future).done():
                future.set_result((OK, reply.payload))

    def _on_reply(self, reference: int, outcome: int, payload: bytes) -> None:
        opened = self._open.get(reference >> ATTEMPT_BITS)
        if opened is not None:
            self._answered(opened, reference, outcome, payload)

    def _answered(self, opened: Open, reference: int, outcome: int, payload: bytes) -> None:
        if outcome <= ERROR:
            opened.unanswered &= ~(1 << (reference & _ATTEMPT_MASK))
            self._close(opened)
            if not (future := opened.future).done():
                future.set_result((outcome, payload))
        elif outcome == NOT_OWNER:
            self._turned_away(opened, reference, "its owner is changing", payload)
        elif outcome == BEGUN:
            # that attempt may still be committed
            self._turned_away(opened, 0, "its owner is changing", payload)
        elif outcome == BUSY:
            self._turned_away(
                opened, reference, "its owner has all that it can take", keep_owner=True
            )
        elif outcome == WAITS:
            opened.hint = f" ({payload.decode(errors='replace')})"

    def _close(self, opened: Open) -> None:
        call, number = opened.call, opened.number
        del self._open[number]
        if call.number:
            open_to = self._open_to[call.token]
            if open_to == number:
                del self._open_to[call.token]
            elif isinstance(open_to, dict):
                del open_to[number]
                if not open_to:
                    del self._open_to[call.token]

    def _turned_away(
        self,
        opened: Open,
        reference: int,
        why: str,
        next_owner: bytes = b"",
        keep_owner: bool = False,
    ) -> None:
        # An attempt is known by its number: the bus may deliver what it was told twice.
        opened.unanswered &= ~(1 << (reference & _ATTEMPT_MASK))
        opened.refused = why
        if next_owner and ids.is_incarnation(name := next_owner.decode(errors="replace")):
            self._owners[opened.shard] = name
        elif not keep_owner:
            self._owners.pop(opened.shard, None)
        opened.refusals += 1
        seconds = (
            0.0
            if opened.refusals == 1
            else backoff.delay_seconds(opened.refusals, self.random, 0.25)
        )
        if not opened.unanswered and self._clock.now() + seconds > opened.deadline:
            self._fail(opened, _TOO_LATE, DeadlineExceeded)
            return
        self._loop.call_later(seconds, self._again, opened.number, opened.attempts)

    def _again(self, number: int, attempts: int) -> None:
        opened = self._open.get(number)
        if opened is not None and opened.attempts == attempts:
            self.retries += 1
            self._send(opened)

    def _fail(self, opened: Open, why: str, error: Callable[[str], HoldfastError]) -> None:
        self._close(opened)
        if opened.future.done():
            return
        text = f"{opened.call.token} {opened.call.handler}: {why}{opened.hint}"
        if opened.unanswered:
            opened.future.set_exception(OutcomeUnknown(f"{text}; an attempt {_SILENT}"))
        else:
            opened.future.set_exception(error(f"{text}, and nothing was done: {opened.refused}"))

    def send_probe(self, opened: Open, probe: Probe) -> None:
        """Send a probe after a call; see `circles`."""
        self._frames.probe(opened.target or self._owners.get(opened.shard) or opened.shard, probe)

    def give_up(self, opened: Open, context: Turn | None) -> None:
        """Nobody waits for the answer any more. Its agent hears of it, unless it was asked in a
        turn that was stopped here, and makes the call again, under the same id, on another node."""
        if opened.number not in self._open:
            return
        self._close(opened)
        if context is not None and not context.is_live:
            return
        if opened.shard in self._here.shards:
            self._here.cancel(opened.call)
        elif opened.target:
            self._frames.cancel(opened.target, opened.call)

    # Time and failures ----------------------------------------------------------------------------

    async def _sweep(self) -> None:
        swept_at = self._loop.time()
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            now, monotonic = self._clock.now(), self._loop.time()
            late, swept_at = max(monotonic - swept_at - 2 * _SWEEP_SECONDS, 0.0), monotonic
            life, waits = self._life, monotonic - 2 * _SWEEP_SECONDS
            life.want(any(one.attempts > 1 or one.sent_at < waits for one in self._open.values()))
            if life.isolated():
                for opened in list(self._open.values()):
                    self._fail(opened, *life.refusal())
            for opened in list(self._open.values()):
                # what came while this process stood still
                opened.sent_at = min(opened.sent_at + late, monotonic)
                if opened.deadline <= now:
                    self._fail(opened, _TOO_LATE, DeadlineExceeded)
                elif opened.unanswered and opened.sent_at < monotonic - limits.ATTEMPT_SECONDS:
                    # Its owner may be gone with the message in its hands, or only slow; then it
                    # joins the attempts.
                    opened.call.interrupted = True
                    self._owners.pop(opened.shard, None)
                    self.retries += 1
                    self._send(opened)

    def statistics(self) -> Mapping[str, int]:
        """Counts since the start."""
        return {
            "open_calls": len(self._open),
            "retries": self.retries,
            "frames": self._frames.count,
        }
