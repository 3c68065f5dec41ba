"""What a host asks its own nats-server, as its operator: what it keeps, who votes, who leads; and
the changes of these.

The system account answers it, over a connection of its own. That connection goes to the own server
and to no other one that it hears of: the password is this host's, and the questions are about this
very server. Requests that change something are carried to whichever server leads.
"""

from __future__ import annotations

import errno
import os
import ssl
from contextlib import suppress
from hashlib import sha256
from typing import Annotated, Any, Final, TypeVar

import msgspec

from holdfast import limits
from holdfast.cluster.door import Count, Long, Small, Text, Version
from holdfast.engines.nats import api
from holdfast.engines.nats.certificates import Certificates
from holdfast.engines.nats.connection import Connection
from holdfast.errors import Closed, HoldfastError, NoQuorum, NoResponders, Unknown
from holdfast.host.server.nats_config import SYSTEM_USER
from holdfast.host.state import ACCOUNT

T = TypeVar("T")

_ANSWER_SECONDS: Final = 2.0
_REMOVE_SECONDS: Final = 15.0
_CHANGE_UNDER_WAY: Final = 10202
_WRITE_ERROR: Final = " write error: "
_OF_THE_DISK: Final = tuple(
    os.strerror(number).lower()
    for number in (
        errno.EACCES,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EIO,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENODEV,
        errno.ENOSPC,
        errno.ENXIO,
        errno.EPERM,
        errno.EROFS,
    )
)
"""How the system's refusals of a write end, in Python's words and in Go's."""

_DIGITS: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def peer_id(server: str) -> str:
    """What the engine calls a server of this name in its groups, also one that it has never seen
    alive."""
    return "".join(_DIGITS[byte % len(_DIGITS)] for byte in sha256(server.encode()).digest()[:8])


def write_error_in(troubles: list[str]) -> str:
    """The refusal of a write that one of these tells of, empty for none: what failed, and how the
    system refused it.

    Other things than the disk may end in what the server calls a write error; a start would not
    mend those.
    """
    for trouble in troubles:
        _, found, cause = trouble.partition(_WRITE_ERROR)
        if found and cause.lower().endswith(_OF_THE_DISK):
            return cause
    return ""


class Peer(msgspec.Struct):
    """A server of a group, as another one sees it. ``active``: nanoseconds since it was heard.
    ``lag``: entries behind.

    ``current`` says that it follows; whether it has everything shows only in the sequences.
    """

    name: Text
    current: bool = False
    offline: bool = False
    active: int = 0
    lag: int = 0
    peer: Text = ""
    """The name that the engine itself gives it."""

    def is_heard(self) -> bool:
        """Whether it was heard lately. (``offline`` shows only after minutes.)"""
        return 0 < self.active < limits.TAKEOVER_SECONDS * 1_000_000_000 and not self.offline


Peers = Annotated[list[Peer], msgspec.Meta(max_length=4096)]


class Group(msgspec.Struct):
    """A Raft group as one server sees it: its leader, empty for none, and the peers other than the
    server itself."""

    leader: str = ""
    replicas: list[Peer] = []
    cluster_size: int = 0
    desired: dict[str, Any] | None = None


class Replica(msgspec.Struct):
    """A server's own copy of a stream."""

    stream: Text
    messages: Count
    bytes: Count
    first_sequence: Count
    last_sequence: Count
    deleted: Count
    leader: Text
    """The server that leads the stream, empty where this one knows of none."""
    leads: bool
    peers: Peers
    """The others that keep it. Only where ``leads`` are they known exactly."""
    copies: Small = 1
    """How many there are to be."""
    moving: bool = False
    """Whether the servers are still about to change who keeps it."""


class ServerFacts(msgspec.Struct):
    """A nats-server as it describes itself. ``votes``: whether it keeps replicas (it runs
    JetStream)."""

    name: Text
    version: Version
    votes: bool
    memory_bytes: Count
    connections: Small
    routes: Small
    url: Long = ""
    pid: Small = 0
    sync_always: bool = False
    """Whether it writes through to the disk before it acknowledges."""


