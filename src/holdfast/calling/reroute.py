"""Calls follow the ownership records: who owns a shard by now is known in every process that reads
the log.

A call for a shard whose owner is not known goes to the shard's subject, and one of those that
listen there gets it. A node that stands still listens as well: what it gets lies in its socket, and
the caller's next attempt may go there again. So a call goes to the owner that the log names, where
that one is heard; and when the log names another one, the calls that were not answered are sent to
that one at once.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from holdfast.calling.router import Router
    from holdfast.cluster.members.membership import Membership
    from holdfast.cluster.ownership.epochs import Epochs


class Reroute:
    """See the module."""

    def __init__(self, router: Router, membership: Membership, epochs: Epochs) -> None:
        self._router = router
        self._membership = membership
        self._epochs = epochs
        self._loop = asyncio.get_running_loop()
        self._changed: set[int] = set()

    def owner_of(self, shard: int) -> str:
        """Who owns a shard by the log, if that node is heard; else nothing."""
        owner = self._epochs.get(shard).record.owner
        return owner if owner and self._membership.is_heard(owner) else ""

    def changed(self, shard: int) -> None:
        """The log shows another owner of a shard, or none."""
        if not self._changed:
            self._loop.call_soon(self._send_again)
        self._changed.add(shard)

    def _send_again(self) -> None:
        router = self._router
        changed, self._changed = self._changed, set()
        owners = {shard: owner for shard in changed if (owner := self.owner_of(shard))}
        router._owners.update(owners)
        for opened in list(router._open.values()):
            now = owners.get(opened.shard)
            if now and opened.unanswered and opened.target != now:
                # Where it went to nobody in particular, it may be in the hands of a process that
                # died.
                opened.call.interrupted = opened.call.interrupted or not opened.target
                router._send(opened)

    def node_died(self, incarnation: str) -> None:
        """A node is known to be dead: what it had in its hands is asked again at once."""
        router = self._router
        for shard in [shard for shard, owner in router._owners.items() if owner == incarnation]:
            del router._owners[shard]
        for opened in list(router._open.values()):
            if opened.target == incarnation and opened.unanswered:
                opened.call.interrupted = True
                router._send(opened)
