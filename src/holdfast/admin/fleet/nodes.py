"""Taking hosts and nodes out of service, and back: cordon, drain, uncordon.

A cordon is durable: it holds through restarts, until it is taken back. Shards go a few at a time to
nodes that have their records in memory by then, so that no call fails and hardly one waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from holdfast.core import pools
from holdfast.errors import DeadlineExceeded, NotFound
from holdfast.node.node import Node
from holdfast.node.views import MemberInfo


def named(node: Node, name: str) -> list[MemberInfo]:
    """The nodes of a host, or the node, with this name. Raises `NotFound`."""
    found = [one for one in node.members() if one.kinds and name in (one.host, one.name)]
    if not found:
        known = sorted(
            {name for one in node.members() if one.kinds for name in (one.host, one.name)}
        )
        raise NotFound(f"there is no host or node {name!r}; there are {', '.join(known) or 'none'}")
    return found


async def cordon(node: Node, name: str) -> None:
    """Have a host or node own nothing, from now on. Raises `NotFound` for one that is not there,
    `NoQuorum`."""
    named(node, name)
    await node.placement.change(lambda table: pools.cordon(table, name, True))
    node.events.say("cordoned", name)


async def uncordon(node: Node, name: str) -> None:
    """Let a host or node own shards again. Raises `NotFound` where it is not cordoned,
    `NoQuorum`."""
    if name not in node.placement.table.cordoned:
        there = ", ".join(node.placement.table.cordoned) or "nothing"
        raise NotFound(f"{name!r} is not cordoned; {there} is")
    await node.placement.change(lambda table: pools.cordon(table, name, False))
    node.events.say("uncordoned", name)


async def drain(
    node: Node,
    name: str,
    timeout_seconds: float = 120.0,
    report: Callable[[int], None] | None = None,
) -> None:
    """Cordon, and return when nothing is left there. ``report`` hears how many shards are left, as
    it changes.

    Raises `DeadlineExceeded` when the time is over, or where there is nobody else to own them;
    `NotFound`, `NoQuorum`.
    """
    loop = asyncio.get_running_loop()
    await cordon(node, name)
    end = loop.time() + timeout_seconds
    before = -1
    while True:
        names = {one.incarnation for one in node.members() if name in (one.host, one.name)}
        # What the log says of the owners, and what the nodes say of themselves.
        left = sum(owner in names for owner in node.owners().values())
        if left != before and report is not None:
            report(left)
        before = left
        if not left:
            node.events.say("drained", name)
            return
        if loop.time() > end:
            others = [one for one in node.members() if one.kinds and one.incarnation not in names]
            why = "it goes on" if others else "no other node serves these agents"
            raise DeadlineExceeded(
                f"{name} still has {left} shards after {timeout_seconds:.0f} s: {why}"
            )
        await asyncio.sleep(0.05)
