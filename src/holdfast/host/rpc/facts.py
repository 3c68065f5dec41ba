"""What a host says of itself: its processes, its disk, its clock, its server and what that keeps.

Whoever is on the bus can answer in a host's place, so each field says what it may be
(`holdfast.cluster.door`).
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from holdfast import limits
from holdfast.cluster.door import Ago, Count, Long, Moment, Name, Names, Small, Span, Text, Version
from holdfast.cluster.facts.cohort import Cohort, HostEntry
from holdfast.host.server.server_admin import Replica, ServerFacts

Mode = Annotated[int, msgspec.Meta(ge=0, le=0o7777)]
HeardAgo = Annotated[dict[Name, Ago], msgspec.Meta(max_length=limits.HOSTS_HEARD_MAX)]
"""How many seconds ago a host heard each other one."""


class NodeFacts(msgspec.Struct):
    """One of a host's node processes. ``pid`` is 0 while it does not run; ``error``: of its last
    end."""

    name: Name
    incarnation: Text
    pid: Small
    ready: bool
    starts: Count
    error: Long = ""
    last_end: Long = ""
    """How its last process ended."""
    ends_recent: Count = 0
    """How many of its processes ended in the last ten minutes."""


class Certificate(msgspec.Struct):
    """A certificate that is in use. ``expires_at``: seconds since 1970."""

    path: Long
    expires_at: Span


class HostFacts(msgspec.Struct):
    """A host as it describes itself. Sizes in bytes, times in seconds since 1970 by its own
    clock."""

    host: Name
    pid: Small
    version: Version
    started_at: Moment
    now: Moment
    cohort: Names
    """Those who vote, as HOST:PORT for other servers, as this host was told; empty for a single
    server."""
    nodes: Annotated[list[NodeFacts], msgspec.Meta(max_length=4096)] = []
    server: ServerFacts | None = None
    """None where the servers are somebody else's, or while the own one does not answer."""
    server_pid: Small = 0
    server_starts: Count = 0
    server_trouble: Long = ""
    """What is wrong with the server, as far as it or its host knows; empty for nothing."""
    directory: Long = ""
    disk_bytes: Count = 0
    disk_free_bytes: Count = 0
    config_mode: Mode = 0
    """The permissions of the settings file, which has passwords in it."""
    certificates: Annotated[list[Certificate], msgspec.Meta(max_length=64)] = []
    entry: HostEntry | None = None
    """As the cohort's record is to have it; None where the servers are somebody else's."""
    votes: bool = False
    """Whether its server is set up to vote."""
    seat_trouble: Long = ""
    """Why its server is not as the cohort's record says; empty where it is."""
    modes: Annotated[dict[Long, Mode], msgspec.Meta(max_length=64)] = {}
    """The permissions of its directory, its settings and its key, by path."""


class NodeAway(msgspec.Struct):
    """A node that its host is to run, and that does not serve, or does so for moments only."""

    name: Name
    seconds: Ago
    """For how long."""
    ends: Count
    """How many of its processes ended meanwhile."""
    why: Long
    """How the last one ended, cut; empty where none ended meanwhile."""


class HostSight(msgspec.Struct):
    """Who is there, as one host has it in memory: it answers at once, with or without a
    majority."""

    host: Name
    now: Moment
    """Seconds since 1970, by its own clock."""
    up_seconds: Span
    """For how long its process has listened to the others."""
    votes: bool
    """Whether its server runs, keeps copies, and votes."""
    heard: HeardAgo = {}
    record: Cohort | None = None
    """The newest record of the cohort that it ever saw."""
    sequence: Count = 0
    """Of that record."""
    founders: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    """How many hosts found the cluster, as it was told; 0 for one that joined, or that runs no
    server."""
    away: Annotated[list[NodeAway], msgspec.Meta(max_length=64)] = []
    """Its nodes that are away, the first 64 of them."""


class Replicas(msgspec.Struct):
    """What one server keeps. ``server``: its name in the engine."""

    server: Text
    replicas: Annotated[list[Replica], msgspec.Meta(max_length=4096)]
