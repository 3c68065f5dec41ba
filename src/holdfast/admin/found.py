"""`holdfast found`: a cluster on servers that no `holdfast up` runs, and more copies of one that
keeps too few.

The hosts of a cohort found their cluster themselves. On servers of somebody's own nobody may, until
an operator says how many copies there are to be: see `holdfast.cluster.facts.founding`.
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from holdfast.clock import SYSTEM_CLOCK
from holdfast.cluster.facts import founding
from holdfast.engines.nats import streams
from holdfast.engines.nats.engine import NatsEngine
from holdfast.errors import ConfigError, NoQuorum, Unknown
from holdfast.host.rpc.facts import HostFacts
from holdfast.host.rpc.service import ask_hosts
from holdfast.node.node import SHARDS

_WAIT_SECONDS: Final = 1.0
_LOOK_SECONDS: Final = 0.5


class Founded(msgspec.Struct):
    """What is there now. ``new``: it was founded by this command. ``raised``: streams that got more
    copies."""

    cluster: str
    copies: int
    new: bool
    raised: list[str] = []


async def found(engine: NatsEngine, replicas: int) -> Founded:
    """Found a cluster that keeps so many copies; one that is there and keeps fewer gets them.

    Raises `ConfigError` for a number that cannot be, where the servers are fewer, and where the
    cohort of `holdfast up` is larger; `NoQuorum`, `Unknown`. After each of them the same can be
    tried again.
    """
    founding.check_mandate(engine, True, replicas)
    facts = await ask_hosts(engine.bus, "facts", HostFacts, wait_seconds=_WAIT_SECONDS)
    cohort = max(
        (
            len(one.cohort) or 1
            for one in facts.values()
            if isinstance(one, HostFacts) and one.server
        ),
        default=0,
    )
    if replicas < cohort:
        raise ConfigError(
            f"{cohort} hosts vote here, so their cluster keeps {cohort} copies and not {replicas}"
        )
    if replicas > engine.servers():
        raise ConfigError(
            f"{replicas} copies need as many servers; known here are {engine.servers()}"
        )
    before = await founding.look(engine)
    manifest = await founding.find_or_found(engine, replicas, SHARDS, SYSTEM_CLOCK.now())
    raised = [] if before is None else await _raise_copies(engine, replicas)
    copies = await founding.check_copies(engine, manifest, replicas)
    return Founded(manifest.cluster_id, copies, before is None, raised)


async def _raise_copies(engine: NatsEngine, replicas: int) -> list[str]:
    """Give every stream that has fewer so many copies, and wait until those of all are complete: a
    command before this one may have given up waiting."""
    raised, names = [], await streams.names(engine.connection)
    for name in names:
        if (await streams.info(engine.connection, name)).copies < replicas:
            await streams.set_copies(engine.connection, name, replicas)
            raised.append(name)
    for name in names:
        while not await _complete(engine, name, replicas):
            await asyncio.sleep(_LOOK_SECONDS)
    return raised


async def _complete(engine: NatsEngine, stream: str, replicas: int) -> bool:
    try:
        peers = (await streams.info(engine.connection, stream)).cluster.replicas
    except (NoQuorum, Unknown):
        return False  # its leadership moves
    return len(peers) + 1 >= replicas and all(peer.current and not peer.lag for peer in peers)
