"""Everything that a doctor can see of a cluster at this moment, gathered within bounds, with or without a majority.

Each question has its own bound and its own failure: what could not be seen is noted, never waited for. Hosts and nodes
answer over the bus, which needs no majority; streams are asked for one by one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, Final, TypeVar

import msgspec

from holdfast import ids, limits
from holdfast.clock import SYSTEM_CLOCK, Clock
from holdfast.cluster.beats import HOST_SUBJECT, host_door
from holdfast.cluster.manifest import Manifest, decode, newest_generation, registry_cell
from holdfast.engines.base import Message
from holdfast.engines.gate import Gate
from holdfast.engines.nats import streams
from holdfast.engines.nats.engine import NatsEngine
from holdfast.engines.nats.streams import StreamFacts
from holdfast.errors import HoldfastError
from holdfast.host.facts import HostFacts, Replicas
from holdfast.host.service import Heard, ask_host, hear_hosts
from holdfast.node.checkup import SUBJECT, NodeState
from holdfast.node.dead_letters import DeadLetters

T = TypeVar("T")

LISTEN_SECONDS: Final = 4 * limits.BEAT_SECONDS
_SLOW_SECONDS: Final = 8.0
"""How long a host may take that does not answer at once: its own server may not answer it."""

_LETTERS_SECONDS: Final = 5.0
_AGAIN_SECONDS: Final = 3.0
_SAMPLES: Final = 4
_SAMPLE_SECONDS: Final = 0.5

_decode_node = msgspec.msgpack.Decoder(NodeState).decode


class SeenHost(msgspec.Struct):
    """A host that answered. Its clock was ahead of this one's by ``ahead_min`` to ``ahead_max`` seconds."""

    facts: HostFacts
    ahead_min: float
    ahead_max: float


class Survey(msgspec.Struct):
    """What was seen. ``streams``: a stream's facts, or why there are none."""

    at: float = 0.0
    """Seconds since 1970."""
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
    def quorum(self) -> bool:
        """Whether every stream has a leader that answers."""
        return bool(self.streams) and not any(isinstance(one, HoldfastError) for one in self.streams.values())


async def survey(engine: NatsEngine, clock: Clock = SYSTEM_CLOCK) -> Survey:
    """Look at everything. It takes some seconds, some 20 where little answers, and raises nothing but `Closed`."""
    seen = Survey(clock.now())
    beats, facts, kept, seen.nodes = await asyncio.gather(
        _beating(engine),
        _facts(engine, clock),
        hear_hosts(engine.bus, "replicas", Replicas, wait_seconds=LISTEN_SECONDS),
        _nodes(engine),
    )
    answered = {host.facts.host for host in facts}
    late = await asyncio.gather(*(_late(engine, clock, host) for host in sorted(beats - answered)))
    seen.hosts = facts
    for host, found in late:
        if isinstance(found, SeenHost):
            seen.hosts.append(found)
        else:
            seen.silent[host] = str(found)
    seen.replicas = [[one.value for one in kept if isinstance(one.value, Replicas)]]
    await _see_streams(engine, seen)
    await _see_shards(engine, seen)
    for _ in range(_SAMPLES - 1):
        await asyncio.sleep(_SAMPLE_SECONDS)
        again = await hear_hosts(
            engine.bus, "replicas", Replicas, expected=_hosts_of(kept), wait_seconds=LISTEN_SECONDS
        )
        seen.replicas.append([one.value for one in again if isinstance(one.value, Replicas)])
    return seen


def _hosts_of(kept: list[Heard[Replicas]]) -> list[str]:
    return sorted({one.host for one in kept})


async def _bounded(work: Awaitable[T], timeout_seconds: float, what: str, unseen: list[str]) -> T | None:
    try:
        async with asyncio.timeout(timeout_seconds):
            return await work
    except TimeoutError:
        unseen.append(f"{what}: no answer within {timeout_seconds:.0f} s")
    except HoldfastError as error:
        unseen.append(f"{what}: {type(error).__name__}: {error}")
    return None


