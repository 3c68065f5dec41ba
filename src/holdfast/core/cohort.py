"""The next step from the servers that vote to those that are to vote, one at a time, never through
a state without quorum.

A change of several voters at once could leave two majorities that do not meet. So one server comes
or goes per step, each step is decided anew from what is there, and nothing is remembered: whoever
starts again in the middle goes on.

What always holds: a step is only taken while a majority of the voters is there, and leaves a
majority there; a server that keeps replicas leaves only when others hold them, but for one that is
dead; before one leaves alive, one more than the copies need is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Situation(NamedTuple):
    """What is there. Servers have other names than their hosts.

    ``voters``: the servers that vote, and whether each is alive. ``keeps``: how many replicas each
    keeps. ``copies``: how many replicas each stream is to have. ``settled``: nothing is being
    copied, and every copy that can be there is complete. ``idle``: hosts whose server is set up to
    vote though it has no vote any more.
    """

    target: Sequence[str]
    servers: Mapping[str, str]
    voters: Mapping[str, bool]
    keeps: Mapping[str, int]
    copies: Mapping[str, int]
    settled: bool
    idle: Sequence[str] = ()


class Remove(NamedTuple):
    """Take the vote from a server."""

    server: str


class Evacuate(NamedTuple):
    """Have a server's replicas moved to others."""

    server: str


class Vote(NamedTuple):
    """Have a host's server vote."""

    host: str


class Copies(NamedTuple):
    """Give a stream another number of replicas."""

    stream: str
    copies: int


class StandDown(NamedTuple):
    """Have a host's server give up being set up to vote."""

    host: str


class Wait(NamedTuple):
    """Nothing can be done before this has changed."""

    reason: str


class Done(NamedTuple):
    """All is as it is to be."""


Step = Remove | Evacuate | Vote | Copies | StandDown | Wait | Done


def next_step(now: Situation) -> Step:
    """What to do now. See the module."""
    wanted = {now.servers[host] for host in now.target}
    alive = sum(now.voters.values())
    if alive * 2 <= len(now.voters):
        return Wait(f"{alive} of {len(now.voters)} servers that vote are there: no majority")
    for server in sorted(now.voters):
        if not now.voters[server] and server not in wanted:
            return Remove(server)
    if not now.settled:
        return Wait("replicas are being copied")
    size = len(now.target)
    for stream in sorted(now.copies):
        if now.copies[stream] > size:
            return Copies(stream, size)
    most = max(now.copies.values(), default=size)
    leaving = sorted(set(now.voters) - wanted)
    if leaving and len(now.voters) > most:
        if now.keeps.get(leaving[0], 0):
            return Evacuate(leaving[0])
        if (alive - 1) * 2 <= len(now.voters) - 1:
            return Wait(f"without {leaving[0]} there would be no majority")
        return Remove(leaving[0])
    for host in now.target:
        if now.servers[host] not in now.voters:
            return Vote(host)
    for stream in sorted(now.copies):
        if now.copies[stream] < size:
            return Copies(stream, size)
    for host in sorted(now.idle):
        if host not in now.target:
            return StandDown(host)
    return Done()
