"""The engine on a cluster of nats-servers: cells are replicated streams, written with fsync before
the acknowledgement."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec

from holdfast import chance, limits
from holdfast.core import backoff
from holdfast.engines import checks
from holdfast.engines.base import Engine
from holdfast.engines.nats import api
from holdfast.engines.nats.blobs import NatsBlobs
from holdfast.engines.nats.bus import NatsBus
from holdfast.engines.nats.certificates import Certificates
from holdfast.engines.nats.connection import Connection
from holdfast.engines.nats.log import NatsLog
from holdfast.engines.nats.urls import check_schemes, split
from holdfast.errors import (
    Closed,
    ConfigError,
    HoldfastError,
    InvalidName,
    Never,
    NoQuorum,
    NotFound,
    Unknown,
)
from holdfast.security import NO_SECURITY, Security

SERVER_MIN: Final = (2, 15)
BLOB_CELL: Final = "g1blobs"
_PAYLOAD_BYTES: Final = 1024 * 1024
_ANSWER_SECONDS: Final = 2.0
_ENSURE_SECONDS: Final = 60.0
"""A fresh cohort elects its leaders once all its members are there."""


class _Stream(msgspec.Struct):
    config: dict[str, Any]


class _Names(msgspec.Struct):
    total: int = 0
    streams: list[str] | None = None


class NatsEngine(Engine):
    """See `holdfast.engines.base.Engine`. ``urls``: servers, the nearest first."""

    name = "nats"
    record_bytes_max = limits.RECORD_BYTES_MAX
    batch_records_max = limits.BATCH_RECORDS_MAX
    batch_bytes_max = limits.BATCH_BYTES_MAX

    def __init__(
        self,
        urls: Sequence[str],
        security: Security = NO_SECURITY,
        *,
        connect_seconds: float = limits.CONNECT_SECONDS,
    ) -> None:
        self._connect_seconds = connect_seconds
        self._urls, named_user, named_password = split(urls)
        self.certificates = Certificates(
            security.tls_ca,
            security.tls_cert,
            security.tls_key,
            wanted=check_schemes(self._urls),
        )
        """For other connections of this process, too."""
        self._user = security.user or named_user
        self._password = security.password if security.user else named_password
        self._connection: Connection | None = None
        self._reading: Connection | None = None
        """What is read in bulk comes by a connection of its own, so that acknowledgements do not
        wait behind it."""
        self._random = chance.random()

    async def open(self) -> None:
        connection = await self._connect("the connection", tells=True)
        try:
            reading = await self._connect("the connection for reading")
        except BaseException:
            await connection.shut()
            raise
        self._connection, self._reading = connection, reading
        self.log: NatsLog = NatsLog(connection, reading)
        self.bus: NatsBus = NatsBus(connection)
        self.blobs: NatsBlobs = NatsBlobs(connection, self.log, BLOB_CELL)
        try:
            self._check_server(connection)
            await self.log.open()
        except BaseException:
            await self.close()
            raise

    async def _connect(self, role: str, tells: bool = False) -> Connection:
        connection = Connection(role, tells)
        await connection.open(
            self._urls, self.certificates, self._user, self._password, self._connect_seconds
        )
        return connection

    def _check_server(self, connection: Connection) -> None:
        facts = connection._server_info
        url = self._urls[0]
        version = str(facts.get("version", "0"))
        numbers = tuple(
            int(part) for part in version.split("-")[0].split(".")[:2] if part.isdigit()
        )
        if numbers < SERVER_MIN:
            wanted = ".".join(map(str, SERVER_MIN))
            raise ConfigError(
                f"the server at {url} is nats-server {version}; {wanted} or newer is needed"
            )
        # one in a cluster may leave that to others
        if not facts.get("jetstream") and not facts.get("cluster"):
            raise ConfigError(
                f"the server at {url} runs without JetStream: add `jetstream {{}}` to its settings"
            )
        if not facts.get("headers"):
            raise ConfigError(
                f"the server at {url} has headers turned off: Holdfast's batches need them"
            )
        payload = facts.get("max_payload")
        if not isinstance(payload, int) or payload < _PAYLOAD_BYTES:
            raise ConfigError(
                f"the server at {url} has max_payload below 1 MiB: leave it at its default"
            )

    def _open(self) -> Connection:
        if self._connection is None or self.log.closed:
            raise Closed("the engine is not open")
        return self._connection

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        reading, self._reading = self._reading, None
        if connection is not None and reading is not None:
            self.log.close()
            await asyncio.sleep(0)  # tails say goodbye to their consumers
            await asyncio.gather(connection.shut(), reading.shut())

    # Cells ----------------------------------------------------------------------------------------

    async def ensure_cells(
        self, cells: Sequence[str], replicas: int, first_sequence: int = 1
    ) -> None:
        for cell in cells:
            checks.check_cell(cell)
        if replicas not in (1, 3, 5):
            raise ConfigError(f"a cell has 1, 3 or 5 replicas, not {replicas}")
        for cell in cells:
            await self._ensure(cell, replicas, first_sequence)
        await self._ensure(BLOB_CELL, replicas)

    async def check_cells(self, cells: Sequence[str]) -> int:
        for cell in cells:
            checks.check_cell(cell)
        return min(await asyncio.gather(*(self._check(cell) for cell in (*cells, BLOB_CELL))))

    async def _check(self, cell: str) -> int:
        """How many copies a cell has. Raises what `check_cells` raises."""
        try:
            answer = await self._ask_patiently(
                f"STREAM.INFO.{cell}",
                None,
                limits.QUORUM_WAIT_SECONDS,
                f"the cell {cell} does not answer",
            )
        except InvalidName:
            raise NotFound(f"there is no stream {cell}: was it removed?") from None
        return _checked(cell, answer)

    async def cells(self) -> list[str]:
        names: set[str] = set()
        offset = 0
        while True:
            answer = await self._ask_patiently(
                "STREAM.NAMES", {"offset": offset}, _ENSURE_SECONDS, "the cells cannot be listed"
            )
            page = msgspec.json.decode(answer, type=_Names)
            names.update(page.streams or ())
            offset += len(page.streams or ())
            if not page.streams or offset >= page.total:
                return sorted(names)

    async def drop_cells(self, cells: Sequence[str]) -> None:
        for cell in cells:
            checks.check_cell(cell)
        for cell in cells:
            with suppress(InvalidName):  # there is none
                await self._ask_patiently(
                    f"STREAM.DELETE.{cell}",
                    None,
                    limits.QUORUM_WAIT_SECONDS,
                    f"the cell {cell} cannot be removed",
                )

    async def _ask_patiently(
        self, subject: str, body: Any, seconds: float, otherwise: str
    ) -> bytes:
        """Ask the servers until one answers.

        Raises `NoQuorum`, which begins with ``otherwise``, where none did in time, and what else
        `api.call` raises.
        """
        connection, loop = self._open(), asyncio.get_running_loop()
        end = loop.time() + seconds
        attempt = 0
        while True:
            try:
                return await api.call(connection, subject, body, _ANSWER_SECONDS)
            except (NoQuorum, Unknown) as error:
                if loop.time() > end:
                    raise NoQuorum(f"{otherwise}: {error}") from None
            attempt += 1
            await asyncio.sleep(backoff.delay_seconds(attempt, self._random, 0.5))

    async def _ensure(self, cell: str, replicas: int, first_sequence: int = 1) -> None:
        connection = self._open()
        loop = asyncio.get_running_loop()
        end = loop.time() + _ENSURE_SECONDS
        attempt = 0
        while True:
            try:
                found = await api.call(connection, f"STREAM.INFO.{cell}", None, _ANSWER_SECONDS)
                break
            except InvalidName:  # there is none
                error: HoldfastError | None = await self._create(
                    connection, cell, replicas, first_sequence
                )
            except (NoQuorum, Unknown) as refused:
                error = refused
            attempt += 1
            if error is not None and loop.time() > end:
                raise NoQuorum(f"the cell {cell} cannot be made or found: {error}")
            await asyncio.sleep(backoff.delay_seconds(attempt, self._random, 0.5))
        _checked(cell, found)

    async def _create(
        self, connection: Connection, cell: str, replicas: int, first_sequence: int
    ) -> HoldfastError | None:
        settings = stream_settings(cell, replicas)
        if first_sequence > 1:
            settings["first_seq"] = first_sequence
        try:
            await api.call(connection, f"STREAM.CREATE.{cell}", settings, 5.0)
        except (Closed, ConfigError):
            raise
        except (NoQuorum, Unknown, Never) as error:
            return error  # somebody else may have been faster: it is looked for again
        return None

    # What it knows --------------------------------------------------------------------------------

    @property
    def connection(self) -> Connection:
        """For what only this engine has: its streams and their replicas. Raises `Closed`."""
        return self._open()

    @property
    def server_name(self) -> str:
        """The server that it is connected to."""
        return str(self._open()._server_info.get("server_name", ""))

    def connected(self) -> bool:
        return self._connection is not None and self._connection.ready()

    def servers(self) -> int:
        known = (
            self._connection._server_info.get("connect_urls", ())
            if self._connection is not None
            else ()
        )
        return max(len(known), 1) if isinstance(known, (list, tuple)) else 1

    def statistics(self) -> Mapping[str, int | float | str]:
        connection, reading = self._connection, self._reading
        if connection is None or reading is None:
            return {}
        return {
            "appends": self.log.appends,
            "records": self.log.records,
            "unknown": self.log.unknown,
            "published": self.bus.published,
            "dropped": self.bus.dropped,
            "sent_bytes": connection.sent_bytes + reading.sent_bytes,
            "reconnections": connection.reconnections + reading.reconnections,
            "server": str(connection._server_info.get("server_name", "")),
        }


def _checked(cell: str, found: bytes) -> int:
    """How many copies a stream has, as its leader describes it. Raises `ConfigError` for other
    settings than ours."""
    config = msgspec.json.decode(found, type=_Stream).config
    for name, value in stream_settings(cell, 1).items():
        if name != "num_replicas" and config.get(name, type(value)()) != value:
            raise ConfigError(
                f"the stream {cell} has {name} = {config.get(name)!r} and not {value!r}: was it "
                "made by something other than Holdfast?"
            )
    return int(config.get("num_replicas", 1))


def stream_settings(cell: str, replicas: int) -> dict[str, Any]:
    """How the stream of a cell is set up: the newest record of each subject, for ever."""
    return {
        "name": cell,
        "subjects": [f"{cell}.>"],
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "num_replicas": replicas,
        "max_msgs_per_subject": 1,
        "max_msgs": -1,
        "max_bytes": -1,
        "max_age": 0,
        "max_consumers": -1,
        "max_msg_size": -1,
        "duplicate_window": 1_000_000_000 * 120,
        "allow_direct": True,
        "allow_atomic": True,
        "allow_rollup_hdrs": False,
        "deny_delete": False,
        "deny_purge": False,
    }
