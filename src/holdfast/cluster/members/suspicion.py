"""Condemning nodes that were silent for too long, so that their shards may be claimed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from holdfast.cluster.members.liveness import Liveness, base
from holdfast.cluster.members.membership import Membership


class Suspicion:
    """One node's part in it. Every node does it for itself: a node that lives cannot be condemned
    by mistake."""

    def __init__(self, membership: Membership, life: Liveness) -> None:
        self._membership = membership
        self._life = life
        self._under_way: dict[str, asyncio.Task[None]] = {}

    def look(self, owners: Mapping[str, str]) -> None:
        """Begin to condemn whoever is silent. ``owners``: incarnations that own shards, each with
        its host."""
        for incarnation in {**dict.fromkeys(self._membership.serving(), ""), **owners}:
            if (
                not incarnation
                or base(incarnation) == base(self._life.incarnation)
                or incarnation in self._under_way
            ):
                continue
            if self._membership.silent(incarnation) and not self._membership.is_dead(
                incarnation, owners.get(incarnation, "")
            ):
                task = asyncio.get_running_loop().create_task(self._condemn(incarnation))
                self._under_way[incarnation] = task

    async def _condemn(self, incarnation: str) -> None:
        try:
            if await self._life.condemn(incarnation):
                self._membership.condemned(incarnation)
        finally:
            del self._under_way[incarnation]

    async def close(self) -> None:
        """Stop."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
