"""Everything that a doctor can see of a cluster at this moment, gathered within bounds, with or
without a majority.

Each question has its own bound and its own failure: what could not be seen is noted, never waited
for. Hosts and nodes answer over the bus, which needs no majority; streams are asked for one by one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, Final, TypeVar

import msgspec

from holdfast import ids, limits
from holdfast.admin import presence
from holdfast.admin.presence import Presence
from holdfast.clock import SYSTEM_CLOCK, Clock
from holdfast.cluster.facts.manifest import Manifest, decode, newest_generation, registry_cell
from holdfast.cluster.members.beats import HOST_SUBJECT, host_door
from holdfast.engines.base import Message
from holdfast.engines.gate import Gate
from holdfast.engines.nats import streams
from holdfast.engines.nats.engine import NatsEngine
from holdfast.engines.nats.streams import StreamFacts
from holdfast.errors import HoldfastError
from holdfast.host.rpc.facts import HostFacts, Replicas
from holdfast.host.rpc.service import ask_host, hear_hosts
from holdfast.node.checkup import SUBJECT, NodeState, state_door
from holdfast.node.dead_letters import DeadLetters
from holdfast.records import subjects

T = TypeVar("T")

LISTEN_SECONDS: Final = 4 * limits.BEAT_SECONDS
_SLOW_SECONDS: Final = 3.0
"""How long a host may take that does not answer at once: its own server may not answer it, which
takes it 2 s to find."""

_API_SECONDS: Final = 2.5
_SUBJECTS_SECONDS: Final = 5.0
_AGAIN_SECONDS: Final = 3.0
_SAMPLES: Final = 4
_SAMPLE_SECONDS: Final = 0.5


class SeenHost(msgspec.Struct):
    """A host that answered. Its clock was ahead of this one's by ``ahead_min`` to ``ahead_max``
    seconds."""

    facts: HostFacts
    ahead_min: float
    ahead_max: float


class Survey(msgspec.Struct):
    """What was seen. ``streams``: a stream's facts, or why there are none."""

    at: float = 0.0
    """Seconds since 1970."""
    presence: Presence = msgspec.field(default_factory=Presence)
    """Which hosts are expected, and which of them are gone."""
    hosts: list[SeenHost] = []
    silent: dict[str, str] = {}
    """Hosts that are there and do not answer, and why."""
    replicas: list[list[Replicas]] = []
    """What the servers keep, sampled some times."""
    nodes: list[NodeState] = []
    streams: dict[str, StreamFacts | HoldfastError] = {}
    shards: set[int] = set()
    """All that there are."""
    served: set[int] = set()
    """Those that some node served at one of two looks."""
    dead_letters: int = 0
    unseen: list[str] = []

    @property
    def gone_servers(self) -> set[str]:
        """The servers of hosts that are gone."""
        record = self.presence.record
        known = {} if record is None else record.hosts
        return {known[host.name].server for host in self.presence.gone if host.name in known}

    @property
    def quorum(self) -> bool:
        """Whether every stream has a leader that answers."""
        return bool(self.streams) and all(map(_led, self.streams.values()))


async def survey(engine: NatsEngine, clock: Clock = SYSTEM_CLOCK) -> Survey:
    """Look at everything, side by side where it can be. It takes some seconds, and raises nothing
    but `Closed`."""
    seen = Survey(clock.now())
    beats, facts, kept, seen.nodes, seen.presence = await asyncio.gather(
        _beating(engine),
        _facts(engine, clock),
        hear_hosts(engine.bus, "replicas", Replicas, wait_seconds=LISTEN_SECONDS),
        _nodes(engine),
        presence.look(engine.bus, seconds=LISTEN_SECONDS),
    )
    seen.hosts = facts
    seen.replicas = [[one.value for one in kept if isinstance(one.value, Replicas)]]
    answered = {host.facts.host for host in facts}
    await asyncio.gather(
        _see_late(engine, clock, beats - answered, seen),
        _see_stored(engine, seen),
        _sample(engine, sorted({one.host for one in kept}), seen),
    )
    return seen


async def _see_late(engine: NatsEngine, clock: Clock, hosts: set[str], seen: Survey) -> None:
    """Hosts that send signs of life, and did not answer with the others."""
    for host, found in await asyncio.gather(
        *(_late(engine, clock, host) for host in sorted(hosts))
    ):
        if isinstance(found, SeenHost):
            seen.hosts.append(found)
        else:
            seen.silent[host] = str(found)


async def _sample(engine: NatsEngine, expected: list[str], seen: Survey) -> None:
    for _ in range(_SAMPLES - 1):
        await asyncio.sleep(_SAMPLE_SECONDS)
        again = await hear_hosts(
            engine.bus, "replicas", Replicas, expected=expected, wait_seconds=LISTEN_SECONDS
        )
        seen.replicas.append([one.value for one in again if isinstance(one.value, Replicas)])


async def _bounded(
    work: Awaitable[T], timeout_seconds: float, what: str, unseen: list[str]
) -> T | None:
    try:
        async with asyncio.timeout(timeout_seconds):
            return await work
    except TimeoutError:
        unseen.append(f"{what}: no answer within {timeout_seconds:.0f} s")
    except HoldfastError as error:
        unseen.append(f"{what}: {type(error).__name__}: {error}")
    return None


# Hosts and nodes ----------------------------------------------------------------------------------


