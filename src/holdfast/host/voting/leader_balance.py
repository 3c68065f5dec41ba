"""Spreads the leaders of the cells over the servers, so that the loss of one stalls its share only.

After a restart all of them may lead on one server, and the engine leaves it so. The host whose
server leads those who vote looks after it: where it is uneven for ten seconds it moves one, and
then looks for ten seconds again. In trouble nothing is moved: a move costs the cell a moment, and
elections are enough to bear.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Final

from holdfast import limits
from holdfast.cluster.facts import write_pause
from holdfast.core.spread import one_move
from holdfast.engines.nats import streams
from holdfast.engines.nats.engine import NatsEngine
from holdfast.errors import HoldfastError
from holdfast.host.rpc.facts import Replicas
from holdfast.host.rpc.service import ask_hosts
from holdfast.host.server.server_admin import Peer, ServerAdmin
from holdfast.host.voting.voter import Voter

UNEVEN_SECONDS: Final = 10.0
_LOOK_SECONDS: Final = 1.0
_QUIET_SECONDS: Final = 0.15
"""For appends that are under way to end; and for a new leader to begin."""

_CELL: Final = re.compile(r"g[0-9]+c[0-9]+")

_logger = logging.getLogger(__name__)


def _heard(peer: Peer) -> bool:
    return peer.current and peer.active < limits.SUSPECT_SECONDS * 1_000_000_000


class LeaderBalance:
    """See the module."""

    def __init__(self, engine: NatsEngine, system: ServerAdmin, seat: Voter) -> None:
        self._engine = engine
        self._system = system
        self._seat = seat
        self.moves = 0

    async def run(self) -> None:
        """Look, for ever."""
        loop = asyncio.get_running_loop()
        even_at = loop.time()
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                move = await self._wanted()
                if move is None:
                    even_at = loop.time()
                elif loop.time() - even_at >= UNEVEN_SECONDS:
                    even_at = loop.time()
                    if await self._sound():
                        await self._move(*move)
            except HoldfastError as error:
                even_at = loop.time()
                _logger.debug("the leaders are left where they are: %s", error)

    async def _wanted(self) -> tuple[str, str] | None:
        """A cell and the server to lead it, where this host is to move one and all is well as far
        as its server sees."""
        record = self._seat.record
        if record is None or record.target:
            return None
        voters = await self._system.voters()
        own = self._system.server_name()
        if (
            len(voters.peers) < 2
            or voters.leader != own
            or not all(_heard(peer) for peer in voters.peers[1:])
        ):
            return None
        servers = [peer.name for peer in voters.peers]
        if set(servers) != {
            record.hosts[name].server for name in record.members if name in record.hosts
        }:
            return None
        cells = [
            replica for replica in await self._system.replicas() if _CELL.fullmatch(replica.stream)
        ]
        if any(
            not replica.leader or replica.moving or replica.copies != len(servers)
            for replica in cells
        ):
            return None
        return one_move({replica.stream: replica.leader for replica in cells}, servers)

    async def _sound(self) -> bool:
        """Whether each cell's leader finds all its followers current."""
        assert self._seat.record is not None
        members = self._seat.record.members
        found = await ask_hosts(
            self._engine.bus, "replicas", Replicas, expected=members, wait_seconds=2.0
        )
        kept = [one for one in found.values() if isinstance(one, Replicas)]
        leading = [replica for one in kept for replica in one.replicas if replica.leads]
        followers = [peer for replica in leading for peer in replica.peers]
        return len(kept) >= len(members) and all(
            peer.current and not peer.offline for peer in followers
        )

    async def _move(self, cell: str, server: str) -> None:
        _logger.info("%s is to be led by %s: the leaders are uneven", cell, server)
        # What is under way when a leader goes may be lost, and its writers would wait for nothing.
        write_pause.begin(self._engine, cell)
        try:
            await asyncio.sleep(_QUIET_SECONDS)
            await streams.move_leader(self._engine.connection, cell, server)
            self.moves += 1
            await asyncio.sleep(_QUIET_SECONDS)
        finally:
            write_pause.release(self._engine)
