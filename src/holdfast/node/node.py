"""A node: one process's part in the cluster, and the one object that users hold.

It has no logic of its own: `holdfast.node.assembly` puts the parts together.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar, Unpack

from holdfast import codec, ids, limits
from holdfast.agents.agent import Agent
from holdfast.agents.calls import Options
from holdfast.agents.ref import AgentRef
from holdfast.clock import SYSTEM_CLOCK, Clock
from holdfast.cluster.facts import founding
from holdfast.cluster.facts.manifest import Manifest
from holdfast.cluster.facts.registry import Entry
from holdfast.core.pools import check_capacity, check_label
from holdfast.core.query import Where
from holdfast.engines.base import Engine
from holdfast.errors import ConfigError, NoResponders
from holdfast.node import by_name, checkup, settings
from holdfast.node.assembly import Assembly, Identity
from holdfast.node.options import JoinOptions, check, security_of
from holdfast.node.stored import StoredAgent, read_stored
from holdfast.node.views import AgentInfo, Found, MemberInfo
from holdfast.serving.runtime import kinds_of

AgentT = TypeVar("AgentT", bound=Agent[Any])

SHARDS = 128


class Node:
    """One process's part in the cluster. Make it with `Node.join`, or with `Node.open` and
    `close`."""

    def __init__(self, parts: Assembly) -> None:
        self.engine = parts.engine
        self.name, self.host = parts.identity.name, parts.identity.host
        self.life = parts.life
        self.placement = parts.placement
        self.events = parts.events
        self.registry = parts.registry
        self.dead_letters = parts.dead_letters
        self._parts = parts
        self._router = parts.router
        self._runtime = parts.runtime
        self._membership = parts.membership
        self._ownership = parts.ownership

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
        supervised, incarnation = bool(incarnation), incarnation or ids.new_id("n")
        if not ids.is_incarnation(incarnation):
            raise ConfigError(
                f"{incarnation[:40]!r} is not an incarnation's name: use letters, digits, - and _"
            )
        identity = Identity(
            name or incarnation, host or socket.gethostname(), incarnation, supervised,
            labels, check_capacity(capacity), clock.now(),
        )  # fmt: skip
        node = cls(Assembly(engine, manifest, clock, identity, kinds_of(serve)))
        try:
            await node._parts.ending.begin(node._start(clock))
        except BaseException:
            await node.leave()
            raise
        return node

    async def _start(self, clock: Clock) -> None:
        await self._parts.start(clock)
        await checkup.answer(self._parts)

    @property
    def incarnation(self) -> str:
        """The name of this life of the node."""
        return self.life.incarnation

    async def close(self) -> None:
        """Finish what runs, let go of the shards, and leave. Closing twice is harmless."""
        await self._parts.ending.close(cut=True)

    async def leave(self) -> None:
        """As `close`, but for the engine, which stays open."""
        await self._parts.ending.close()

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
            "stalls": self._parts.stalls.count,
            **self._router.statistics(),
            "takeovers": self._ownership.takeovers,
            "registered": self.registry.count(),
            "recovery_failures": dict(self._ownership.failures),
            "process": os.getpid(),
            "malformed": checkup.malformed(self._parts),
            "engine": dict(self.engine.statistics()),
        }
