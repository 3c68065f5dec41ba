"""What all shards of one node share: the engine, the committers, the timers, and which kinds of
agents it serves.

It is also where messages come in. A caller joins its calls for one node into a frame; here a frame
is taken apart, each call goes to its agent, and the replies of one tick go back as one frame.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from functools import partial
from typing import Any, Final

from holdfast import codec, limits, loops
from holdfast.agents import guard
from holdfast.agents.agent import Agent
from holdfast.agents.calls import Sink
from holdfast.agents.kind import Kind
from holdfast.calling import frames
from holdfast.calling.router import Router
from holdfast.clock import Clock
from holdfast.cluster.members.liveness import Liveness
from holdfast.cluster.members.standstills import Standstills
from holdfast.cluster.ownership.epochs import Claim
from holdfast.core import backoff
from holdfast.core.pools import Space
from holdfast.engines.base import Engine, Message, Record, Stored, Subscription
from holdfast.engines.gate import Gate
from holdfast.errors import ConfigError, DataLoss, HoldfastError, NoQuorum, Unknown
from holdfast.records.messages import ERROR, NOT_OWNER, Call, Replies, Reply
from holdfast.serving import delivery, fast_path
from holdfast.serving.commits import large_states
from holdfast.serving.commits.committer import Committer
from holdfast.serving.complaints import Complaints
from holdfast.serving.early_calls import EarlyCalls
from holdfast.serving.shards.shard import Shard
from holdfast.serving.stalls import Stalls
from holdfast.serving.timers import Timers
from holdfast.serving.turns import deadlocks, poison
from holdfast.serving.turns.activation import Activation
from holdfast.serving.workers.workers import Workers

_logger = logging.getLogger(__name__)
_LINGER_SECONDS: Final = 1.0


class Runtime:
    """The agents' side of a node. ``reclaim`` and ``lost`` are told which shards must be claimed
    anew, or are gone."""

    def __init__(
        self,
        engine: Engine,
        clock: Clock,
        router: Router,
        life: Liveness,
        cells: list[str],
        space: Space,
        serve: Iterable[type[Agent[Any]]],
        gate: Gate,
    ) -> None:
        self.engine = engine
        self.gate = gate
        self.clock = clock
        self.router = router
        self.life = life
        self.loop = asyncio.get_running_loop()
        self.kinds: dict[str, Kind] = {}
        for cls in serve:
            kind = getattr(cls, "__kind__", None)
            if not isinstance(kind, Kind):
                raise ConfigError(f"{cls!r} is no agent class: write class MyAgent(Agent[MyState])")
            if self.kinds.setdefault(kind.name, kind) is not kind:
                raise ConfigError(
                    f"two classes are served under the kind {kind.name!r}: give one kind=... of "
                    "its own"
                )
        self.door = frames.calls_door()
        self.shards: dict[int, Shard] = {}
        self.resident: dict[str, Activation] = {}
        """The agents in memory, of all shards."""
        self.committers = {cell: Committer(self, cell) for cell in cells}
        self.timers = Timers(clock)
        self.quarantine = asyncio.Lock()
        self.workers = Workers()
        self.stalls, self.standstills = Stalls(), Standstills()
        self.complaints = Complaints(self.loop.time)
        self.warm_bytes = 0
        # agents and messages that were interrupted, and that it has outlived
        self.marks: set[tuple[str, str]] = set()
        self.on_reclaim: Callable[[str, list[int]], None] = _ignore
        self.on_lost: Callable[[str, list[int]], None] = _ignore
        self._cells = cells
        self._space = space
        self._next_owners: dict[int, bytes] = {}
        """Of shards just let go of, who is to own them."""
        self._parking = EarlyCalls(self.loop, self._take_again)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._outlets: dict[str, list[Reply]] = {}
        self._subscriptions: dict[str, Subscription] = {}
        self.failures: list[BaseException] = []
        self.on_failed: Callable[[str, BaseException | None], None] = loops.report
        self.closing = False
        # those of the tasks that last as long as the node
        self._parts: set[asyncio.Task[Any]] = set()
        router.runtime = self

    @property
    def incarnation(self) -> str:
        """The name of this life of the node."""
        return self.life.incarnation

    @property
    def kind_names(self) -> str:
        """The kinds served, for messages to people."""
        return ", ".join(sorted(self.kinds)) or "none"

    def known(self, kind: str) -> type[Agent[Any]] | None:
        """The class served under a kind, if this node serves it."""
        found = self.kinds.get(kind)
        return None if found is None else found.cls

    async def start(self) -> None:
        """Begin to commit, and to take calls for the shards that will be added."""
        for committer in self.committers.values():
            self._parts.add(self.spawn(committer.run()))
        self._parts.add(self.spawn(self._passivate()))
        await self._subscribe(f"hf.n.{self.incarnation}")

    async def _subscribe(self, subject: str) -> None:
        # In a queue, so that one attempt reaches one node, also while a shard moves and two of them
        # listen.
        self._subscriptions[subject] = await self.engine.bus.subscribe(
            subject, self._on_frame, "owner"
        )

    def spawn(
        self, work: Coroutine[Any, Any, Any], may_be_cancelled: bool = False
    ) -> asyncio.Task[Any]:
        """Run beside everything else, in a context of its own. Who cancels it fails the node, but
        for a turn's or reader's."""
        task = self.loop.create_task(work, context=guard.fresh())
        self._tasks.add(task)
        task.add_done_callback(partial(self._ended, may_be_cancelled))
        return task

    def _ended(self, may_be_cancelled: bool, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        why = (
            None
            if may_be_cancelled and task.cancelled()
            else loops.end_of(task, task not in self._parts)
        )
        if why is not None and not self.closing:
            self.failures.append(why[1] or RuntimeError(why[0]))
            name = getattr(task.get_coro(), "__qualname__", "a task")
            self.on_failed(f"{name} {why[0]}", why[1])

    # Shards ---------------------------------------------------------------------------------------

    def shard_of(self, token: str) -> int:
        """The shard of an agent."""
        return self._space.shard_of(token)

    def cell_of(self, shard: int) -> str:
        """The cell of a shard."""
        return self._cells[shard % len(self._cells)]

    async def add_shards(
        self, cell: str, claims: Mapping[int, Claim], records: list[Stored]
    ) -> None:
        """Serve shards just claimed, from all their records before the claim.

        Raises `DataLoss`; then none of them is served. Nor is one where this node was not live for
        a moment meanwhile.
        """
        lapses = self.life.lapses
        shards = {number: Shard(self, number, cell, claim) for number, claim in claims.items()}
        of: dict[int, list[Stored]] = {number: [] for number in shards}
        skip = len(cell) + 1
        async for stored in loops.in_slices(records):
            number = int(stored.subject[skip : stored.subject.index(".", skip)])
            if number in claims and stored.sequence < claims[number].epoch:
                of[number].append(stored)
        found: dict[int, tuple[list[Any], list[Stored]]] = {}
        for number, shard in shards.items():
            try:
                found[number] = await shard.recover(of[number])
            except DataLoss:
                for other in shards.values():
                    other.stop()
                raise
            await asyncio.sleep(0)  # beats and other shards' turns go on
        if self.life.lapses != lapses:  # they are claimed anew
            for shard in shards.values():
                shard.stop()
            return
        for number, shard in shards.items():
            old = self.shards.get(number)
            if old is not None:
                old.stop()
            self.shards[number] = shard
            shard.start(*found[number])
            self.committers[cell].began(shard)
            self._parking.hand_on(number)
        self.spawn(
            large_states.sweep(
                self, [shard for number, shard in shards.items() if not claims[number].clean]
            )
        )
        # a recovery that took long may have outlived what was left of an older subscription
        await self.listen(shards)

    def on_inbox(self, cell: str, records: list[Stored], epochs: Mapping[int, int]) -> None:
        """Take records that the live tail of the inboxes brought. ``epochs``: of the shards that it
        was begun for.

        A shard that was claimed anew has a tail of its own: what an older one brings may have a gap
        before it.
        """
        skip = len(cell) + 1
        for stored in records:
            number = int(stored.subject[skip : stored.subject.index(".", skip)])
            shard = self.shards.get(number)
            if shard is not None and shard.epoch == epochs.get(number):
                shard.receive(stored)

    def expect(self, numbers: Iterable[int]) -> None:
        """Keep the calls for these shards, for a moment: they are about to be owned."""
        self._parking.expect(number for number in numbers if number not in self.shards)

    async def listen(self, numbers: Iterable[int]) -> None:
        """Take the calls for shards that were claimed, before they are recovered."""
        missing = [
            f"hf.s.{number}" for number in numbers if f"hf.s.{number}" not in self._subscriptions
        ]
        self.expect(numbers)
        await asyncio.gather(*(self._subscribe(subject) for subject in missing))

    def serves(self, number: int) -> bool:
        """Whether a shard is served here."""
        return number in self.shards

    def drop_shards(self, numbers: Iterable[int]) -> None:
        """Stop serving at once: they are another's, or will be claimed anew."""
        for number in numbers:
            shard = self.shards.pop(number, None)
            if shard is not None:
                shard.stop()
                self._next_owners[number] = shard.next_owner
            # What is on its way to this node is still to be turned away, so it listens a little
            # longer.
            self.loop.call_later(_LINGER_SECONDS, self._stop_listening, number)

    def _stop_listening(self, number: int) -> None:
        self._next_owners.pop(number, None)
        if (
            number not in self.shards
            and (subscription := self._subscriptions.pop(f"hf.s.{number}", None)) is not None
        ):
            self.spawn(subscription.close())

    async def drain(self, targets: Mapping[int, str], timeout_seconds: float) -> set[int]:
        """Start no more turns in these shards, and wait until those that run are committed, or the
        time is over.

        ``targets``: per shard who is to own it next, and gets its calls from now on. Returns the
        shards that stay: what is packed of them, or under way, could not be written in time.
        """
        shards = [self.shards[number] for number in targets if number in self.shards]
        end = self.loop.time() + timeout_seconds / 2
        for shard in shards:
            self.committers[shard.cell].settle(shard)
        while (
            any(shard.active and shard.packed for shard in shards)
            and self.loop.time() < end
            and self.life.live()
        ):
            await asyncio.sleep(0.002)
        for shard in shards:
            shard.draining = True
            shard.next_owner = targets[shard.number].encode()
        end += timeout_seconds / 2
        while (
            any(shard.active and (shard.busy() or shard.packed) for shard in shards)
            and self.loop.time() < end
        ):
            await asyncio.sleep(0.002)
        stay = [shard for shard in shards if shard.active and (shard.packed or shard.under_way())]
        self.drop_shards([shard.number for shard in shards if shard not in stay])
        for shard in stay:
            shard.go_on()
        return {shard.number for shard in stay}

    async def write(self, cell: str, records: list[Record]) -> range:
        """Append between two batches of the cell. Raises what `Log.append` does; its shards are
        reclaimed where due."""
        return await self.committers[cell].write(records)

    def reclaim(self, cell: str) -> None:
        """A batch's outcome is unknown: stop all shards of the cell, and have them claimed anew
        from this node."""
        numbers = [number for number, shard in self.shards.items() if shard.cell == cell]
        self.drop_shards(numbers)
        self.committers[cell].ended()
        self.on_reclaim(cell, numbers)

    def lost(self, cell: str, shards: list[Shard]) -> None:
        """The log refused a batch: these shards are another's."""
        numbers = [shard.number for shard in shards]
        self.drop_shards(numbers)
        self.on_lost(cell, numbers)

    def suspend(self) -> None:
        """This node is not live, or was not for a moment: stop all shards, and have them claimed
        anew when it is."""
        for cell in self._cells:
            self.reclaim(cell)

    async def begin_again(self) -> None:
        """This node was condemned, and goes on as another incarnation, without shards."""
        await self._subscribe(f"hf.n.{self.incarnation}")

    # Calls ----------------------------------------------------------------------------------------

    def _on_frame(self, message: Message) -> None:
        frame = self.door.read(message)
        if frame is None:
            return  # its sender's attempt ends unanswered
        reply = frame.reply
        outlet = self._outlets.get(reply)

        def sink(reference: int, outcome: int, payload: bytes) -> None:
            nonlocal outlet
            if outlet is None or not outlet:
                outlet = self._outlets.get(reply)
                if outlet is None:
                    outlet = self._outlets[reply] = []
                    if len(self._outlets) == 1:
                        self.loop.call_soon(self._flush)
            outlet.append(Reply(reference, outcome, payload))

        resident, fast = self.resident, fast_path.take
        for call in frame.calls:
            found = resident.get(call.token)
            if found is None or not call.reference or not fast(found, call, sink):
                self._take(call, sink if call.reference else None)
        for call in frame.cancelled:
            self.cancel(call)
        for probe in frame.probes:
            deadlocks.follow(self, probe)

    def cancel(self, call: Call) -> None:
        """Its caller gave it up."""
        shard = self.shards.get(self.shard_of(call.token))
        activation = shard.activations.get(call.token) if shard is not None else None
        if activation is not None:
            activation.cancel(call)

    def take(self, call: Call, sink: Sink | None) -> None:
        """Give a call to its agent; where the shard is not served here the caller is told at
        once."""
        found = self.resident.get(call.token)
        if found is None or sink is None or not fast_path.take(found, call, sink):
            self._take(call, sink)

    def _take(self, call: Call, sink: Sink | None) -> None:
        """Do so the general way."""
        shard = self.shards.get(number := self._space.shard_of(call.token))
        if shard is None or not shard.active or shard.draining:
            if (
                shard is not None or not self._parking.keep(number, call, sink)
            ) and sink is not None:
                sink(
                    call.reference,
                    NOT_OWNER,
                    self._next_owners.get(number, b"") if shard is None else shard.next_owner,
                )
            return
        try:
            activation = shard.activations.get(call.token) or poison.reach(shard, call.token)
        except HoldfastError as error:
            if sink is not None:
                sink(call.reference, ERROR, delivery.refusal_bytes(error))
            return
        activation.deliver(delivery.from_call(call, sink))

    def _take_again(self, number: int, call: Call, sink: Sink | None) -> None:
        if number in self.shards:
            self.take(call, sink)
        elif sink is not None:
            sink(call.reference, NOT_OWNER, b"")

    def _flush(self) -> None:
        outlets, self._outlets = self._outlets, {}
        for subject, replies in outlets.items():
            for some in frames.split(replies, frames.reply_bytes):
                self.engine.bus.publish(subject, codec.encode_raw(Replies(self.incarnation, some)))
            replies.clear()

    # Housekeeping ---------------------------------------------------------------------------------

    async def _passivate(self) -> None:
        shortest = min(
            (kind.idle_seconds for kind in self.kinds.values()), default=limits.IDLE_SECONDS
        )
        while True:
            await asyncio.sleep(min(max(shortest / 4, 0.05), 15.0))
            now = self.loop.time()
            for shard in list(self.shards.values()):
                await shard.passivate(now)
                await asyncio.sleep(0)

    async def purge(self, cell: str, subject: str, before_sequence: int) -> None:
        """Have the log forget what is done with. What fails is tried again a few times; the next
        purge covers it."""
        for attempt in range(1, 6):
            try:
                await self.engine.log.purge(cell, subject, before_sequence)
                return
            except (NoQuorum, Unknown):
                await asyncio.sleep(backoff.delay_seconds(attempt, self.router.random))

    def statistics(self) -> dict[str, int]:
        """Counts since the start."""
        return {
            "shards": len(self.shards),
            "agents": sum(len(shard.index) for shard in self.shards.values()),
            "resident": len(self.resident),
            "timers": len(self.timers),
            "stalls": self.stalls.count,
            "batches": sum(committer.batches for committer in self.committers.values()),
            "records": sum(committer.records for committer in self.committers.values()),
            "turns": sum(committer.turns for committer in self.committers.values()),
        }

    async def close(self) -> None:
        """Stop everything at once. Let go of shards first with `drain`."""
        self.closing = True
        self.drop_shards(list(self.shards))
        for subscription in list(self._subscriptions.values()):
            await subscription.close()
        self._subscriptions.clear()
        self.timers.close()
        self.stalls.close()
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        _, left = (
            await asyncio.wait(tasks, timeout=limits.CANCELLED_SECONDS) if tasks else (set(), set())
        )
        for task in left:
            _logger.warning(
                "%s goes on though it was cancelled, and is left to itself", task.get_name()
            )
        await self.workers.close()


def _ignore(_cell: str, _numbers: list[int]) -> None:
    pass
