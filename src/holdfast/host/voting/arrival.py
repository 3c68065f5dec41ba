"""What a host learns before its server starts: of the cluster that it is to join, and where others
reach it."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from holdfast.cluster.facts import cohort
from holdfast.cluster.facts.cohort import Cohort
from holdfast.engines.nats.engine import NatsEngine
from holdfast.errors import ConfigError, InvalidName, NoResponders
from holdfast.host import addresses
from holdfast.host.rpc.facts import HostFacts
from holdfast.host.rpc.service import ask_host
from holdfast.host.server.nats_config import ServerSettings
from holdfast.security import Security

_JOIN_SECONDS: Final = 20.0
_LOOK_SECONDS: Final = 0.25
_RESOLVE_SECONDS: Final = 2.0


async def read(engine: NatsEngine) -> tuple[Cohort | None, int]:
    """The cohort's record and its sequence; None and 0 where there is none yet. Raises
    `NoQuorum`."""
    try:
        return await cohort.read(engine, cohort.CELL)
    except InvalidName:  # there is no registry yet
        return None, 0


async def learn(host: str, security: Security, join: str) -> tuple[Cohort, int]:
    """The record of the cluster that a host is to join. Raises `ConfigError`, `NoQuorum`."""
    scheme = "tls" if security.tls_cert else "nats"
    engine = NatsEngine([f"{scheme}://{join}"], security)
    await engine.open()
    try:
        record, sequence = await _joinable(engine, join)
        # else it is the same host, without its disk
        if host in record.hosts and await server_up(engine, host):
            raise ConfigError(f"there is a host {host!r} in the cluster: give another --name")
    finally:
        await engine.close()
    return record, sequence


async def server_up(engine: NatsEngine, host: str) -> str:
    """The server of the host of this name; empty where none is there. Raises `Unknown` where that
    cannot be told."""
    try:
        facts = await ask_host(engine.bus, host, "facts", HostFacts)
    except NoResponders:
        return ""
    return facts.entry.server if facts.entry is not None else host


async def _joinable(engine: NatsEngine, join: str) -> tuple[Cohort, int]:
    """The record of a cluster that may just be founded."""
    try:
        async with asyncio.timeout(_JOIN_SECONDS):
            while True:
                record, sequence = await read(engine)
                if record is not None and not any(entry.route for entry in record.hosts.values()):
                    raise ConfigError(
                        f"{join} is a single host, and does not grow: start a cluster with --cohort"
                    )
                if record is not None:
                    return record, sequence
                await asyncio.sleep(_LOOK_SECONDS)
    except TimeoutError:
        raise ConfigError(
            f"{join} belongs to no cluster that can be joined: its servers have no record of a "
            "cohort. For servers of your own, give --servers URL"
        ) from None


def address_of(own: ServerSettings, join: str) -> str:
    """Where others reach this host: where it listens, or else the address that faces them."""
    listen = own.listen
    if listen not in addresses.EVERYWHERE:
        return listen
    for route in own.routes:
        name = addresses.bare(route.rpartition(":")[0])
        if route.endswith(f":{own.cluster_port}") and _is_here(name):
            return name
    host, _, port = join.rpartition(":")
    if not host:
        return socket.gethostname()
    with socket.socket(
        socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM
    ) as probe:
        probe.connect((addresses.bare(host), int(port)))
        return str(probe.getsockname()[0])


def _is_here(name: str) -> bool:
    """Whether an address belongs to this machine."""
    try:
        found = socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM)
        for family, kind, _, _, address in found:
            with socket.socket(family, kind) as probe:
                probe.bind((ipaddress.ip_address(address[0]).compressed, 0))
                return True
    except (OSError, ValueError):
        return False
    return False


async def same_places(some: Iterable[str], others: Iterable[str]) -> set[str]:
    """Those of some addresses (HOST:PORT) that are also among others, by whatever name."""
    known = set().union(*await asyncio.gather(*map(_resolved, others)))
    return {place for place in some if place and known & await _resolved(place)}


async def _resolved(place: str) -> set[str]:
    """An address, and what its name stands for, as far as that is known soon."""
    host, _, port = place.rpartition(":")
    found = {place}
    with suppress(OSError, UnicodeError, TimeoutError):
        async with asyncio.timeout(_RESOLVE_SECONDS):
            loop = asyncio.get_running_loop()
            named = await loop.getaddrinfo(addresses.bare(host), int(port), type=socket.SOCK_STREAM)
            found |= {addresses.join(str(address[0]), int(address[1])) for *_, address in named}
    return found
