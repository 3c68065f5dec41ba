"""What a node shows of the cluster: its members, where an agent lives, and agents that were
found."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec

from holdfast.agents.ref import AgentRef
from holdfast.cluster.facts.registry import Entry
from holdfast.cluster.members.beats import Beat
from holdfast.cluster.members.membership import Membership


class MemberInfo(msgspec.Struct, frozen=True):
    """A node of the cluster. ``started_at`` is in seconds since 1970."""

    incarnation: str
    name: str
    host: str
    kinds: list[str]
    shards: int
    agents: int
    started_at: float
    version: str
    labels: list[str]
    capacity: float
    draining: bool
    """Whether it is about to end, and gives its shards away."""
    record_version: int
    """The newest version of records that it reads."""
    degraded: str = ""
    """What is wrong with it: its loop stood still a short while ago. Empty where nothing is."""

    @classmethod
    def of(cls, beat: Beat) -> MemberInfo:
        """What a node's newest beat says of it."""
        return cls(
            beat.incarnation,
            beat.name,
            beat.host,
            beat.kinds,
            beat.shards,
            beat.agents,
            beat.started_at,
            beat.version,
            beat.labels,
            beat.capacity,
            beat.draining,
            beat.record_version,
            beat.degraded,
        )


class AgentInfo(msgspec.Struct, frozen=True):
    """Where an agent lives. ``owner`` is the incarnation of a node, empty while nobody owns its
    shard."""

    agent_id: str
    shard: int
    cell: str
    epoch: int
    owner: str
    host: str
    registered: bool
    capabilities: list[str]
    metadata: dict[str, Any]
    standbys: list[str] = []
    """Nodes that keep the records of its shard in memory."""

    @classmethod
    def of(
        cls,
        agent_id: str,
        place: tuple[int, str, int, str],
        entry: Entry | None,
        members: Membership,
    ) -> AgentInfo:
        """``place``: shard, cell, epoch, owner. ``entry``: what is registered of it."""
        host = next(
            (beat.host for beat in members.live() if place[3] and beat.incarnation == place[3]), ""
        )
        capabilities = sorted(entry.capabilities) if entry else []
        metadata = dict(entry.metadata) if entry else {}
        standbys = members.warm().get(place[0], [])
        return cls(agent_id, *place, host, entry is not None, capabilities, metadata, standbys)


class Found(list[AgentRef[Any]]):
    """Agents that were found: a list, which can also be walked with ``async for``."""

    async def __aiter__(self) -> AsyncIterator[AgentRef[Any]]:
        for agent in self:
            yield agent
