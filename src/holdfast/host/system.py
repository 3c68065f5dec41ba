"""What a host asks its own nats-server, as its operator: what it keeps, who votes, who leads; and the changes of these.

The system account answers it, over a connection of its own. That connection goes to the own server and to no other one
that it hears of: the password is this host's, and the questions are about this very server. Requests that change
something are carried to whichever server leads.
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from typing import Any, Final, TypeVar

import msgspec

from holdfast import limits
from holdfast.engines.nats.connection import Connection
from holdfast.errors import Closed, NoQuorum, NoResponders
from holdfast.host.nats_config import ACCOUNT, SYSTEM_USER

T = TypeVar("T")

_ANSWER_SECONDS: Final = 2.0


class Peer(msgspec.Struct):
    """A server of a group, as another one sees it. ``active``: nanoseconds since it was heard. ``lag``: entries behind.

    ``current`` says that it follows; whether it has everything shows only in the sequences.
    """

    name: str
    current: bool = False
    offline: bool = False
    active: int = 0
    lag: int = 0
    peer: str = ""
    """The name that the engine itself gives it."""


class Group(msgspec.Struct):
    """A Raft group as one server sees it: its leader, empty for none, and the peers other than the server itself."""

    leader: str = ""
    replicas: list[Peer] = []
    cluster_size: int = 0


class Replica(msgspec.Struct):
    """A server's own copy of a stream."""

    stream: str
    messages: int
    bytes: int
    first_sequence: int
    last_sequence: int
    deleted: int
    leader: str
    """The server that leads the stream, empty where this one knows of none."""
    leads: bool
    peers: list[Peer]
    """The others that keep it. Only where ``leads`` are they known exactly."""


class ServerFacts(msgspec.Struct):
    """A nats-server as it describes itself. ``votes``: whether it keeps replicas (it runs JetStream)."""

    name: str
    version: str
    votes: bool
    memory_bytes: int
    connections: int
    routes: int
    url: str = ""
    pid: int = 0


class _State(msgspec.Struct):
    messages: int = 0
    bytes: int = 0
    first_seq: int = 0
    last_seq: int = 0
    num_deleted: int = 0


class _Stream(msgspec.Struct):
    name: str
    state: _State = msgspec.field(default_factory=_State)
    cluster: Group | None = None


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


class _Answer(msgspec.Struct):
    data: msgspec.Raw = msgspec.Raw()
    error: dict[str, Any] | None = None


class _OwnServer(Connection):
    """A connection that hears of other servers, and stays with its own."""

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        await super()._process_info({**info, "connect_urls": []}, initial_connection)


class System:
    """See the module. Every question raises `NoQuorum` where the server is not reached or nobody leads, and `Unknown`."""

    def __init__(self, url: str, password: str, tls: ssl.SSLContext | None) -> None:
        self._url = url
        self._password = password
        self._tls = tls
        self._connection: Connection | None = None

    async def open(self) -> None:
        """Connect. Raises `NoQuorum`, `ConfigError`."""
        connection = _OwnServer()
        await connection.open([self._url], self._tls, SYSTEM_USER, self._password, limits.CONNECT_SECONDS)
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

    # Asking --------------------------------------------------------------------------------------------------------

    async def _ask(self, subject: str, body: Any, timeout_seconds: float = _ANSWER_SECONDS) -> bytes:
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
        server = "" if self._connection is None else str(self._connection._server_info.get("server_id", ""))
        answer = msgspec.json.decode(await self._ask(f"$SYS.REQ.SERVER.{server}.{what}", body), type=_Answer)
        if answer.error is not None:
            raise NoQuorum(f"{what}: {answer.error.get('description', answer.error)}")
        return msgspec.json.decode(answer.data, type=kind)

    def server_name(self) -> str:
        """The server's name in the engine."""
        return "" if self._connection is None else str(self._connection._server_info.get("server_name", ""))

    async def facts(self) -> ServerFacts:
        """The server's facts."""
        found = await self._own("VARZ", None, _Server)
        votes = bool(found.jetstream.get("config"))
        return ServerFacts(
            found.server_name, found.version, votes, found.mem, found.connections, found.routes, self._url
        )

    async def replicas(self) -> list[Replica]:
        """What this server keeps of each stream. It may keep none."""
        found = await self._own("JSZ", {"accounts": True, "streams": True}, _JetStream)
        server = self.server_name()
        streams = [one for account in found.account_details if account.name == ACCOUNT for one in account.stream_detail]
        return [_replica(stream, stream.cluster or Group(server), server) for stream in streams]

    async def health(self) -> str:
        """Empty where the server finds itself healthy, else why not. It does not see every trouble."""
        with suppress(NoQuorum):
            found = await self._own("HEALTHZ", None, dict[str, Any])
            return "" if found.get("status") == "ok" else str(found.get("error") or found.get("status"))
        return "it does not say"


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
    )
