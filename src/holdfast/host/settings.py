"""What a host is told, and whom it tells what happens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from holdfast import ids
from holdfast.host.server.nats_config import ServerSettings
from holdfast.security import Security

Report = Callable[[str, dict[str, Any]], None]
"""Takes an event's name and its facts."""


class HostSettings(msgspec.Struct):
    """Everything that a host is told. ``server`` is None where the servers are somebody else's
    (``urls``)."""

    name: str
    server: ServerSettings | None
    urls: list[str]
    """Servers to connect to, besides the own one."""
    nodes: int = 1
    apps: list[str] = []
    replicas: int | None = None
    """How many copies a cluster keeps that this host may found; None where it founds none."""
    labels: list[str] = []
    capacity: float = 1.0
    """Of each of its nodes."""
    security: Security = Security()
    join: str = ""
    """HOST:PORT of any host of a cluster that this one is to join, where its own directory does not
    know it yet."""

    def __post_init__(self) -> None:
        ids.check_machine(self.name, "host")
