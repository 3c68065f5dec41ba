"""Who is up, who is gone and since when, and whether that is a majority: it is known in any state
of the cluster.

The log needs a majority to answer, so a command that asks the log first says nothing at all when it
matters most. What hosts know of each other is in their memory: each remembers when it heard every
other host, and the newest record of who votes. All of them are asked at once over the bus, which
needs one server. What is missing in all answers is gone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import msgspec

from holdfast import limits
from holdfast.cluster.facts.cohort import Cohort
from holdfast.cluster.members.beats import BEAT_SUBJECT, Beat, beat_door
from holdfast.engines.base import Bus, Engine, Message
from holdfast.errors import HoldfastError, NoQuorum
from holdfast.host.rpc.facts import HostSight
from holdfast.host.rpc.service import hear_hosts

LOOK_SECONDS: Final = 2.5 * limits.BEAT_SECONDS
"""A look takes so long at most: every node that is there beats twice meanwhile, and hosts answer at
once."""

NODES_MAX: Final = 10_000
"""Nodes that one look shows."""


class HostPresence(msgspec.Struct):
    """A host that is expected. ``since``: when it was heard last, in seconds since 1970; None where
    it is up, or where nobody that is there ever heard it."""

    name: str
    up: bool
    member: bool
    """Whether it votes, or is about to."""
    since: float | None = None


class MissingNode(msgspec.Struct):
    """A node that a host is to run, and that does not serve. ``since``: in seconds since 1970."""

    name: str
    host: str
    since: float
    ends: int
    """How many of its processes ended since then."""
    why: str
    """How the last of them ended; empty where none did."""


class Presence(msgspec.Struct):
    """One look. ``hosts``: all that are expected. ``nodes``: the newest beat of every node that
    beats."""

    hosts: list[HostPresence] = []
    nodes: list[Beat] = []
    record: Cohort | None = None
    """Who votes, by the newest record that any host knows; None on servers that no host runs."""
    sequence: int = 0
    answered: list[str] = []
    """Hosts that answered."""
    founders: int = 0
    """How many hosts are to found the cluster, as those that answer were told."""
    missing: list[MissingNode] = []
    """Nodes that do not serve, as those hosts say that are to run them."""
    others: list[Cohort] = []
    """What hosts that answer take for the record of who votes, where it is another one."""

    @property
    def gone(self) -> list[HostPresence]:
        """Hosts that are expected and not there."""
        return [host for host in self.hosts if not host.up]

    @property
    def lost(self) -> bool:
        """Whether too few of the hosts that vote are there for a majority, for sure: by each record
        that a host knows."""
        if self.record is None or not self.answered:
            return False
        up = {host.name for host in self.hosts if host.up}
        return all(record.lost(up) for record in (self.record, *self.others))

    def text(self) -> str:
        """Who is up and who is gone, in a line."""
        up = [host.name for host in self.hosts if host.up]
        parts = [f"{len(up)} of {len(self.hosts)} hosts are up: {', '.join(up) or 'none'}"]
        return "; ".join([*parts, *map(gone_text, self.gone)])


def gone_text(host: HostPresence) -> str:
    """What is known of a host that is gone."""
    return f"{host.name} is gone " + (
        "(nobody up heard it)" if host.since is None else f"since {time_of_day(host.since)}"
    )


def missing_text(node: MissingNode) -> str:
    """What is known of a node that does not serve."""
    ends = f"it ended {node.ends} time{'s' if node.ends > 1 else ''}, the last time with {node.why}"
    return f"node {node.name} of host {node.host} is missing since {time_of_day(node.since)}: " + (
        ends if node.ends else "it has not come up yet"
    )


def time_of_day(at: float) -> str:
    """A time here, with the date where it is not of the last day; what is not a time as it is."""
    form = "%H:%M:%S" if abs(time.time() - at) < 86400 else "%Y-%m-%d %H:%M:%S"
    try:
        return time.strftime(form, time.localtime(at))
    except (ValueError, OverflowError, OSError):
        return f"at {at}"


async def look(bus: Bus, beats: bool = False, seconds: float = LOOK_SECONDS) -> Presence:
    """Ask all hosts, and with ``beats`` listen to all nodes as well. It needs no majority, and
    raises `Closed` alone.

    Without ``beats`` it returns as soon as all hosts answered that vote.
    """
    found: dict[str, Beat] = {}
    door = beat_door()

    def take(message: Message) -> None:
        if (beat := door.read(message)) is not None and (
            beat.incarnation in found or len(found) < NODES_MAX
        ):
            found[beat.incarnation] = beat

    if not beats:
        return await _ask(bus, seconds)
    subscription = await bus.subscribe(BEAT_SUBJECT, take)
    try:
        seen, _ = await asyncio.gather(_ask(bus, seconds), asyncio.sleep(seconds))
    finally:
        await subscription.close()
    seen.nodes = sorted(
        (one for one in found.values() if not one.leaving),
        key=lambda one: (one.started_at, one.name),
    )
    return seen


async def _ask(bus: Bus, seconds: float) -> Presence:
    started = time.time()
    sights: list[HostSight] = []

    def enough(host: str, value: HostSight | HoldfastError) -> bool:
        sights.append(
            value if isinstance(value, HostSight) else HostSight(host, started, 0.0, False)
        )
        return _record(sights)[0] is not None and _expected(sights) <= {
            sight.host for sight in sights
        }

    await hear_hosts(bus, "sight", HostSight, wait_seconds=seconds, enough=enough)
    record, sequence = _record(sights)
    answered = {sight.host for sight in sights}
    ago: dict[str, float] = {}
    for sight in sights:
        for host, since in sight.heard.items():
            ago[host] = min(since, ago.get(host, since))
    hosts = []
    for name in sorted(_expected(sights)):
        up = name in answered or ago.get(name, limits.SUSPECT_SECONDS) < limits.SUSPECT_SECONDS
        heard_at = None if up or name not in ago else started - ago[name]
        hosts.append(HostPresence(name, up, record is not None and record.votes(name), heard_at))
    founders = max((sight.founders for sight in sights), default=0)
    missing = [
        MissingNode(node.name, sight.host, started - node.seconds, node.ends, node.why)
        for sight in sorted(sights, key=lambda sight: sight.host)
        for node in sight.away
    ]
    others = [one.record for one in sights if one.record is not None and one.record != record]
    return Presence(hosts, [], record, sequence, sorted(answered), founders, missing, others)


def _record(sights: Sequence[HostSight]) -> tuple[Cohort | None, int]:
    """The newest record of the cohort that any of them knows, if it is not one host alone that
    knows of its hosts."""
    known = [
        (one.sequence, n, one.record) for n, one in enumerate(sights) if one.record is not None
    ]
    known.sort(key=lambda one: one[0], reverse=True)
    for sequence, number, record in known:
        if len(known) == 1 or not _strangers(record, [*sights[:number], *sights[number + 1 :]]):
            return record, sequence
    return (known[0][2], known[0][0]) if known else (None, 0)


def _strangers(record: Cohort, others: Sequence[HostSight]) -> set[str]:
    """Hosts of a record that none of the others is, heard, or has a record of."""
    known = {
        name
        for one in others
        for name in (one.host, *one.heard, *(one.record.hosts if one.record else ()))
    }
    return {*record.hosts, *record.members, *record.target} - known


def _expected(sights: Sequence[HostSight]) -> set[str]:
    """Hosts that are to be there: those that answer, and those of the newest record, or else those
    heard not long ago."""
    record, _ = _record(sights)
    found = {sight.host for sight in sights}
    if record is not None:
        return found | {*record.hosts}
    heard = (
        host
        for sight in sights
        for host, ago in sight.heard.items()
        if ago < limits.HOST_REMEMBERED_SECONDS
    )
    return found.union(heard)


def no_majority(seen: Presence) -> NoQuorum:
    """What is said where a majority is missing."""
    return NoQuorum(
        "no majority of the hosts that vote is there, so nothing can be read or written: "
        f"{seen.text()}"
    )


async def require_majority(engine: Engine) -> None:
    """Raises `NoQuorum` with who is gone, where too few hosts are there."""
    if engine.name == "local":
        return
    seen = await look(engine.bus)
    if seen.lost:
        raise no_majority(seen)


@asynccontextmanager
async def guarded(engine: Engine) -> AsyncIterator[None]:
    """End what runs inside with `NoQuorum`, which says who is gone, as soon as a majority is known
    to be missing.

    For what changes nothing: what it began is cancelled.
    """
    task = asyncio.current_task()
    assert task is not None
    lost: list[Presence] = []

    async def watch() -> None:
        while not (seen := await look(engine.bus)).lost:
            await asyncio.sleep(limits.BEAT_SECONDS)
        lost.append(seen)
        task.cancel()

    watching = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if not lost or task.uncancel() > 0:
            raise
        raise no_majority(lost[0]) from None
    except NoQuorum:
        if (seen := await look(engine.bus)).lost:
            raise no_majority(seen) from None
        raise
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
