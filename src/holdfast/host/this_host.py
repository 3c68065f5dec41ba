"""What an operation needs of the host that carries it out."""

from __future__ import annotations

import asyncio
from typing import Protocol

from holdfast.engines.nats.engine import NatsEngine
from holdfast.host.heard import Heard
from holdfast.host.node_child import NodeChild
from holdfast.host.rpc.facts import NodeAway
from holdfast.host.server.keeper import Keeper
from holdfast.host.server.nats_server import NatsServer
from holdfast.host.server.server_admin import ServerAdmin
from holdfast.host.settings import HostSettings
from holdfast.host.told import Told
from holdfast.host.voting.voter import Voter


class ThisHost(Protocol):
    """See the module; `holdfast.host.supervisor.Host` is one. What is None belongs to a server that
    it does not run."""

    settings: HostSettings
    started_at: float
    server: NatsServer | None
    keeper: Keeper | None
    system: ServerAdmin | None
    seat: Voter | None
    heard: Heard
    say: Told
    children: list[NodeChild]
    wants_restart: asyncio.Event

    @property
    def engine(self) -> NatsEngine:
        """Its connection to the cluster. Raises `Closed`."""
        ...

    @property
    def votes(self) -> bool:
        """Whether its server runs, keeps copies, and votes."""
        ...

    def away(self) -> list[NodeAway]:
        """Its nodes that are away, the first of them; none while it ends."""
        ...
