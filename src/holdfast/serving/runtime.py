"""What all shards of one node share: the engine, the committers, the timers, and which kinds of
agents it serves. Calls come in at `holdfast.serving.intake`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

from holdfast import limits, loops
from holdfast.agents.agent import Agent
from holdfast.agents.kind import Kind
from holdfast.calling.router import Router
from holdfast.clock import Clock
from holdfast.cluster.members.liveness import Liveness
from holdfast.cluster.members.standstills import Standstills
from holdfast.cluster.ownership.epochs import Claim
from holdfast.core import backoff
from holdfast.core.pools import Space
from holdfast.engines.base import Engine, Record, Stored
from holdfast.engines.gate import Gate
from holdfast.errors import ConfigError, DataLoss, NoQuorum, Unknown
from holdfast.records import subjects
from holdfast.serving.commits import large_states
from holdfast.serving.commits.committer import Committer
from holdfast.serving.complaints import Complaints
from holdfast.serving.intake import Intake
from holdfast.serving.shards import inbox
from holdfast.serving.shards.shard import Shard
from holdfast.serving.tasks import Tasks
from holdfast.serving.timers import Timers
from holdfast.serving.turns.activation import Activation
from holdfast.serving.workers.workers import Workers


def kinds_of(serve: Iterable[type[Agent[Any]]]) -> dict[str, Kind]:
    """The kinds of these classes, by name. Raises `ConfigError`."""
    kinds: dict[str, Kind] = {}
    for cls in serve:
        kind = getattr(cls, "__kind__", None)
        if not isinstance(kind, Kind):
            raise ConfigError(f"{cls!r} is no agent class: write class MyAgent(Agent[MyState])")
        if kinds.setdefault(kind.name, kind) is not kind:
            raise ConfigError(
                f"two classes are served under the kind {kind.name!r}: give one kind=... of its own"
            )
    return kinds


class Owner(Protocol):
    """Who hears of shards that this node cannot go on with."""

    def reclaim(self, cell: str, numbers: list[int]) -> None:
        """They are to be claimed anew, by this node."""

    def lost(self, cell: str, numbers: list[int]) -> None:
        """They are another's."""


class Runtime:
    """The agents' side of a node. ``owner`` finds who hears of shards that are lost: it is made
    later."""

    def __init__(
        self,
        engine: Engine,
        clock: Clock,
        gate: Gate,
        router: Router,
        life: Liveness,
        standstills: Standstills,
        intake: Intake,
        tasks: Tasks,
        cells: list[str],
        space: Space,
        kinds: dict[str, Kind],
        owner: Callable[[], Owner],
    ) -> None:
        self.engine = engine
        self.gate = gate
        self.clock = clock
        self.router = router
        self.life = life
        self.standstills = standstills
        self.intake = intake
        self.tasks = tasks
        self.spawn: Final = tasks.spawn
        self.loop = asyncio.get_running_loop()
        self.kinds = kinds
        """The kinds that are served here, by name."""
        self.timers = Timers(clock)
        self.quarantine = asyncio.Lock()
        """Held by the one message of the node that runs alone."""
        self.workers = Workers()
        self.complaints = Complaints(self.loop.time)
        self.warm_bytes = 0
        """Of the records that all shards keep in memory for agents that are not."""
        self.marks: set[tuple[str, str]] = set()
        """The agents and messages that were interrupted, and that this node has outlived."""
        self._cells = cells
        self._space = space
        self._owner = owner
        self.committers = {cell: Committer(self, cell) for cell in cells}

    @property
    def shards(self) -> dict[int, Shard]:
        """The shards that are served here, by number."""
        return self.intake.shards

    @property
    def resident(self) -> dict[str, Activation]:
        """The agents in memory, of all shards."""
        return self.intake.resident

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
            self.tasks.keep(committer.run())
        self.tasks.keep(self._passivate())
        await self.intake.start()

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
        async for stored in loops.in_slices(records):
            number = subjects.shard_of(stored.subject)
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
            self.intake.began(number)
        self.spawn(
            large_states.sweep(
                self, [shard for number, shard in shards.items() if not claims[number].clean]
            )
        )
        # a recovery that took long may have outlived what was left of an older subscription
        await self.listen(shards)
        epochs = {number: claim.epoch for number, claim in claims.items()}
        self.spawn(inbox.follow(self, cell, epochs))

    def expect(self, numbers: Iterable[int]) -> None:
        """Keep the calls for these shards, for a moment: they are about to be owned."""
        self.intake.expect(numbers)

    async def listen(self, numbers: Iterable[int]) -> None:
        """Take the calls for shards that were claimed, before they are recovered."""
        await self.intake.listen(numbers)

    def drop_shards(self, numbers: Iterable[int]) -> None:
        """Stop serving at once: they are another's, or will be claimed anew."""
        for number in numbers:
            shard = self.shards.pop(number, None)
            if shard is not None:
                shard.stop()
            self.intake.ended(number, None if shard is None else shard.next_owner)

    async def drain(self, targets: Mapping[int, str], timeout_seconds: float) -> dict[int, int]:
        """Start no more turns in these shards, and wait until those that run are committed, or the
        time is over.

        ``targets``: per shard who is to own it next, and gets its calls from now on. Returns the
        shards that were let go of, with their epochs. A shard stays if something of it, packed or
        under way, could not be written in time.
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
        held = {
            shard.number: shard.epoch
            for shard in shards
            if shard not in stay and self.shards.get(shard.number) is shard
        }
        self.drop_shards([shard.number for shard in shards if shard not in stay])
        for shard in stay:
            shard.go_on()
        return held

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
        self._owner().reclaim(cell, numbers)

    def lost(self, cell: str, shards: list[Shard]) -> None:
        """The log refused a batch: these shards are another's."""
        numbers = [shard.number for shard in shards]
        self.drop_shards(numbers)
        self._owner().lost(cell, numbers)

    def suspend(self) -> None:
        """This node is not live, or was not for a moment: stop all shards, and have them claimed
        anew when it is."""
        for cell in self._cells:
            self.reclaim(cell)

    async def begin_again(self) -> None:
        """This node was condemned, and goes on as another incarnation, without shards."""
        await self.intake.start()

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
            "batches": sum(committer.batches for committer in self.committers.values()),
            "records": sum(committer.records for committer in self.committers.values()),
            "turns": sum(committer.turns for committer in self.committers.values()),
        }

    async def close(self) -> None:
        """Stop everything at once. Let go of shards first with `drain`."""
        self.tasks.closing()
        self.drop_shards(list(self.shards))
        await self.intake.close()
        self.timers.close()
        await self.tasks.close()
        await self.workers.close()
