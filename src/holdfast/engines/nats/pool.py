"""Which server a connection tries next, and when: a server that fails is left alone for longer each
time.

A server that takes a connection and closes it at once fails as well. Without a pause for it a
client would connect hundreds of times a second.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from random import Random
from typing import Final
from urllib.parse import urlsplit

from holdfast import limits
from holdfast.engines.nats.urls import shown
from holdfast.errors import ConfigError

_PORT: Final = 4222
_DISCOVERED_MAX: Final = 64
"""Servers that others told of; further ones are left out."""


class Server:
    """One address. ``names``: those that its certificate may have. ``given``: whether the user
    named it."""

    def __init__(self, url: str, given: bool = True, also_named: str = "") -> None:
        parts = urlsplit(url)
        try:
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if not host:
            raise ConfigError(f"{shown(url)}: write nats://HOST:PORT")
        self.uri = url
        self.host = host
        self.port = port or _PORT
        self.given = given
        self.names = [self.host] if not also_named else [self.host, also_named]
        self.hello_first = True
        """Whether it expects the handshake before it says anything, as far as is known."""
        self.failures = 0
        self.due = 0.0
        self.connected_at = 0.0
        self.refusal = ""
        """Why it, or this side, is not trusted, if that is why it failed last."""

    @property
    def where(self) -> str:
        """HOST:PORT."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def step_seconds(self) -> float:
        """How long one step of connecting may take: longer after failures, as a busy machine may
        need longer."""
        return 1.0 + min(self.failures, 4) * 0.5

    def failed(self, now: float, random: Random, refusal: str = "") -> None:
        """Leave it alone for a while."""
        self.failures += 1
        self.refusal = refusal
        most = min(
            limits.RECONNECT_SECONDS_MIN * 2 ** min(self.failures, 16), limits.RECONNECT_SECONDS_MAX
        )
        self.due = now + random.uniform(limits.RECONNECT_SECONDS_MIN, most)

    def connected(self, now: float) -> None:
        """It answered."""
        self.connected_at = now
        self.refusal = ""

    def lost(self, now: float, random: Random) -> None:
        """The connection to it ended: one that lasted was a good one."""
        if now - self.connected_at < limits.RECONNECT_SECONDS_MAX:
            self.failed(now, random)
        else:
            self.failures, self.due = 0, now


class Pool:
    """The servers of a connection, the nearest first. ``listens``: whether it takes in those that
    servers tell of."""

    def __init__(self, urls: Iterable[str], listens: bool, random: Random) -> None:
        self.servers = [Server(url) for url in urls]
        self.listens = listens
        self.random = random
        self.current = self.servers[0]
        self._begun = False

    def next(self, now: float) -> tuple[Server, float]:
        """The server to try, and the seconds to wait before."""
        at = (
            self.servers.index(self.current) + 1
            if self._begun and self.current in self.servers
            else 0
        )
        order = self.servers[at:] + self.servers[:at]
        due = [server for server in order if server.due <= now]
        self.current = due[0] if due else min(order, key=lambda server: server.due)
        self._begun = True
        return self.current, max(self.current.due - now, 0.0)

    def refusal(self) -> str:
        """Why no server can be used, if each was tried and one of them refused; else empty."""
        if any(server.failures == 0 for server in self.servers if server.given):
            return ""
        return next((server.refusal for server in self.servers if server.refusal), "")

    def told(self, addresses: object) -> None:
        """Take in what a server says of others, in place of what was said before."""
        if not self.listens or not isinstance(addresses, list):
            return
        named = next(
            (s.host for s in (self.current, *self.servers) if s.given and not _is_address(s.host)),
            "",
        )
        known = {server.where: server for server in self.servers}
        kept = [server for server in self.servers if server.given]
        for address in addresses[: _DISCOVERED_MAX + len(kept)]:
            try:
                server = Server(f"nats://{address}", False, named)
            except ConfigError:
                continue
            server = known.get(server.where, server)
            if server not in kept and len(kept) < _DISCOVERED_MAX + len(self.servers):
                kept.append(server)
        self.servers = kept


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