async def _beating(engine: NatsEngine) -> set[str]:
    found: set[str] = set()
    door = host_door()

    def take(message: Message) -> None:
        if (beat := door.read(message)) is not None:
            found.add(beat.host)

    subscription = await engine.bus.subscribe(HOST_SUBJECT, take)
    await asyncio.sleep(LISTEN_SECONDS)
    await subscription.close()
    return found


async def _facts(engine: NatsEngine, clock: Clock) -> list[SeenHost]:
    asked_at = clock.now()
    heard = await hear_hosts(engine.bus, "facts", HostFacts, wait_seconds=LISTEN_SECONDS)
    return [
        SeenHost(one.value, one.value.now - asked_at - one.seconds, one.value.now - asked_at)
        for one in heard
        if isinstance(one.value, HostFacts)
    ]


async def _late(
    engine: NatsEngine, clock: Clock, host: str
) -> tuple[str, SeenHost | HoldfastError]:
    asked_at = clock.now()
    try:
        facts = await ask_host(engine.bus, host, "facts", HostFacts, timeout_seconds=_SLOW_SECONDS)
    except HoldfastError as error:
        return host, error
    return host, SeenHost(facts, facts.now - clock.now(), facts.now - asked_at)


async def _nodes(engine: NatsEngine) -> list[NodeState]:
    found: list[NodeState] = []
    door = state_door()

    def take(message: Message) -> None:
        if message.no_responders and not message.payload:
            return
        if len(found) < presence.NODES_MAX and (state := door.read(message)) is not None:
            found.append(state)

    reply = f"hf.hr.{ids.new_id('q')}"
    subscription = await engine.bus.subscribe(reply, take)
    engine.bus.publish(SUBJECT, b"", reply)
    await asyncio.sleep(LISTEN_SECONDS)
    await subscription.close()
    return found


# What is stored -----------------------------------------------------------------------------------


async def _see_stored(engine: NatsEngine, seen: Survey) -> None:
    """The streams, and what is in them. Without a majority nobody is asked who could not answer."""
    names = None
    if not seen.presence.lost:
        names = await _bounded(
            streams.names(engine.connection), _API_SECONDS, "the list of streams", seen.unseen
        )
    known = {replica.stream for kept in seen.replicas[0] for replica in kept.replicas}
    wanted = sorted({*(names or ()), *(name for name in known if streams.OURS.fullmatch(name))})
    seen.streams = dict(
        zip(wanted, await asyncio.gather(*(_stream(engine, name) for name in wanted)), strict=True)
    )
    gone = seen.gone_servers
    troubled = [name for name, found in seen.streams.items() if _unsettled(found, gone)]
    if troubled and not seen.presence.lost:
        await asyncio.sleep(_AGAIN_SECONDS)  # a leadership that just moved
        again = await asyncio.gather(*(_stream(engine, name) for name in troubled))
        seen.streams.update(zip(troubled, again, strict=True))
    await _see_shards(engine, seen)


def _unsettled(found: StreamFacts | HoldfastError, gone: set[str]) -> bool:
    """Whether something is wrong with a stream that a host which is gone does not explain."""
    return isinstance(found, HoldfastError) or any(
        not peer.current and peer.name not in gone for peer in found.cluster.replicas
    )


def _led(found: StreamFacts | HoldfastError) -> bool:
    """Whether a stream has a leader; one on a single server needs none."""
    return isinstance(found, StreamFacts) and (
        bool(found.cluster.leader) or not found.cluster.replicas
    )


async def _stream(engine: NatsEngine, name: str) -> StreamFacts | HoldfastError:
    try:
        return await streams.info(engine.connection, name)
    except HoldfastError as error:
        return error


async def _manifest(engine: NatsEngine) -> Manifest | None:
    cell = registry_cell(newest_generation(await engine.cells()))
    stored = await engine.log.read(cell, subjects.manifest(cell))
    return None if stored is None else decode(stored.payload)


async def _see_shards(engine: NatsEngine, seen: Survey) -> None:
    """Which shards there are, which of them are served, and how many dead letters wait."""
    seen.served = {shard for node in seen.nodes for shard in node.shards}
    if not seen.quorum:
        seen.unseen.append(
            "shards without an owner, and dead letters: they are read when every stream has a "
            "leader"
        )
        return
    found = await _bounded(_manifest(engine), _API_SECONDS, "the manifest", seen.unseen)
    if found is None:
        return
    await asyncio.gather(_see_owners(engine, found, seen), _see_letters(engine, found, seen))


async def _see_owners(engine: NatsEngine, manifest: Manifest, seen: Survey) -> None:
    async def owned(cell: str) -> None:
        work = streams.subjects(engine.connection, cell, subjects.epoch(cell, subjects.ANY))
        shown = await _bounded(work, _SUBJECTS_SECONDS, f"the shards of {cell}", seen.unseen)
        seen.shards |= {subjects.shard_of(subject) for subject in (shown.subjects if shown else ())}

    await asyncio.gather(*map(owned, manifest.cells))
    if seen.shards - seen.served and any(node.kinds for node in seen.nodes):
        await asyncio.sleep(_AGAIN_SECONDS)  # some may be on their way from one node to another
        seen.served |= {shard for node in await _nodes(engine) for shard in node.shards}


async def _see_letters(engine: NatsEngine, manifest: Manifest, seen: Survey) -> None:
    letters: list[Any] | None = await _bounded(
        DeadLetters(engine, manifest.cells, Gate(engine.log), SYSTEM_CLOCK).all(),
        _SUBJECTS_SECONDS,
        "the dead letters",
        seen.unseen,
    )
    seen.dead_letters = len(letters or ())
