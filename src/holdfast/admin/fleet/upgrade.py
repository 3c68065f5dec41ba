"""Rolling restarts and upgrades: one host at a time, and no call fails.

A host that is restarted gives its agents away first, ends its nodes and its server, and replaces
its own process by a new one with the same command: so host, nodes and server all run the code that
is installed by then. The next host's turn comes when this one's nodes serve again and its server
has caught up, so that a majority is there all the time.

New code writes records in the old version until it is told that every node reads the new one:
`finalize`. Until then the installation of the old code can be put back, the same way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from holdfast import limits
from holdfast.admin.fleet import nodes
from holdfast.cluster.facts import manifest
from holdfast.errors import (
    ConfigError,
    Conflict,
    DeadlineExceeded,
    HoldfastError,
    NoQuorum,
    NoResponders,
    NotDone,
    Unknown,
)
from holdfast.host.rpc.facts import HostFacts, Replicas
from holdfast.host.rpc.service import Nothing, ask_host, ask_hosts
from holdfast.node.node import Node
from holdfast.records.agent_record import RECORD_VERSION

_CHECK_SECONDS: Final = 15.0
"""How long a host may take to find out whether the others can do without it."""

_PATIENCE_SECONDS: Final = 2 * limits.EXCLUSIVE_SECONDS

Report = Callable[[str, str], None]
"""Takes a host and what it does now."""


class Versions(NamedTuple):
    """The versions of records: the one that is written now, the newest that this code could write,
    and the newest that each node reads."""

    written: int
    known: int
    nodes: dict[str, int]


def versions(node: Node) -> Versions:
    """Who reads what, as far as this node has heard."""
    reads = {member.name: member.record_version for member in node.members() if member.kinds}
    return Versions(node.manifest.record_version, RECORD_VERSION, reads)


async def finalize(node: Node) -> int:
    """Have records of the newest version that this code knows written; return it. There is no way
    back to older code then.

    Raises `ConfigError` while some node cannot read it, `NoQuorum`, `OutcomeUnknown`.
    """
    await node.settled()
    found = versions(node)
    behind = sorted(name for name, version in found.nodes.items() if version < found.known)
    if behind:
        raise ConfigError(
            f"{', '.join(behind)} cannot read records of version {found.known}: upgrade them first"
        )
    now = await manifest.raise_version(
        node.engine, manifest.registry_cell(node.manifest.generation), found.known
    )
    node.events.say("record-version-raised", node.name, version=now.record_version)
    return now.record_version


async def restart_hosts(
    node: Node,
    hosts: Sequence[str] = (),
    report: Report | None = None,
    timeout_seconds: float = 180.0,
) -> list[str]:
    """Restart hosts, one after the other: those named, or all. Return them.

    Raises `NotDone` before anything is done where a host is not well, `DeadlineExceeded` where one
    does not come back.
    """
    say = report or (lambda _host, _text: None)
    found = await ask_hosts(node.engine.bus, "facts", HostFacts, wait_seconds=2.0)
    wanted = list(hosts) or sorted(found)
    unknown = [name for name in wanted if name not in found]
    if unknown:
        raise NoResponders(
            f"no host {', '.join(unknown)} answers; there are {', '.join(sorted(found)) or 'none'}"
        )
    for name, facts in found.items():
        trouble = str(facts) if isinstance(facts, HoldfastError) else facts.server_trouble
        if trouble:
            raise NotDone(
                f"host {name} is not well ({trouble}): with it and another away there may be no "
                "majority"
            )
    for name in wanted:
        await _restart_host(node, name, say, timeout_seconds)
    return wanted


async def _restart_host(node: Node, name: str, say: Report, timeout_seconds: float) -> None:
    was_cordoned = name in node.placement.table.cordoned
    mine = [one for one in node.members() if one.kinds and one.host == name]
    others = [one for one in node.members() if one.kinds and one.host != name]
    if mine and others and not was_cordoned:
        say(name, "its agents move to others")
        await nodes.drain(node, name, timeout_seconds)
    before = await ask_host(node.engine.bus, name, "facts", HostFacts)
    say(name, "restarts")
    await _ask_to_restart(node, name)
    end = asyncio.get_running_loop().time() + timeout_seconds
    while not await _is_back(node, name, before):
        if asyncio.get_running_loop().time() > end:
            raise DeadlineExceeded(
                f"host {name} was not back after {timeout_seconds:.0f} s: look at what it prints"
            )
        await asyncio.sleep(limits.BEAT_SECONDS)
    if name in node.placement.table.cordoned and not was_cordoned:
        await nodes.uncordon(node, name)
    node.events.say("host-restarted", name)
    say(name, "is back")


async def _ask_to_restart(node: Node, name: str) -> None:
    """Ask until the host finds that the others can do without it: the one before may have to catch
    up for a moment."""
    end = asyncio.get_running_loop().time() + _PATIENCE_SECONDS
    while True:
        try:
            await ask_host(
                node.engine.bus, name, "restart", Nothing, timeout_seconds=_CHECK_SECONDS
            )
            return
        except (Conflict, NoQuorum):
            if asyncio.get_running_loop().time() > end:
                raise
        await asyncio.sleep(limits.BEAT_SECONDS)


async def _is_back(node: Node, name: str, before: HostFacts) -> bool:
    """Whether it is another process, whose nodes are ready and heard, and whose server has all that
    others have."""
    try:
        facts = await ask_host(node.engine.bus, name, "facts", HostFacts, timeout_seconds=1.5)
        if facts.started_at == before.started_at or not all(one.ready for one in facts.nodes):
            return False
        if facts.server is not None or before.server is not None:
            if facts.server is None or facts.server_trouble:
                return False
            if facts.server.votes and not await _has_all(node, name):
                return False
    except (NoResponders, NoQuorum, Unknown):
        return False
    heard = {one.incarnation for one in node.members()}
    return all(one.incarnation in heard for one in facts.nodes)


async def _has_all(node: Node, name: str) -> bool:
    """Whether a host's server has everything that any of them had a moment before."""
    found = await ask_hosts(node.engine.bus, "replicas", Replicas)
    newest: dict[str, int] = {}
    for kept in found.values():
        for replica in kept.replicas if isinstance(kept, Replicas) else ():
            newest[replica.stream] = max(newest.get(replica.stream, 0), replica.last_sequence)
    own = await ask_host(node.engine.bus, name, "replicas", Replicas)
    has = {replica.stream: replica.last_sequence for replica in own.replicas}
    return bool(newest) and all(has.get(stream, 0) >= last for stream, last in newest.items())
