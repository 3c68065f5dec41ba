"""What a host says of itself: its processes, its disk, its clock, its server and what that keeps."""

from __future__ import annotations

import msgspec

from holdfast.cluster.cohort import Cohort, HostEntry
from holdfast.host.system import Replica, ServerFacts


class NodeFacts(msgspec.Struct):
    """One of a host's node processes. ``pid`` is 0 while it does not run; ``error``: of its last end."""

    name: str
    incarnation: str
    pid: int
    ready: bool
    starts: int
    error: str = ""
    last_end: str = ""
    """How its last process ended."""
    ends_recent: int = 0
    """How many of its processes ended in the last ten minutes."""


class Certificate(msgspec.Struct):
    """A certificate that is in use. ``expires_at``: seconds since 1970."""

    path: str
    expires_at: float


class HostFacts(msgspec.Struct):
    """A host as it describes itself. Sizes in bytes, times in seconds since 1970 by its own clock."""

    host: str
    pid: int
    version: str
    started_at: float
    now: float
    cohort: list[str]
    """Those who vote, as HOST:PORT for other servers, as this host was told; empty for a single server."""
    nodes: list[NodeFacts] = []
    server: ServerFacts | None = None
    """None where the servers are somebody else's, or while the own one does not answer."""
    server_pid: int = 0
    server_starts: int = 0
    server_trouble: str = ""
    """What is wrong with the server, as far as it or its host knows; empty for nothing."""
    directory: str = ""
    disk_bytes: int = 0
    disk_free_bytes: int = 0
    config_mode: int = 0
    """The permissions of the settings file, which has passwords in it."""
    certificates: list[Certificate] = []
    entry: HostEntry | None = None
    """As the cohort's record is to have it; None where the servers are somebody else's."""
    votes: bool = False
    """Whether its server is set up to vote."""
    seat_trouble: str = ""
    """Why its server is not as the cohort's record says; empty where it is."""
    modes: dict[str, int] = {}
    """The permissions of its directory, its settings and its key, by path."""


class NodeAway(msgspec.Struct):
    """A node that its host is to run, and that does not serve, or does so for moments only."""

    name: str
    seconds: float
    """For how long."""
    ends: int
    """How many of its processes ended meanwhile."""
    why: str
    """How the last one ended, cut; empty where none ended meanwhile."""


class HostSight(msgspec.Struct):
    """Who is there, as one host has it in memory: it answers at once, with or without a majority."""

    host: str
    now: float
    """Seconds since 1970, by its own clock."""
    up_seconds: float
    """For how long its process has listened to the others."""
    votes: bool
    """Whether its server runs, keeps copies, and votes."""
    heard: dict[str, float] = {}
    """How many seconds ago it heard each other host."""
    record: Cohort | None = None
    """The newest record of the cohort that it ever saw."""
    sequence: int = 0
    """Of that record."""
    founders: int = 0
    """How many hosts found the cluster, as it was told; 0 for one that joined, or that runs no server."""
    away: list[NodeAway] = []
    """Its nodes that are away, the first 64 of them."""


class Replicas(msgspec.Struct):
    """What one server keeps. ``server``: its name in the engine."""

    server: str
    replicas: list[Replica]
