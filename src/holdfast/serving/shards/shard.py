"""A shard that this node owns: which agents it has, which of them are in memory, and what waits in
their inboxes.

The index (agent → sequence of its newest record) is rebuilt from the log when the shard is claimed,
and from then on only this owner changes it. So a load never asks "what is the newest record?",
which a lagging replica answers wrongly; it asks for exactly the sequence that the index names.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from itertools import chain
from typing import TYPE_CHECKING, Any

from holdfast import ids, limits, loops
from holdfast.cluster.ownership.epochs import Claim
from holdfast.core.digest import entry, moved
from holdfast.engines.base import Expect, Stored
from holdfast.errors import DataLoss, HoldfastError, NoQuorum, Unknown, UnknownKind
from holdfast.records import agent_record, subjects
from holdfast.records.agent_record import AgentRecord, check_digest
from holdfast.records.messages import NOT_OWNER, Timer
from holdfast.records.packs import Packed
from holdfast.serving import delivery
from holdfast.serving.delivery import Delivery
from holdfast.serving.shards import inbox
from holdfast.serving.shards.outbox_relay import OutboxRelay
from holdfast.serving.turns import poison
from holdfast.serving.turns.activation import Activation

if TYPE_CHECKING:
    from holdfast.serving.commits.pack_table import Pack
    from holdfast.serving.runtime import Runtime

_READS_MAX = 40


class Shard:
    """See the module. ``active``: owned, recovered, and not let go of; once False it stays so."""

    def __init__(self, runtime: Runtime, number: int, cell: str, claim: Claim) -> None:
        self.runtime = runtime
        self.number = number
        self.cell = cell
        self.epoch = epoch = claim.epoch
        self.chain = claim.chain
        """The chain whose batches may hold records of it: no other is broken for its next owner."""
        self.prefix = subjects.shard(cell, number)
        self.committer = runtime.committers[cell]
        self.fence = Expect(subjects.epoch(cell, number), epoch)
        self.active = False
        self.draining = False
        self.next_owner = b""
        """While it drains: the node that is to own it next."""
        self.commit = 0
        self.digest = 0
        self.index: dict[str, int] = {}
        self.warm: dict[str, bytes] = {}
        self.packed = 0
        """How many agents have their newest record in a pack."""
        self.foreign: dict[str, bytes] = {}
        """Those of them that have it in the pack of an owner before, with that record."""
        self.settling = False
        """It is about to be let go of: whatever is packed gets a record of its own."""
        self.unsettled = not claim.settled
        """The packs of other chains may be needed for it."""
        self.activations: dict[str, Activation] = {}
        self.unique = 0
        self._held: dict[str, list[Delivery | int]] = {}
        self.blobs: set[str] = set()
        """The blobs that records named at the claim."""
        self._outbox: list[tuple[str, int, bytes]] = []
        """What the owner before left to carry over: target cell, sequence, payload."""
        self._relays: dict[str, OutboxRelay] = {}
        self.claim = claim
        self.interrupted_before, self.interrupted_due = claim.interrupted
        self._inbox_open: dict[int, None] = {}
        self._inbox_seen = 0
        self._consumed_count = 0
        self.claimed_at = runtime.loop.time()

    # Recovery -------------------------------------------------------------------------------------

    async def recover(
        self, records: Iterable[Stored]
    ) -> tuple[list[tuple[str, Timer]], list[Stored]]:
        """Rebuild the index from all of the shard's records before its epoch, in order; return
        timers and inbox.

        Raises `DataLoss` where a record is damaged, or where the digest shows that the replica read
        lacks one.
        """
        timers: list[tuple[str, Timer]] = []
        inbox: list[Stored] = []
        newest: list[tuple[int, str, AgentRecord]] = []
        consumed: dict[str, int] = {}
        async for stored in loops.in_slices(records):
            kind, _, rest = stored.subject[len(self.prefix) + 1 :].partition(".")
            if kind == subjects.INBOX:
                inbox.append(stored)
            elif kind == subjects.OUTBOX:
                self._outbox.append(
                    (subjects.target_of(stored.subject), stored.sequence, stored.payload)
                )
            elif kind == subjects.RECORD:
                record = agent_record.decode(
                    stored.payload, f"{self.cell} {stored.sequence} {rest}"
                )
                # A replica that is still catching up shows a record, and later the one that
                # replaced it.
                self.digest ^= moved(rest, self.index.get(rest, 0), stored.sequence)
                self.index[rest] = stored.sequence
                consumed[rest] = record.consumed
                if record.blob:
                    self.blobs.add(record.blob)
                self.runtime.warm_bytes -= len(self.warm.pop(rest, b""))
                self.foreign.pop(rest, None)
                if isinstance(stored, Packed):
                    self.foreign[rest] = stored.payload
                elif self.runtime.warm_bytes < limits.WARM_BYTES_MAX:
                    self.warm[rest] = stored.payload
                    self.runtime.warm_bytes += len(stored.payload)
                timers.extend((rest, timer) for timer in record.timers)
                if not newest or record.commit > newest[0][2].commit:
                    newest = []
                if not newest or record.commit == newest[0][2].commit:
                    newest.append((stored.sequence, rest, record))
        self.packed = len(self.foreign)
        self._verify(newest)
        # Of the inbox more may have been read than is left: see `cluster.recovery`.
        return timers, [
            one for one in inbox if one.sequence > consumed.get(subjects.agent_of(one.subject), 0)
        ]

    def _verify(self, newest: list[tuple[int, str, AgentRecord]]) -> None:
        """Compare with the digest that the newest batch carries of the index before it."""
        if newest:
            self.commit = check_digest(self.prefix, self.digest, len(self.index), newest)

    def start(self, timers: list[tuple[str, Timer]], inbox: list[Stored]) -> None:
        """Begin to serve."""
        self.active, self.claimed_at = True, self.runtime.loop.time()
        for token, timer in timers:
            self.watch(token, timer)
        for stored in inbox:
            self.receive(stored)
        for cell, sequence, payload in self._outbox:
            self.relay(cell).add(sequence, payload)
        self._outbox = []

    def relay(self, cell: str) -> OutboxRelay:
        """What carries this shard's sends into another cell."""
        if cell not in self._relays:
            self._relays[cell] = OutboxRelay(self.runtime, self, cell)
        return self._relays[cell]

    # Agents ---------------------------------------------------------------------------------------

    def activation(self, token: str) -> Activation:
        """The agent in memory; where it is not, its loading begins. Raises `UnknownKind`,
        `InvalidName`."""
        found = self.activations.get(token)
        if found is not None:
            return found
        kind = self.runtime.kinds.get(token.partition("/")[0])
        if kind is None:
            name = ids.from_agent_token(token)[0]
            raise UnknownKind(
                f"the owner of {token} does not serve the kind {name}: it serves "
                f"{self.runtime.kind_names}"
            )
        activation = Activation(self, token, kind)
        self.activations[token] = self.runtime.resident[token] = activation
        sequence = self.index.get(token, 0)
        payload = self.packed_record(token)
        if payload is None and (payload := self.warm.pop(token, None)) is not None:
            self.runtime.warm_bytes -= len(payload)
        try:
            if sequence == 0:
                activation.load(None, b"", 0)
            elif payload is not None:
                record = agent_record.decode(payload, f"{self.cell} {sequence} {token}")
                if not record.blob:
                    activation.load(record, record.state, sequence)
                    return activation
                self.runtime.spawn(self._load(activation, sequence))
            else:
                self.runtime.spawn(self._load(activation, sequence))
        except HoldfastError as error:
            self.runtime.loop.call_soon(self._cannot_load, activation, error)
        return activation

    async def _load(self, activation: Activation, sequence: int) -> None:
        try:
            record = await self._read_exactly(activation.token, sequence)
            state = record.state
            if record.blob:
                state = await self.runtime.engine.blobs.get(record.blob)
            if self.active and self.activations.get(activation.token) is activation:
                activation.load(record, state, sequence)
        except HoldfastError as error:
            self._cannot_load(activation, error)

    async def _read_exactly(self, token: str, sequence: int) -> AgentRecord:
        lost = DataLoss(
            f"record {sequence} of {token} in {self.cell} is committed, but no replica shows it"
        )
        for _ in range(_READS_MAX):
            try:
                stored = await self.runtime.engine.log.read_sequence(self.cell, sequence)
                if stored is not None and stored.subject == subjects.record(self.prefix, token):
                    return agent_record.decode(stored.payload, f"{self.cell} {sequence} {token}")
            except (NoQuorum, Unknown):
                pass
            except DataLoss as error:  # another replica may have it whole
                lost = error
            await asyncio.sleep(0.1)
        raise lost

    def _cannot_load(self, activation: Activation, error: HoldfastError) -> None:
        if self.activations.get(activation.token) is activation:
            self.drop(activation, error, limits.TAKEOVER_SECONDS)

    def drop(self, activation: Activation, error: HoldfastError, seconds: float = 0.0) -> None:
        """Forget what of the agent is not committed: calls get the error, its inbox and timers come
        again later."""
        self._leave(activation.token)
        payload = delivery.refusal_bytes(error)
        kept: list[Delivery | int] = []
        for message in activation.abandon():
            if isinstance(message, int) or message.call is None:
                kept.append(message)
            else:
                message.error = payload
                message.respond()
        self._hold(activation.token, kept, seconds)

    def rerun_alone(
        self, activation: Activation, guilty: Delivery | None, error: HoldfastError
    ) -> None:
        """Run the agent's uncommitted turns again, each with its own batch, so that a guilty one is
        found.

        The one that was found gets the error; a durable one becomes a dead letter with its next
        attempt.
        """
        self._leave(activation.token)
        messages = activation.abandon()
        again = self.activation(activation.token)
        again.solo = True
        for message in messages:
            if message is guilty and guilty is not None:
                guilty.attempts = limits.ATTEMPTS_MAX
                if guilty.call is not None:
                    guilty.error = delivery.error_bytes(error)
                    guilty.respond()
                    continue
            if isinstance(message, int):
                self.hand(activation.token, message)
            elif message.call is not None:
                again.deliver(message)
            else:
                self.hand(activation.token, message)

    def _hold(self, token: str, messages: list[Delivery | int], seconds: float) -> None:
        """Keep what the log holds for an agent in order, until it can be given to it."""
        if messages:
            self._held.setdefault(token, []).extend(messages)
            self.later(seconds, self._give_held, token)

    def _give_held(self, token: str) -> None:
        for message in self._held.pop(token, ()):
            self.hand(token, message)

    def hand(self, token: str, message: Delivery | int) -> None:
        """Give an inbox message or a timer to its agent; an agent that no code here knows keeps it
        waiting."""
        if token in self._held:
            self._held[token].append(message)
            return
        try:
            activation = poison.reach(self, token)
        except HoldfastError:
            self._hold(token, [message], limits.TAKEOVER_SECONDS)
            return
        if isinstance(message, int) or message.timer is None:
            activation.deliver_inbox(message)
        else:
            activation.deliver_timer(message)

    def _leave(self, token: str) -> None:
        """An agent is in memory no more."""
        activation = self.activations.pop(token, None)
        if activation is not None and self.runtime.resident.get(token) is activation:
            del self.runtime.resident[token]

    async def passivate(self, now: float) -> None:
        """Let idle agents leave memory, some at a time, so that others' turns go on."""
        async for token in loops.in_slices(list(self.activations)):
            activation = self.activations.get(token)
            if activation is not None and activation.idle(now):
                activation.loaded = activation.at_rest = False
                # they name each other: it goes at once, and not when the collector finds it
                activation.agent = None
                self._leave(token)
        if self.warm and now - self.claimed_at > limits.IDLE_SECONDS:
            # who had no message since the claim is as idle as one that had its last then
            self._cool()

    def packed_record(self, token: str) -> bytes | None:
        """An agent's newest record, if it is in a pack."""
        pack = self.committer.journal.packs.get(self.index.get(token, 0))
        return self.foreign.get(token) if pack is None else pack.records()[self.number, token]

    def committed(self, token: str, sequence: int, pack: Pack | None, known: int = 0) -> int:
        """An agent's newest record is there now; in a pack, where it is given.

        Returns its part of the digest; ``known``: that of its record before, where it was kept.
        """
        part, before = entry(token, sequence), self.index.get(token, 0)
        self.digest ^= part ^ (known or entry(token, before))
        self.index[token] = sequence
        if pack is not None:
            pack.needed += 1
            self.packed += 1
        if (old := self.committer.journal.packs.get(before)) is not None:
            old.needed -= 1
            self.packed -= 1
        if self.foreign and self.foreign.pop(token, None) is not None and old is None:
            self.packed -= 1
        return part

    def _cool(self) -> None:
        self.runtime.warm_bytes -= sum(map(len, self.warm.values()))
        self.warm = {}

    # Inbox ----------------------------------------------------------------------------------------

    def receive(self, stored: Stored) -> None:
        """Take a record of an inbox, in order."""
        if not self.active or stored.sequence <= self._inbox_seen:
            return
        self._inbox_seen = stored.sequence
        self._inbox_open[stored.sequence] = None
        token = subjects.agent_of(stored.subject)
        self.hand(token, inbox.message_of(stored, self.interrupted_before))

    def refill(self, activation: Activation) -> None:
        """Read on in the inbox of an agent that has more messages than are held in memory."""
        self.runtime.spawn(inbox.refill(self, activation))

    def consumed(self, sequence: int) -> None:
        """An inbox message is done with; the log may forget it when all before it are."""
        self._inbox_open.pop(sequence, None)
        self._consumed_count += 1
        if self._consumed_count == 1:
            self.later(limits.PURGE_SECONDS, self._purge_soon)

    def _purge_soon(self) -> None:
        if self._consumed_count:
            self._consumed_count = 0
            before = next(iter(self._inbox_open), self._inbox_seen + 1)
            self.runtime.spawn(
                self.runtime.purge(self.cell, subjects.all_of(self.prefix, subjects.INBOX), before)
            )

    # What the committer, the relays and turns need ------------------------------------------------

    def next_unique(self) -> str:
        """The end of a subject that no other record has."""
        self.unique += 1
        return f"{self.number}-{self.epoch}-{self.unique}"

    def watch(self, token: str, timer: Timer) -> None:
        """Have the timer fire when it is due, if it is still set then."""
        self.runtime.timers.add(timer.due, self, token, timer)

    def fire(self, token: str, timer: Timer) -> None:
        """A timer is due."""
        if self.active:
            self.hand(token, delivery.from_timer(timer, timer.due <= self.interrupted_due))

    def later(self, seconds: float, function: Callable[..., Any], *args: Any) -> None:
        """Call in a while, if the shard is still served then."""
        self.runtime.loop.call_later(seconds, self._if_active, function, args)

    def _if_active(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        if self.active:
            function(*args)

    def live(self) -> bool:
        """Whether an answer from memory may be given now."""
        return self.active and self.runtime.life.live()

    def has_interrupted(self, activation: Activation) -> bool:
        """Whether a message waits at the agent that may have been in the hands of a process that
        died."""
        waiting = chain(activation.mailbox or (), activation.inbox or ())
        return any(
            one < self.interrupted_before if isinstance(one, int) else one.interrupted
            for one in waiting
        )

    def busy(self) -> bool:
        """Whether a turn runs or waits for its commit."""
        return any(a.running or a.pending or a.in_batch for a in self.activations.values())

    def under_way(self) -> bool:
        """Whether a batch that holds something of it has no outcome yet."""
        return any(activation.in_batch for activation in self.activations.values())

    def go_on(self) -> None:
        """It is not let go of after all."""
        self.draining = self.settling = False
        self.next_owner = b""
        for activation in list(self.activations.values()):
            activation.pump()

    # End ------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Stop serving at once: handlers that wait are cancelled, callers are told to ask the next
        owner."""
        self.active = False
        self._cool()
        self.packed, self.foreign = 0, {}
        for token, activation in list(self.activations.items()):
            self._leave(token)
            for message in activation.abandon():
                if isinstance(message, Delivery):
                    message.turn_away(NOT_OWNER, self.next_owner)
