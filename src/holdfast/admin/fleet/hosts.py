"""The hosts of a cluster as an operator sees them: what the record knows, what they say, what their
servers keep."""

from __future__ import annotations

import asyncio
import time
from typing import Final

import msgspec

from holdfast import limits
from holdfast.admin import presence
from holdfast.admin.presence import HostPresence, Presence
from holdfast.cluster.facts import cohort
from holdfast.cluster.facts.cohort import Cohort
from holdfast.engines.base import Engine
from holdfast.errors import HoldfastError, NoQuorum, NotFound
from holdfast.host.rpc.facts import HeardAgo, HostFacts, Replicas
from holdfast.host.rpc.service import ask_host, ask_hosts
from holdfast.host.server.server_admin import Replica, Voters

_WAIT_SECONDS: Final = 1.5
NOT_OURS: Final = "this cluster has no record of a cohort: its servers are not run by `holdfast up`"

MEMBER: Final = "member"
JOINED: Final = "joined"
COMING: Final = "coming"
GONE: Final = "gone"


class View(msgspec.Struct):
    """One look at all hosts. ``alive``: the servers that vote, and whether their hosts answer or
    the one that leads hears them."""

    record: Cohort
    sequence: int
    facts: dict[str, HostFacts]
    kept: dict[str, Replicas]
    """By host."""
    leader: str
    alive: dict[str, bool]
    current: dict[str, bool]

    def host_of(self, server: str) -> str:
        """The host whose server it is. Raises `NoQuorum` where that one does not answer."""
        for host, facts in self.facts.items():
            if facts.entry is not None and facts.entry.server == server:
                return host
        raise NoQuorum(f"the host of {server or 'the server that leads'} does not answer")

    @property
    def leading(self) -> dict[str, Replica]:
        """Each stream as its leader has it."""
        return {
            replica.stream: replica
            for one in self.kept.values()
            for replica in one.replicas
            if replica.leads
        }

    def streams(self) -> set[str]:
        """All that any server keeps."""
        return {replica.stream for one in self.kept.values() for replica in one.replicas}

    def keeps(self) -> dict[str, int]:
        """How many replicas each server keeps, as the streams' leaders have it."""
        counts: dict[str, int] = {}
        for replica in self.leading.values():
            for server in (replica.leader, *(peer.name for peer in replica.peers)):
                counts[server] = counts.get(server, 0) + 1
        return counts

    def complete(self, replica: Replica) -> bool:
        """Whether all followers of a leader's replica are there, and have what it had when all were
        asked.

        ``current`` alone shows before a new copy has everything, so the sequences are compared.
        """
        wanted = min(replica.copies, sum(self.alive.values()) or 1)
        if replica.moving or len(replica.peers) + 1 < wanted:
            return False
        last = {
            one.server: copy.last_sequence
            for one in self.kept.values()
            for copy in one.replicas
            if copy.stream == replica.stream
        }
        return all(
            peer.current
            and not peer.offline
            and last.get(peer.name, -1) >= replica.last_sequence - _BEHIND_MAX
            for peer in replica.peers
        )

    def settled(self) -> bool:
        """Whether every stream has a leader, and every copy of it that can be there."""
        leading = self.leading
        voting = all(
            self.current.get(server, False) for server, alive in self.alive.items() if alive
        )
        return (
            voting and self.streams() <= set(leading) and all(map(self.complete, leading.values()))
        )

    @property
    def progress(self) -> object:
        """Something that changes while there is any."""
        kept = {
            one.server: sum(copy.messages for copy in one.replicas) for one in self.kept.values()
        }
        return (self.sequence, sorted(self.alive.items()), sorted(kept.items()))


_BEHIND_MAX: Final = 2000
"""Records that a follower may lack at the moment of the look, under load: it was asked at another
moment."""


async def look(engine: Engine) -> View:
    """Look at all hosts. Raises `NotFound` where the servers are not Holdfast's own, `NoQuorum`."""
    record, sequence = await cohort.read(engine, cohort.CELL)
    if record is None:
        raise NotFound(NOT_OURS)
    view = await _gather(engine, record, sequence, sorted(record.hosts))
    voters = await _voters(engine, view)
    view.leader = voters.leader
    answering = {
        one.entry.server
        for one in view.facts.values()
        if one.entry is not None and one.server is not None
    }
    view.alive = {peer.name: peer.name in answering or peer.is_heard() for peer in voters.peers}
    view.current = {peer.name: peer.current for peer in voters.peers}
    return view


