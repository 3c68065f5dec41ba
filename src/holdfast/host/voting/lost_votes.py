"""Takes the vote and the copies from a server that no host has any more, so that others keep what
it kept.

A host that lost its disk comes back with a server of another name, and takes the vote from the
former one itself. Where that was missed, the former one would be waited for, and everything would
have a copy less, for good. So the host whose server leads those who vote looks after it: the cohort
does not change, each host of it votes and is heard, and somebody votes beside them who was not
heard for a while. The copies that are left have to be whole, as for any other removal.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from holdfast.errors import HoldfastError
from holdfast.host.server.server_admin import ServerAdmin, peer_id
from holdfast.host.voting.voter import MayLeave, Voter

_LOST_SECONDS: Final = 20.0
_LOOK_SECONDS: Final = 1.0

_logger = logging.getLogger(__name__)


class LostVotes:
    """See the module."""

    def __init__(self, system: ServerAdmin, seat: Voter, may_leave: MayLeave) -> None:
        self._system = system
        self._seat = seat
        self._may_leave = may_leave
        self._since: dict[str, float] = {}
        """Since when each lost one was found to be lost."""

    async def run(self) -> None:
        """Look, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                lost, now = await self._lost(), loop.time()
                self._since = {peer: self._since.get(peer, now) for peer in lost}
                for peer, since in list(self._since.items()):
                    if now - since >= _LOST_SECONDS:
                        await self._may_leave(lost[peer])
                        _logger.warning(
                            "the vote of %s is taken away: no host has that server any more",
                            lost[peer],
                        )
                        await self._system.remove_peer(peer)
            except HoldfastError as error:
                self._since.clear()
                _logger.debug("votes are left as they are: %s", error)

    async def _lost(self) -> dict[str, str]:
        """The servers that are lost, each with its name; none where this host is not the one to
        look, or all is not well."""
        record = self._seat.record
        if record is None or record.target:
            return {}
        voters = await self._system.voters()
        if not voters.leader or voters.leader != self._system.server_name():
            return {}  # a server that does not vote, or was just lost, leads nobody and has no name
        heard = {voters.peers[0].peer, *(peer.peer for peer in voters.peers[1:] if peer.is_heard())}
        if (
            not {
                peer_id(record.hosts[name].server)
                for name in record.members
                if name in record.hosts
            }
            <= heard
        ):
            return {}
        known = heard | {peer_id(entry.server) for entry in record.hosts.values()}
        return {
            peer.peer: peer.name for peer in voters.peers if peer.peer and peer.peer not in known
        }