# Hosts and nodes -----------------------------------------------------------------------------------------------------


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


async def _late(engine: NatsEngine, clock: Clock, host: str) -> tuple[str, SeenHost | HoldfastError]:
    asked_at = clock.now()
    try:
        facts = await ask_host(engine.bus, host, "facts", HostFacts, timeout_seconds=_SLOW_SECONDS)
    except HoldfastError as error:
        return host, error
    return host, SeenHost(facts, facts.now - clock.now(), facts.now - asked_at)


async def _nodes(engine: NatsEngine) -> list[NodeState]:
    found: list[NodeState] = []

    def take(message: Message) -> None:
        try:
            found.append(_decode_node(message.payload))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return  # nobody serves it, or a node of another form

    reply = f"hf.hr.{ids.new_id('q')}"
    subscription = await engine.bus.subscribe(reply, take)
    engine.bus.publish(SUBJECT, b"", reply)
    await asyncio.sleep(LISTEN_SECONDS)
    await subscription.close()
    return found


# What is stored ------------------------------------------------------------------------------------------------------


async def _see_streams(engine: NatsEngine, seen: Survey) -> None:
    names = await _bounded(streams.names(engine.connection), 3.0, "the list of streams", seen.unseen)
    known = {replica.stream for kept in seen.replicas[0] for replica in kept.replicas}
    wanted = sorted({*(names or ()), *(name for name in known if streams.OURS.fullmatch(name))})
    seen.streams = dict(zip(wanted, await asyncio.gather(*(_stream(engine, name) for name in wanted)), strict=True))
    troubled = [name for name, found in seen.streams.items() if _unsettled(found)]
    if troubled:
        await asyncio.sleep(_AGAIN_SECONDS)  # a leadership that just moved
        again = await asyncio.gather(*(_stream(engine, name) for name in troubled))
        seen.streams.update(zip(troubled, again, strict=True))


def _unsettled(found: StreamFacts | HoldfastError) -> bool:
    return isinstance(found, HoldfastError) or any(not peer.current for peer in found.cluster.replicas)


async def _stream(engine: NatsEngine, name: str) -> StreamFacts | HoldfastError:
    try:
        return await streams.info(engine.connection, name)
    except HoldfastError as error:
        return error


async def _manifest(engine: NatsEngine) -> Manifest | None:
    cell = registry_cell(newest_generation(await engine.cells()))
    stored = await engine.log.read(cell, f"{cell}.manifest")
    return None if stored is None else decode(stored.payload)


async def _see_shards(engine: NatsEngine, seen: Survey) -> None:
    """Which shards there are, which of them are served, and how many dead letters wait."""
    seen.served = {shard for node in seen.nodes for shard in node.shards}
    if not seen.quorum:
        seen.unseen.append("shards without an owner, and dead letters: they are read when every stream has a leader")
        return
    found = await _bounded(_manifest(engine), 5.0, "the manifest", seen.unseen)
    if found is None:
        return
    for cell in found.cells:
        owned = await _bounded(
            streams.subjects(engine.connection, cell, f"{cell}.*.epoch"), 5.0, f"the shards of {cell}", seen.unseen
        )
        seen.shards |= {int(subject.split(".")[1]) for subject in (owned.subjects if owned else ())}
    if seen.shards - seen.served and any(node.kinds for node in seen.nodes):
        await asyncio.sleep(_AGAIN_SECONDS)  # some may be on their way from one node to another
        seen.served |= {shard for node in await _nodes(engine) for shard in node.shards}
    letters: list[Any] | None = await _bounded(
        DeadLetters(engine, found.cells, Gate(engine.log), SYSTEM_CLOCK).all(),
        _LETTERS_SECONDS,
        "the dead letters",
        seen.unseen,
    )
    seen.dead_letters = len(letters or ())