async def _gather(engine: Engine, record: Cohort, sequence: int, expected: list[str]) -> View:
    """What the hosts say of themselves and of what they keep; it does not wait for more than those
    that are expected."""
    answers, kept = await asyncio.gather(
        ask_hosts(engine.bus, "facts", HostFacts, expected=expected, wait_seconds=_WAIT_SECONDS),
        ask_hosts(engine.bus, "replicas", Replicas, expected=expected, wait_seconds=_WAIT_SECONDS),
    )
    facts = {host: one for host, one in answers.items() if isinstance(one, HostFacts)}
    return View(
        record,
        sequence,
        facts,
        {h: one for h, one in kept.items() if isinstance(one, Replicas)},
        "",
        {},
        {},
    )


async def _voters(engine: Engine, view: View) -> Voters:
    """As the server that leads them sees them; else as any sees them."""
    names = {entry.server: host for host, entry in view.record.hosts.items()}
    names |= {one.entry.server: host for host, one in view.facts.items() if one.entry is not None}
    found = Voters("", [])
    for host, facts in sorted(view.facts.items()):
        if not facts.votes:
            continue
        try:
            found = await ask_host(engine.bus, host, "voters", Voters)
            if found.leader and found.leader != found.peers[0].name:
                found = await ask_host(engine.bus, names[found.leader], "voters", Voters)
            if found.leader == found.peers[0].name:
                break
        except (HoldfastError, KeyError, IndexError):
            continue
    return found


async def alive_hosts(engine: Engine, view: View) -> set[str]:
    """The hosts that answer, or that any of these heard within the last seconds."""
    seen = await last_seen(engine)
    return set(view.facts) | {host for host, ago in seen.items() if ago < limits.TAKEOVER_SECONDS}


async def last_seen(engine: Engine) -> dict[str, float]:
    """How many seconds ago any host that is there heard each host."""
    found: dict[str, float] = {}
    for one in (await ask_hosts(engine.bus, "heard", HeardAgo, wait_seconds=0.5)).values():
        if isinstance(one, dict):
            for host, ago in one.items():
                found[host] = min(ago, found.get(host, ago))
    return found


class HostView(msgspec.Struct):
    """One host. Sizes in bytes, times in seconds; ``seen_ago`` is None where nobody that is there
    ever heard it."""

    name: str
    state: str
    """``member`` (it votes), ``joined`` (without a vote), ``coming`` (it is to vote), ``gone``."""
    server: str
    url: str
    nodes: int
    nodes_ready: int
    replicas: int
    behind: int
    """Replicas that lack something, of the streams whose leaders answer."""
    disk_bytes: int
    disk_free_bytes: int
    seen_ago: float | None
    clock_ahead: float
    """Of the clock of whoever asks, the time that the answer takes included."""
    trouble: str
    member: bool


async def list_hosts(engine: Engine) -> tuple[list[HostView], Presence]:
    """All hosts, those that are gone included, with or without a majority; and who is up.

    Raises `NotFound` where the servers are not Holdfast's own.
    """
    seen = await presence.look(engine.bus)
    if seen.record is None:
        raise NotFound(NOT_OURS)
    view = await _gather(engine, seen.record, seen.sequence, seen.answered)
    return [_host_view(view, host) for host in seen.hosts], seen


def _host_view(view: View, host: HostPresence) -> HostView:
    name = host.name
    facts = view.facts.get(name)
    entry = view.record.hosts.get(name) or (facts.entry if facts is not None else None)
    member = name in view.record.members
    state = (
        GONE
        if not host.up
        else MEMBER
        if member
        else COMING
        if name in view.record.target
        else JOINED
    )
    server = entry.server if entry is not None else ""
    keeping = [
        (leading, peer)
        for leading in view.leading.values()
        for peer in leading.peers
        if peer.name == server
    ]
    leads = sum(leading.leader == server for leading in view.leading.values())
    behind = sum(facts is None or not peer.current for _, peer in keeping)
    return HostView(
        name,
        state,
        server,
        entry.url if entry is not None else "",
        len(facts.nodes) if facts is not None else 0,
        sum(node.ready and node.pid > 0 for node in facts.nodes) if facts is not None else 0,
        leads + len(keeping),
        behind,
        facts.disk_bytes if facts is not None else 0,
        facts.disk_free_bytes if facts is not None else 0,
        0.0 if host.up else None if host.since is None else max(time.time() - host.since, 0.0),
        facts.now - time.time() if facts is not None else 0.0,
        (facts.seat_trouble or facts.server_trouble)
        if facts is not None
        else "it does not answer"
        if host.up
        else "",
        member,
    )
