"""A node: one process's part in the cluster, and the one object that users hold.

It puts the parts together (engine, registry, membership, ownership, agents) and has no logic of its
own.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar, Unpack

from holdfast import codec, ids, limits
from holdfast.agents import child_tasks
from holdfast.agents.agent import Agent
from holdfast.agents.calls import Options
from holdfast.agents.ref import AgentRef
from holdfast.calling.inbox_sender import InboxSender
from holdfast.calling.reroute import Reroute
from holdfast.calling.router import Router
from holdfast.clock import SYSTEM_CLOCK, Clock
from holdfast.cluster.facts import founding
from holdfast.cluster.facts.events import Events
from holdfast.cluster.facts.manifest import Manifest, registry_cell
from holdfast.cluster.facts.placement import Placement
from holdfast.cluster.facts.registry import Entry, Registry
from holdfast.cluster.facts.write_pause import WritePause
from holdfast.cluster.members.beats import Beat
from holdfast.cluster.members.liveness import Liveness
from holdfast.cluster.members.membership import Membership
from holdfast.cluster.ownership.ownership import Ownership
from holdfast.core.pools import check_capacity, check_label
from holdfast.core.query import Where
from holdfast.engines.appender import GroupAppender
from holdfast.engines.base import Engine
from holdfast.engines.gate import Gate
from holdfast.errors import ConfigError, NoResponders
from holdfast.node import by_name, checkup, settings
from holdfast.node.dead_letters import DeadLetters
from holdfast.node.ending import Ending, Part
from holdfast.node.options import JoinOptions, check, security_of
from holdfast.node.stored import StoredAgent, read_stored
from holdfast.node.views import AgentInfo, Found, MemberInfo
from holdfast.records.agent_record import RECORD_VERSION
from holdfast.serving.runtime import Runtime
from holdfast.version import VERSION

AgentT = TypeVar("AgentT", bound=Agent[Any])

SHARDS = 128


class Node:
    """One process's part in the cluster. Make it with `Node.join`, or with `Node.open` and
    `close`."""

    def __init__(
        self,
        engine: Engine,
        manifest: Manifest,
        clock: Clock,
        name: str,
        host: str,
        supervised: bool,
    ) -> None:
        self.engine, self.name, self.host = engine, name, host
        self._supervised = supervised
        self._clock = clock
        self._started_at = clock.now()
        self._ending = Ending(name, self._parts, engine.close)
        self._labels: list[str] = []
        self._capacity = 1.0
        self.life: Liveness
        self.placement: Placement
        self.events: Events
        self.registry: Registry
        self._gate = Gate(engine.log)
        self._holding: WritePause
        self.dead_letters = DeadLetters(engine, list(manifest.cells), self._gate, clock)
        self._router: Router
        self._runtime: Runtime
        self._membership: Membership
        self._ownership: Ownership

    @classmethod
    @asynccontextmanager
    async def join(
        cls, url: str | Sequence[str], **options: Unpack[JoinOptions]
    ) -> AsyncIterator[Node]:
        """Be part of a cluster while the block runs; see `open` for the arguments and what is
        raised.

        On leaving, turns that run are finished and committed, and the shards are let go of.
        """
        node = await cls.open(url, **options)
        try:
            yield node
        finally:
            await node.close()

    @classmethod
    async def open(cls, url: str | Sequence[str], **options: Unpack[JoinOptions]) -> Node:
        """Join: ``"local:FILE"`` on one machine, ``"nats://HOST:PORT"`` (several with commas) on a
        cluster.

        For a notebook, or where no block spans the node's life: whoever opens a node calls `close`.
        `JoinOptions` lists the options.

        Raises:
            ConfigError: something cannot work as it was given.
            NotFound: no cluster was founded there, and nothing was made there.
            NoQuorum: no majority of the servers answered in time.
        """
        check(options)
        place = settings.parse(list(url) if not isinstance(url, str) else url)
        engine = settings.engine(place, security_of(options), visits=not options.get("serve"))
        try:
            async with settings.within(settings.timeout(place, options.get("timeout_seconds"))):
                await engine.open()
                return await cls.on(
                    engine,
                    list(options.get("serve", ())),
                    name=options.get("name", ""),
                    host=options.get("host", ""),
                    incarnation=options.get("incarnation", ""),
                    found=options.get("found", False),
                    replicas=options.get("replicas"),
                    wait=options.get("wait", False),
                    labels=options.get("labels", ()),
                    capacity=options.get("capacity", 1.0),
                    clock=options.get("clock", SYSTEM_CLOCK),
                )
        except BaseException:
            await engine.close()
            raise

    @classmethod
    async def on(
        cls,
        engine: Engine,
        serve: list[type[Agent[Any]]],
        *,
        name: str = "",
        host: str = "",
        incarnation: str = "",
        found: bool = False,
        replicas: int | None = None,
        wait: bool = False,
        labels: Iterable[str] = (),
        capacity: float = 1.0,
        shards: int = SHARDS,
        clock: Clock = SYSTEM_CLOCK,
    ) -> Node:
        """Begin on an engine that is open. See `join`; whoever calls this calls `close`."""
        labels = sorted({check_label(label) for label in labels})
        settings.check_names(name, host)
        mandate = founding.Mandate(found, replicas, wait, bool(serve))
        manifest = await founding.settle(engine, shards, clock.now(), mandate)
        registry, cells = registry_cell(manifest.generation), list(manifest.cells)
        supervised, incarnation = bool(incarnation), incarnation or ids.new_id("n")
        if not ids.is_incarnation(incarnation):
            raise ConfigError(
                f"{incarnation[:40]!r} is not an incarnation's name: use letters, digits, - and _"
            )
        node = cls(
            engine, manifest, clock, name or incarnation, host or socket.gethostname(), supervised
        )
        node._labels, node._capacity = labels, check_capacity(capacity)
        node.placement = placement = Placement(engine, registry, manifest)
        node.events = Events(engine, registry, clock, node.name)
        node.life = life = Liveness(engine, clock, incarnation, cells, bool(serve))
        node.registry = Registry(engine, registry, clock, gate := node._gate)
        node._router = Router(engine.bus, clock, ids.new_id("p"), placement)
        appenders = [(cell, GroupAppender(gate, cell)) for cell in cells]
        node._router.sender = InboxSender(
            list(appenders), clock, node._router.caller, placement.space
        )
        node._runtime = runtime = Runtime(
            engine, clock, node._router, life, cells, placement.space, serve, gate
        )
        node._membership = Membership(engine, node._beat, life.embedded)
        node._holding = WritePause(engine, gate, lambda: life.incarnation)
        host = node.host if supervised else ""
        node._ownership = Ownership(
            engine, clock, node._membership, placement, runtime, life, host, cells, bool(serve)
        )
        if serve:
            node._membership.on_event = node._ownership.planner.on_event = (
                node._ownership.on_event
            ) = node.events.say
        try:
            await node._ending.begin(runtime, node._start())
        except BaseException:
            await node.leave()
            raise
        return node

    async def _start(self) -> None:
        await self.placement.open()
        await self.placement.declare(
            {kind.name: kind.pool for kind in self._runtime.kinds.values()}
        )
        self._runtime.on_lost = self._ownership.lost
        self._runtime.on_reclaim = self._ownership.reclaim
        Reroute(self._router, self._membership, self._ownership)
        await self.registry.open()
        await self._router.start()
        if self._runtime.kinds:
            child_tasks.keep_in()
        await self._runtime.start()
        # A host ends a node of which it hears nothing.
        if (self._runtime.kinds or self._supervised) and self._clock is SYSTEM_CLOCK:
            self._runtime.stalls.start(self._runtime.loop, self.name)
        await self._holding.start()
        self.life.on_lapse = self._runtime.suspend
        self.life.on_condemned = self._begin_again
        self._router.life = self.life
        await self.life.start()
        await self.events.start(self._is_oldest)
        await self._membership.start()
        await self._ownership.start()
        await checkup.answer(self)

    def _is_oldest(self) -> bool:
        return (
            bool(self._membership.serving())
            and self._membership.live()[0].incarnation == self.incarnation
        )

    def _beat(self) -> Beat:
        counts = self._runtime.statistics()
        return Beat(
            self.incarnation,
            self.host,
            self.name,
            self._started_at,
            sorted(self._runtime.kinds),
            counts["shards"],
            counts["agents"],
            VERSION,
            self._supervised,
            labels=self._labels,
            capacity=self._capacity,
            state_versions=[
                self._runtime.kinds[kind].state_version for kind in sorted(self._runtime.kinds)
            ],
            warm=self._ownership.recovery.warm(),
            draining=self._ownership.draining,
            record_version=RECORD_VERSION,
            generation=self.manifest.generation,
            degraded=self._runtime.stalls.text()[: limits.DEGRADED_TEXT_MAX],
        )

    def _begin_again(self) -> None:
        """This node was condemned: as another incarnation it owns nothing yet."""
        self._runtime.suspend()
        self._runtime.spawn(self._runtime.begin_again())
        self._membership.beat()

    @property
    def incarnation(self) -> str:
        """The name of this life of the node."""
        return self.life.incarnation

    async def close(self) -> None:
        """Finish what runs, let go of the shards, and leave. Closing twice is harmless."""
        await self._ending.close(cut=True)

    async def leave(self) -> None:
        """As `close`, but for the engine, which stays open."""
        await self._ending.close()

    def _parts(self) -> list[Part]:
        parts: list[Part] = [
            self._holding,
            self._ownership,
            self._runtime,
            self._router,
            self._membership,
        ]
        return [*parts, self.life, self.registry, self.placement, self.events]

    # Agents ---------------------------------------------------------------------------------------

    def agent(self, kind: type[AgentT], name: str) -> AgentRef[AgentT]:
        """An agent's address. No I/O; the agent need not exist. Raises `InvalidName`."""
        return AgentRef(self._router, kind, name)

    async def register(
        self,
        kind: type[AgentT],
        name: str,
        *,
        capabilities: Iterable[str] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> AgentRef[AgentT]:
        """Register an agent under a name that nobody else in the cluster has, so that it can be
        found.

        It is found by its class's capabilities and by those given here. Raises `AlreadyExists`,
        `InvalidName`, `BadMessage` for metadata that cannot be stored, `TooLarge`, `NoQuorum`,
        `OutcomeUnknown`.
        """
        ref = self.agent(kind, name)
        wanted = by_name.capabilities(kind, capabilities)
        await self.registry.register(
            kind.__kind__.name, name, capabilities=wanted, metadata=metadata or {}
        )
        return ref

    def lookup(self, kind: type[Agent[Any]] | str, name: str) -> Entry | None:
        """What is registered of an agent, or None. A memory read."""
        return self.registry.lookup(by_name.kind_name(kind), name)

    def find(
        self,
        *,
        capability: str | Iterable[str] = (),
        kind: type[Agent[Any]] | str | None = None,
        where: Iterable[Where | tuple[str, str, Any]] = (),
        limit: int | None = None,
    ) -> Found:
        """Registered agents with all these capabilities, of this kind, whose metadata match. A
        memory read."""
        wanted = [capability] if isinstance(capability, str) else capability
        name = None if kind is None else by_name.kind_name(kind)
        entries = self.registry.find(capability=wanted, kind=name, where=where, limit=limit)
        return Found(
            AgentRef(self._router, self._runtime.known(e.kind), e.name, kind_name=e.kind)
            for e in entries
        )

    def count(
        self, *, kind: type[Agent[Any]] | str | None = None, capability: str | None = None
    ) -> int:
        """How many agents are registered. A memory read."""
        return self.registry.count(
            kind=None if kind is None else by_name.kind_name(kind), capability=capability
        )

    async def update(
        self,
        kind: type[Agent[Any]] | str,
        name: str,
        *,
        capabilities: Iterable[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Entry:
        """Replace what is registered of an agent. Raises `NotFound`, `NoQuorum`,
        `OutcomeUnknown`."""
        return await self.registry.update(
            by_name.kind_name(kind), name, capabilities=capabilities, metadata=metadata
        )

    async def unregister(self, kind: type[Agent[Any]] | str, name: str) -> None:
        """Free the name. The agent's state stays. Raises `NotFound`, `NoQuorum`,
        `OutcomeUnknown`."""
        await self.registry.unregister(by_name.kind_name(kind), name)

    async def ask_by_name(
        self,
        agent_id: str,
        handler: str,
        arguments: Any = (),
        *,
        timeout_seconds: float = limits.ASK_TIMEOUT_SECONDS,
    ) -> Any:
        """Ask a handler or a reader without its class, as a shell does.

        ``arguments`` is a list, or a map by parameter name. The reply is plain data. Raises what
        `AgentRef.ask` raises.
        """
        token, data = by_name.encode(agent_id, handler, arguments)
        options = Options(timeout_seconds, ids.new_id("call"))
        reply = await self._router.ask(token, handler, data, options, reads_only=False)
        return codec.to_builtins(reply)

    async def send_by_name(
        self,
        agent_id: str,
        handler: str,
        arguments: Any = (),
        *,
        timeout_seconds: float = limits.ASK_TIMEOUT_SECONDS,
    ) -> None:
        """Send without the class; see `ask_by_name` for ``arguments``. A message that does not fit
        its handler becomes a dead letter."""
        token, data = by_name.encode(agent_id, handler, arguments)
        await self._router.place(token, None)
        await self._router.send(token, handler, data, timeout_seconds, "")

    # The cluster ----------------------------------------------------------------------------------

    @property
    def manifest(self) -> Manifest:
        """The cluster's facts."""
        return self.placement.manifest

    @property
    def shards(self) -> int:
        """How many shards need an owner: those of the pools that some kind lives in."""
        return len(self.placement.table.used)

    def members(self) -> list[MemberInfo]:
        """The nodes that are there, as this node sees it, oldest first."""
        return [MemberInfo.of(beat) for beat in self._membership.live()]

    def owners(self) -> dict[int, str]:
        """Per shard the incarnation that owns it, empty where nobody does, as far as this node has
        heard."""
        return {
            number: epoch.record.owner for number, epoch in self._ownership.epochs.newest.items()
        }

    def describe(self, agent_id: str) -> AgentInfo:
        """Where an agent lives, and what is registered of it. A memory read. Raises
        `InvalidName`."""
        shard = self._runtime.shard_of(ids.agent_token(*ids.parse_agent_id(agent_id)))
        epoch, entry = (
            self._ownership.epochs.newest.get(shard),
            self.registry.lookup(*ids.parse_agent_id(agent_id)),
        )
        number, owner = (epoch.sequence, epoch.record.owner) if epoch else (0, "")
        return AgentInfo.of(
            agent_id, (shard, self._runtime.cell_of(shard), number, owner), entry, self._membership
        )

    async def inspect(self, agent_id: str) -> StoredAgent:
        """What the log has of an agent: its state as plain data, its timers. It may be a moment
        old.

        Raises `NotFound` for an agent that never finished a message, `NoQuorum`, `InvalidName`.
        """
        shard = self._runtime.shard_of(ids.agent_token(*ids.parse_agent_id(agent_id)))
        return await read_stored(self.engine, self._runtime.cell_of(shard), shard, agent_id)

    async def settled(self) -> None:
        """Wait until every live node has had the time to be heard: about a second after joining.
        Raises `Closed`."""
        while not self._membership.settled():
            self._router.check_open()
            await asyncio.sleep(0.02)

    async def ready(self, timeout_seconds: float = 30.0) -> None:
        """Wait until every shard of the cluster has an owner that serves it.

        Raises `NoResponders` after it, and `Closed` where this node was closed, or has failed.
        """
        try:
            async with asyncio.timeout(timeout_seconds):
                self._router.check_open()
                while not self._all_owned():
                    await asyncio.sleep(0.02)
                    self._router.check_open()
        except TimeoutError:
            why = (
                "; ".join(dict.fromkeys(self._ownership.failures.values()))
                or "does a node serve agents?"
            )
            raise NoResponders(
                f"after {timeout_seconds} s not every shard has an owner: {why}"
            ) from None

    def _all_owned(self) -> bool:
        live = {beat.incarnation: beat for beat in self._membership.live()}
        owners, used = self.owners(), self.placement.table.used
        served = sum(beat.shards for beat in live.values())
        return (
            bool(used)
            and served >= len(used)
            and all(owners.get(number) in live for number in used)
        )

    def statistics(self) -> dict[str, Any]:
        """Counts since the start: of this node's agents, calls and engine."""
        return {
            **self._runtime.statistics(),
            **self._router.statistics(),
            "takeovers": self._ownership.takeovers,
            "owned": len(self._ownership.owned),
            "registered": self.registry.count(),
            "recovery_failures": dict(self._ownership.failures),
            "process": os.getpid(),
            "malformed": checkup.malformed(self),
            "engine": dict(self.engine.statistics()),
        }
