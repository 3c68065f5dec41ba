"""The streams as their leaders describe them: which there are, who keeps copies, and how to move a
leadership."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any, Final

import msgspec

from holdfast.engines.base import Shown
from holdfast.engines.nats import api
from holdfast.engines.nats.connection import Connection
from holdfast.errors import NoQuorum, Unknown

OURS: Final = re.compile(r"g[0-9]+(reg|blobs|c[0-9]+)|hfhosts")
"""The names of Holdfast's own streams: the registry, the blobs, the cells, each behind its
generation; and who votes."""

_API_SECONDS: Final = 2.0
_CHANGE_SECONDS: Final = 5.0
_WORK_SECONDS: Final = (2.0, 2.0, 4.0, 4.0)
"""How long the attempts wait that ask for a list, which may be long."""

_PAGES_MAX: Final = 64


class Peer(msgspec.Struct):
    """A replica that does not lead, as the leader sees it. ``lag``: operations that it is
    behind."""

    name: str
    current: bool = False
    offline: bool = False
    lag: int = 0


class Group(msgspec.Struct):
    """Who keeps a stream. ``leader`` is empty while there is none."""

    leader: str = ""
    raft_group: str = ""
    replicas: list[Peer] = []


class State(msgspec.Struct):
    """What the leader has of it."""

    messages: int = 0
    bytes: int = 0
    first_seq: int = 0
    last_seq: int = 0
    num_deleted: int = 0
    subjects: dict[str, int] | None = None


class StreamFacts(msgspec.Struct):
    """A stream, as its leader answers."""

    config: dict[str, Any]
    state: State
    cluster: Group = msgspec.field(default_factory=Group)
    total: int = 0
    """How many subjects there are, where they were asked for: they come in pages."""

    @property
    def copies(self) -> int:
        """How many replicas it is to have."""
        return int(self.config.get("num_replicas", 1))

    def servers(self, only: str) -> list[str]:
        """The servers that keep it and answer; ``only`` is the name of a server that is alone."""
        up = [peer.name for peer in self.cluster.replicas if not peer.offline]
        return sorted([self.cluster.leader or only, *up])


class _Names(msgspec.Struct):
    streams: list[str] | None = None
    total: int = 0


async def names(connection: Connection) -> list[str]:
    """Holdfast's own streams. Raises `NoQuorum`, `Unknown`."""
    found: list[str] = []
    for _ in range(_PAGES_MAX):
        answer = await api.call(connection, "STREAM.NAMES", {"offset": len(found)}, _API_SECONDS)
        page = msgspec.json.decode(answer, type=_Names)
        found += page.streams or []
        if not page.streams or len(found) >= page.total:
            break
    return sorted(name for name in found if OURS.fullmatch(name))


async def info(connection: Connection, stream: str) -> StreamFacts:
    """One stream. Raises `InvalidName` where there is none, `NoQuorum` where it has no leader,
    `Unknown`."""
    return msgspec.json.decode(
        await api.call(connection, f"STREAM.INFO.{stream}", None, _API_SECONDS), type=StreamFacts
    )


async def subjects(connection: Connection, stream: str, wanted: str) -> Shown:
    """The subjects of a stream that match a filter, as its leader shows them.

    Raises `InvalidName`, `NoQuorum` also where the leader changed meanwhile, `Unknown`.
    """
    found: set[str] = set()
    leader: str | None = None
    for _ in range(_PAGES_MAX):
        body = {"subjects_filter": wanted, "offset": len(found)}
        facts = msgspec.json.decode(
            await _patient(connection, f"STREAM.INFO.{stream}", body), type=StreamFacts
        )
        if leader not in (None, facts.cluster.leader):
            raise NoQuorum(f"{stream} got another leader")
        leader = facts.cluster.leader
        found.update(facts.state.subjects or ())
        if not facts.state.subjects or len(found) >= facts.total:
            break
    return Shown(leader or "", found)


async def _patient(connection: Connection, question: str, body: Any) -> bytes:
    """Ask what may be much work for a server, again where no answer comes. Raises what `api.call`
    does.

    A server that is busy also answers those whom nobody waits for any more, so the later attempts
    wait longer; a server that died answers none, so they do not wait much longer.
    """
    for seconds in _WORK_SECONDS[:-1]:
        with suppress(Unknown):
            return await api.call(connection, question, body, seconds)
    return await api.call(connection, question, body, _WORK_SECONDS[-1])


async def move_leader(connection: Connection, stream: str, server: str) -> None:
    """Have a server lead a stream. Raises `NoQuorum`, `Unknown`, `Never`."""
    body = {"placement": {"preferred": server}}
    await api.call(connection, f"STREAM.LEADER.STEPDOWN.{stream}", body, _API_SECONDS)


class _Config(msgspec.Struct):
    config: dict[str, Any]


async def set_copies(connection: Connection, stream: str, copies: int) -> None:
    """Have a stream keep so many replicas; return when that has begun. Raises `InvalidName`,
    `NoQuorum`, `Unknown`, `Never`."""
    found = await api.call(connection, f"STREAM.INFO.{stream}", None, _CHANGE_SECONDS)
    config = msgspec.json.decode(found, type=_Config).config
    if config["num_replicas"] != copies:
        config["num_replicas"] = copies
        await api.call(connection, f"STREAM.UPDATE.{stream}", config, _CHANGE_SECONDS)
