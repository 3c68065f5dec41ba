"""Where a node's log is: ``local:FILE`` or ``nats://HOST:PORT``, with everything else that a
connection needs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec

from holdfast import ids, limits
from holdfast.engines.base import Engine
from holdfast.engines.local import socket_engine
from holdfast.engines.local.engine import LocalEngine
from holdfast.engines.local.socket_engine import SocketEngine
from holdfast.engines.nats.engine import NatsEngine
from holdfast.engines.nats.urls import shown
from holdfast.errors import ConfigError, NoQuorum
from holdfast.security import Security

T = TypeVar("T")


class Local(msgspec.Struct, frozen=True):
    """The embedded engine, in one file."""

    path: Path


class Nats(msgspec.Struct, frozen=True):
    """Servers of a cluster, the nearest first."""

    urls: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Nats({shown(self.urls)})"


def parse(url: str | list[str] | tuple[str, ...]) -> Local | Nats:
    """What a URL names. Raises `ConfigError` that says how to write it."""
    urls = [
        part.strip()
        for one in ([url] if isinstance(url, str) else url)
        for part in str(one).split(",")
    ]
    urls = [part for part in urls if part]
    if not urls:
        raise ConfigError(
            'a node joins something: "local:FILE" on one machine, "nats://HOST:PORT" on a cluster'
        )
    if urls[0].startswith("local:"):
        path = urls[0].removeprefix("local:")
        if len(urls) > 1 or not path or path.startswith("//"):
            raise ConfigError(f'{shown(urls)!r}: write "local:FILE", for example "local:dev.db"')
        return Local(Path(path))
    for one in urls:
        try:
            parts = urlsplit(one)
        except ValueError as error:
            raise ConfigError(f"{shown(one)!r}: {error}") from None
        if parts.scheme not in ("nats", "tls") or not parts.hostname:
            raise ConfigError(
                f'{shown(one)!r} is not a place to join: write "local:FILE" or "nats://HOST:PORT"'
            )
        try:
            _ = parts.port
        except ValueError:
            raise ConfigError(f"{shown(one)!r}: the port is not a number from 1 to 65535") from None
    return Nats(tuple(urls))


def check_names(name: str, host: str) -> None:
    """Raises `ConfigError` for a node's or a host's name that cannot be one; an empty one is made
    later."""
    for given, what in ((name, "node"), (host, "host")):
        if given:
            ids.check_machine(given, what)


def timeout(where: Local | Nats, seconds: float | None) -> float | None:
    """How long joining may take: what was given, else a bound for a cluster and none for a file.
    Raises `ConfigError`."""
    if seconds is None:
        return limits.JOIN_SECONDS if isinstance(where, Nats) else None
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < 1e9:
        raise ConfigError(f"timeout_seconds is a number of seconds above 0, not {seconds!r}")
    return float(seconds)


@asynccontextmanager
async def within(seconds: float | None) -> AsyncIterator[None]:
    """A bound for joining. Raises `NoQuorum` where it is over: what did not come by then was a
    majority's answer."""
    try:
        async with asyncio.timeout(seconds) as bound:
            yield
    except TimeoutError:
        if not bound.expired():
            raise
        raise not_joined(seconds or 0.0) from None


def not_joined(seconds: float) -> NoQuorum:
    """What is said where joining did not come to its end in time."""
    return NoQuorum(
        f"no cluster could be joined within {seconds:g} s: no majority of its servers answers, or "
        "it is not founded yet (`holdfast doctor` says which); a large one may need more "
        "timeout_seconds"
    )


def engine(where: Local | Nats, security: Security, visits: bool = False) -> Engine:
    """The engine for a place. Raises `ConfigError`.

    ``visits``: where a running program has the embedded log open, its process is asked instead.
    """
    if isinstance(where, Local):
        given = [name for name, value in msgspec.structs.asdict(security).items() if value]
        if given:
            raise ConfigError(
                f"{', '.join(given)}: the embedded engine has no server to show them to"
            )
        return (
            SocketEngine(where.path)
            if visits and socket_engine.answers(where.path)
            else LocalEngine(where.path)
        )
    return NatsEngine(where.urls, security)