class Voters(msgspec.Struct):
    """Those who vote, the server that answers first. ``leader``: the one that leads them, empty for
    none."""

    leader: Text
    peers: Peers


class _State(msgspec.Struct):
    messages: int = 0
    bytes: int = 0
    first_seq: int = 0
    last_seq: int = 0
    num_deleted: int = 0


class _Config(msgspec.Struct):
    num_replicas: int = 1


class _Stream(msgspec.Struct):
    name: str
    state: _State = msgspec.field(default_factory=_State)
    cluster: Group | None = None
    config: _Config = msgspec.field(default_factory=lambda: _Config())


class _Account(msgspec.Struct):
    name: str
    stream_detail: list[_Stream] = []


class _JetStream(msgspec.Struct):
    account_details: list[_Account] = []
    meta_cluster: Group | None = None
    disabled: bool = False


class _Server(msgspec.Struct):
    server_name: str
    version: str
    mem: int = 0
    connections: int = 0
    routes: int = 0
    jetstream: dict[str, Any] = {}


class _Trouble(msgspec.Struct):
    error: str = ""


class _Health(msgspec.Struct):
    errors: list[_Trouble] = []


class _From(msgspec.Struct):
    name: str = ""


class _Answer(msgspec.Struct):
    data: msgspec.Raw = msgspec.Raw()
    error: dict[str, Any] | None = None
    server: _From = msgspec.field(default_factory=_From)


class _OwnServer(Connection):
    """A connection that hears of other servers, and stays with its own."""

    follows_others = False


