"""The state of a cluster in one look: who is expected, up and gone, what is served, and what is
wrong with that.

Two questions are asked side by side, and neither waits for the other. Hosts and nodes are heard
over the bus, which needs one server. The log is joined as a client does; where it does not answer,
the rest is said without it.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

import msgspec

from holdfast.admin import presence
from holdfast.admin.presence import HostPresence, MissingNode, Presence
from holdfast.cluster.facts.founding import check_copies
from holdfast.engines.base import Engine
from holdfast.engines.local.socket_engine import SocketEngine
from holdfast.errors import NotDone, Unknown
from holdfast.node.node import Node
from holdfast.node.views import MemberInfo

VIEW_SECONDS: Final = 2.0
"""How long the log is waited for."""

WELL: Final = "well"
DEGRADED: Final = "degraded"
DOWN: Final = "down"


class Status(msgspec.Struct, kw_only=True):
    """What was seen. Numbers that only the log knows are None where it did not answer."""

    state: str = DOWN
    """``well``; ``degraded``: it works, and something is missing; ``down``: nothing is served, or
    the log does not answer."""
    problems: list[str] = []
    """What is wrong, the worst first."""
    cluster: str = ""
    engine: str = ""
    cells: list[str] = []
    copies: int | None = None
    """How many copies there are of everything."""
    voters: int = 0
    """How many hosts vote; 0 on servers that no host runs."""
    shards: int | None = None
    served: int = 0
    """Shards that the nodes that beat serve."""
    registered: int | None = None
    dead_letters: int | None = None
    hosts: list[HostPresence] = []
    """All that are expected."""
    nodes: list[MemberInfo] = []
    missing: list[MissingNode] = []
    """Nodes that hosts are to run, and that do not serve. Without a majority there are none: nobody
    can start then."""
    cordoned: list[str] = []
    process: int = 0
    """The one that has an embedded log open; 0 for none."""


async def of_cluster(engine: Engine, wait_seconds: float | None = None) -> Status:
    """Look at a cluster. ``wait_seconds``: how long the log is waited for, and with it a cluster
    that is not founded yet.

    Raises `NotFound` where there is none.
    """
    joining = asyncio.create_task(_log(engine, wait_seconds))
    try:
        seen = await presence.look(engine.bus, beats=True)
        if seen.lost and wait_seconds is None:
            joining.cancel()
        await asyncio.wait({joining})
        logged = None if joining.cancelled() else joining.result()
    finally:
        joining.cancel()
        await asyncio.gather(joining, return_exceptions=True)
    if wait_seconds is not None:
        seen = await presence.look(engine.bus, beats=True)
    return judged(logged or Status(), seen)


async def _log(engine: Engine, wait_seconds: float | None) -> Status | None:
    """What the log knows, None where it does not answer in time."""
    with suppress(TimeoutError, NotDone, Unknown):
        async with asyncio.timeout(VIEW_SECONDS if wait_seconds is None else wait_seconds):
            node = await Node.on(engine, [], wait=wait_seconds is not None)
            try:
                return await of_node(node)
            finally:
                await node.leave()
    return None


async def of_node(node: Node) -> Status:
    """What a node knows of the log that it joined. Raises `NotDone`, `Unknown`."""
    letters = await node.dead_letters.all()
    nodes = [member for member in node.members() if member.incarnation != node.incarnation]
    return Status(
        cluster=node.manifest.cluster_id,
        engine=node.engine.name,
        cells=list(node.manifest.cells),
        copies=await check_copies(node.engine, node.manifest, 1),
        shards=node.shards,
        registered=node.count(),
        dead_letters=len(letters),
        served=sum(member.shards for member in nodes),
        nodes=nodes,
        cordoned=list(node.placement.table.cordoned),
        process=node.engine.owner if isinstance(node.engine, SocketEngine) else 0,
    )


def judged(status: Status, seen: Presence) -> Status:
    """The same with who is there, and what is wrong with it."""
    record = seen.record
    status.voters = min(map(len, record.sides), default=0) if record is not None else 0
    status.hosts = seen.hosts
    status.nodes = [MemberInfo.of(beat) for beat in seen.nodes if beat.kinds]
    status.served = sum(member.shards for member in status.nodes)
    down, degraded = [], [presence.gone_text(host) for host in seen.gone]
    founding = seen.record is None and len(seen.answered) < seen.founders
    status.missing = [] if seen.lost or founding else seen.missing
    degraded += map(presence.missing_text, status.missing)
    if seen.lost:
        down.append(
            "no majority of the hosts that vote is up: nothing can be read or written until one "
            "more is started"
        )
    elif founding:
        names = ", ".join(seen.answered)
        down.append(
            f"{len(seen.answered)} of the {seen.founders} hosts that found the cluster are up "
            f"({names}): it is founded when all of them are"
        )
    elif status.shards is None:
        down.append(
            f"the log did not answer within {VIEW_SECONDS:g} s: after the loss of a host its "
            "leaders are elected anew, which takes up to 9 s; see `holdfast doctor` where it "
            "stays so"
        )
    elif seen.record is None and seen.answered:
        degraded.append(
            "which hosts vote is not known yet: those that answered have not read it so far"
        )
    if not status.served and not seen.lost:
        down.append(
            "nothing is served: "
            + ("no node runs" if not status.nodes else "no node that runs serves a shard yet")
        )
    elif status.shards is not None and status.served < status.shards:
        degraded.append(f"{status.shards - status.served} shards are served by nobody")
    if status.copies is not None and status.copies < status.voters:
        copies = f"{status.copies} cop{'y' if status.copies == 1 else 'ies'}"
        few = (
            f"critical: {copies} of everything, though {status.voters} hosts vote: see `holdfast "
            "doctor`"
        )
        degraded.insert(0, few)
    status.problems = [*down, *degraded]
    status.state = DOWN if down else DEGRADED if degraded else WELL
    return status
