"""The parts of a node: which there are, and in which order they are made, begin and end.

Each part is given those that were made before it. Where a part has to tell one that is made after
it, it is given a function that finds the later one when it is called. Nothing calls any part before
`Assembly.start`.
"""

from __future__ import annotations

import asyncio

import msgspec

from holdfast import ids, limits
from holdfast.agents import child_tasks
from holdfast.agents.kind import Kind
from holdfast.calling.reroute import Reroute
from holdfast.calling.router import Router
from holdfast.clock import SYSTEM_CLOCK, Clock
from holdfast.cluster.facts.events import Events, unheard
from holdfast.cluster.facts.manifest import Manifest, registry_cell
from holdfast.cluster.facts.placement import Placement
from holdfast.cluster.facts.registry import Registry
from holdfast.cluster.facts.write_pause import WritePause
from holdfast.cluster.members.beats import Beat
from holdfast.cluster.members.liveness import Liveness
from holdfast.cluster.members.membership import Membership
from holdfast.cluster.ownership.ownership import Ownership
from holdfast.engines.appender import GroupAppender
from holdfast.engines.base import Engine
from holdfast.engines.gate import Gate
from holdfast.node.dead_letters import DeadLetters
from holdfast.node.ending import Ending, Part
from holdfast.records.agent_record import RECORD_VERSION
from holdfast.serving.intake import Intake
from holdfast.serving.runtime import Runtime
from holdfast.serving.stalls import Stalls
from holdfast.serving.tasks import Tasks
from holdfast.version import VERSION


class Identity(msgspec.Struct, frozen=True):
    """What a node is told about itself."""

    name: str
    host: str
    incarnation: str
    supervised: bool
    """Whether a host started it, and hears of it."""
    labels: list[str]
    capacity: float
    started_at: float
    """In seconds since 1970."""


class Assembly:
    """The parts of one node; see the module."""

    def __init__(
        self,
        engine: Engine,
        manifest: Manifest,
        clock: Clock,
        identity: Identity,
        kinds: dict[str, Kind],
    ) -> None:
        cells, registry = list(manifest.cells), registry_cell(manifest.generation)
        serves = bool(kinds)
        self.engine = engine
        self.identity = identity
        self.ending = Ending(
            identity.name, self._closed_in_order, engine.close, lambda why: self.router.fail(why)
        )

        # The cluster's facts, and who is there.
        self.placement = Placement(engine, registry, manifest, lambda: self.ownership.wake())
        self.events = Events(engine, registry, clock, identity.name)
        say = self.events.say if serves else unheard
        self.life = Liveness(
            engine, clock, identity.incarnation, cells, serves,
            on_lapse=lambda: self.runtime.suspend(),
            on_condemned=self._begin_again,
            on_cell_lost=lambda cell, why: self.ownership.lose(cell, why),
            hears_majority=lambda voters: self.membership.hears_majority(voters),
        )  # fmt: skip
        gate = Gate(engine.log)
        self.registry = Registry(engine, registry, clock, gate)
        self.membership = Membership(
            engine, self.beat, self.life.embedded,
            on_change=lambda: self.ownership.wake(),
            on_death=lambda incarnation: self.reroute.node_died(incarnation),
            on_event=say,
        )  # fmt: skip
        self.dead_letters = DeadLetters(engine, cells, gate, clock)
        self.write_pause = WritePause(engine, gate, lambda: self.life.incarnation)

        # Calls, and the agents that take them.
        tasks = Tasks(self.ending.failed)
        intake = Intake(engine.bus, self.life, self.placement.space, tasks)
        self.router = Router(
            engine.bus, clock, ids.new_id("p"), self.placement,
            [(cell, GroupAppender(gate, cell)) for cell in cells], self.life, intake,
            lambda shard: self.reroute.owner_of(shard),
        )  # fmt: skip
        self.stalls = Stalls()
        self.runtime = Runtime(
            engine, clock, gate, self.router, self.life, self.membership.standstills, intake, tasks,
            cells, self.placement.space, kinds, lambda: self.ownership,
        )  # fmt: skip

        # Which shards are whose.
        self.ownership = Ownership(
            engine, clock, self.membership, self.placement, self.runtime, self.life,
            identity.host if identity.supervised else "", cells, serves,
            on_event=say, on_owner=lambda shard: self.reroute.changed(shard),
        )  # fmt: skip
        self.reroute = Reroute(self.router, self.membership, self.ownership.epochs)

    async def start(self, clock: Clock) -> None:
        """Begin, in order. Raises what the parts do."""
        await self.placement.open()
        await self.placement.declare({kind.name: kind.pool for kind in self.runtime.kinds.values()})
        await self.registry.open()
        await self.router.start()
        if self.runtime.kinds:
            child_tasks.keep_in()
        await self.runtime.start()
        # A host ends a node of which it hears nothing.
        watched = self.runtime.kinds or self.identity.supervised
        if watched and clock is SYSTEM_CLOCK:
            self.stalls.start(asyncio.get_running_loop(), self.identity.name)
        await self.write_pause.start()
        await self.life.start()
        await self.events.start(self._is_oldest)
        await self.membership.start()
        await self.ownership.start()

    def _closed_in_order(self) -> list[Part]:
        """The parts that have an end, in its order: first whoever uses others."""
        return [
            self.write_pause,
            self.ownership,
            self.runtime,
            self.stalls,
            self.router,
            self.membership,
            self.life,
            self.registry,
            self.placement,
            self.events,
        ]

    def _is_oldest(self) -> bool:
        return (
            bool(self.membership.serving())
            and self.membership.live()[0].incarnation == self.life.incarnation
        )

    def _begin_again(self) -> None:
        """This node was condemned: as another incarnation it owns nothing yet."""
        self.runtime.suspend()
        self.runtime.spawn(self.runtime.begin_again())
        self.membership.beat()

    def beat(self) -> Beat:
        """What this node says of itself twice a second."""
        counts, kinds = self.runtime.statistics(), self.runtime.kinds
        return Beat(
            self.life.incarnation,
            self.identity.host,
            self.identity.name,
            self.identity.started_at,
            sorted(kinds),
            counts["shards"],
            counts["agents"],
            VERSION,
            self.identity.supervised,
            labels=self.identity.labels,
            capacity=self.identity.capacity,
            state_versions=[kinds[kind].state_version for kind in sorted(kinds)],
            warm=self.ownership.recovery.warm(),
            draining=self.ownership.draining,
            record_version=RECORD_VERSION,
            generation=self.placement.manifest.generation,
            degraded=self.stalls.text()[: limits.DEGRADED_TEXT_MAX],
        )