class ServerAdmin:
    """See the module. Every question raises `NoQuorum` where the server is not reached or nobody
    leads, and `Unknown`."""

    def __init__(self, url: str, password: str, certificates: Certificates) -> None:
        self._url = url
        self._password = password
        self._certificates = certificates
        self._connection: Connection | None = None

    async def open(self) -> None:
        """Connect. Raises `NoQuorum`, `ConfigError`."""
        connection = _OwnServer("the host's connection to its own server")
        await connection.open(
            [self._url], self._certificates, SYSTEM_USER, self._password, limits.JOIN_SECONDS
        )
        self._connection = connection

    async def close(self) -> None:
        """Let go of the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.shut()

    def certificate_expires(self) -> float:
        """When the certificate that the server shows ends, in seconds since 1970; 0 without TLS."""
        writer = getattr(getattr(self._connection, "_transport", None), "_io_writer", None)
        shown = writer.get_extra_info("peercert") if writer is not None else None
        return ssl.cert_time_to_seconds(shown["notAfter"]) if shown else 0.0

    # Asking ---------------------------------------------------------------------------------------

    async def _ask(
        self, subject: str, body: Any, timeout_seconds: float = _ANSWER_SECONDS
    ) -> bytes:
        if self._connection is None:
            raise Closed("the connection to the own server was closed")
        payload = b"" if body is None else msgspec.json.encode(body)
        try:
            _, answer = await self._connection.ask(subject, payload, timeout_seconds)
        except NoResponders:
            raise NoQuorum(f"{subject}: nobody answers at this moment") from None
        return answer

    async def _own(self, what: str, body: Any, kind: type[T]) -> T:
        """Ask this very server."""
        server = (
            ""
            if self._connection is None
            else str(self._connection._server_info.get("server_id", ""))
        )
        return _read((await self._answer(server, what, body)).data, kind)

    async def _answer(self, server: str, what: str, body: Any) -> _Answer:
        answer = _read(await self._ask(f"$SYS.REQ.SERVER.{server}.{what}", body), _Answer)
        if answer.error is not None:
            raise NoQuorum(f"{what}: {answer.error.get('description', answer.error)}")
        return answer

    def server_name(self) -> str:
        """The server's name in the engine."""
        return (
            ""
            if self._connection is None
            else str(self._connection._server_info.get("server_name", ""))
        )

    async def facts(self) -> ServerFacts:
        """The server's facts."""
        found = await self._own("VARZ", None, _Server)
        config = found.jetstream.get("config")
        made = ServerFacts(
            found.server_name,
            found.version,
            bool(config),
            found.mem,
            found.connections,
            found.routes,
            self._url,
        )
        made.sync_always = bool(config and config.get("sync_always"))
        return made

    async def replicas(self) -> list[Replica]:
        """What this server keeps of each stream. It may keep none."""
        found = await self._own(
            "JSZ", {"accounts": True, "streams": True, "config": True}, _JetStream
        )
        server = self.server_name()
        streams = [
            one
            for account in found.account_details
            if account.name == ACCOUNT
            for one in account.stream_detail
        ]
        return [_replica(stream, stream.cluster or Group(server), server) for stream in streams]

    async def voters(self) -> Voters:
        """The servers that vote, as this one sees it: a new one may not know yet who voted before
        it came."""
        return _voters(self.server_name(), await self._own("JSZ", {}, _JetStream))

    async def voters_as_led(self) -> Voters:
        """The servers that vote, as the one that leads them sees it."""
        answer = await self._answer("PING", "JSZ", {"leader_only": True})
        return _voters(answer.server.name, _read(answer.data, _JetStream))

    async def evacuate(self, server: str) -> None:
        """Have the replicas that a server keeps moved to others. It returns when that has begun.

        Raises `Never` where that server does not vote.
        """
        await self._command(
            "SERVER.EVACUATE", {"peer": server, "peer_id": peer_id(server)}, _ANSWER_SECONDS
        )

    async def remove(self, server: str) -> None:
        """Take the vote and the replicas from a server, for good: that name cannot come back for
        minutes.

        Raises `Never` where it does not vote, `NoQuorum` where another removal is under way.
        """
        await self.remove_peer(peer_id(server))

    async def remove_peer(self, peer: str) -> None:
        """The same, by the name that the engine itself gives a server."""
        await self._command("SERVER.REMOVE", {"peer_id": peer}, _REMOVE_SECONDS)

    async def lead_elsewhere(self, server: str) -> None:
        """Have ``server`` lead those who vote."""
        await self._command(
            "META.LEADER.STEPDOWN", {"placement": {"preferred": server}}, _ANSWER_SECONDS
        )

    async def _command(self, subject: str, body: dict[str, Any], timeout_seconds: float) -> None:
        answer = await self._ask(f"$JS.API.{subject}", body, timeout_seconds)
        error = _read(answer, api.Response).error if answer else None
        if error is not None and error.err_code == _CHANGE_UNDER_WAY:
            raise NoQuorum(f"{subject}: {error.description}")
        if error is not None:
            raise api.error_of(error, subject)

    async def health(self) -> str:
        """Empty where the server finds itself healthy, else why not. It does not see every
        trouble."""
        with suppress(NoQuorum):
            found = await self._own("HEALTHZ", None, dict[str, Any])
            return (
                ""
                if found.get("status") == "ok"
                else str(found.get("error") or found.get("status"))
            )
        return "it does not say"

    async def write_error(self) -> str:
        """Why the server takes no writes of some stream any more, empty where it does not say so.

        After one write that the system refused, a stream or group is given up until the server is
        started again. Only where the disk is full does the server say so to its clients as well.
        """
        try:
            found = await self._own("HEALTHZ", {"details": True}, _Health)
        except HoldfastError:
            return ""
        return write_error_in([one.error for one in found.errors])


def _read(answer: bytes | msgspec.Raw, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(answer, type=kind)
    except msgspec.MsgspecError as error:
        raise Unknown(f"a server answers what this version cannot read: {error}") from None


def _voters(server: str, found: _JetStream) -> Voters:
    if found.meta_cluster is None:
        return Voters("", [])
    own = Peer(server, current=True, peer=peer_id(server))
    others = [peer for peer in found.meta_cluster.replicas if peer.name != server]
    return Voters(found.meta_cluster.leader, [own, *others])


def _replica(stream: _Stream, group: Group, server: str) -> Replica:
    state = stream.state
    return Replica(
        stream.name,
        state.messages,
        state.bytes,
        state.first_seq,
        state.last_seq,
        state.num_deleted,
        group.leader,
        group.leader == server,
        group.replicas,
        stream.config.num_replicas,
        group.desired is not None,
    )
