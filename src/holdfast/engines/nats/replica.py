"""One particular replica of a cell, read in order: what `holdfast scrub` compares.

The engine answers reads from whatever replica it likes, so a replica that lost records is not seen
from outside. A disposable consumer with one copy, in memory, reads the store of the server that it
was placed on; the answer to its creation names that server (``cluster.leader``), and how far that
server's store goes. Where it is placed is drawn at random among the replicas, so consumers are made
until each wanted server has one, and the rest is forgotten again. No leadership moves for it.
(nats-server 2.15.1; a direct get does not say which server answered it.)

Reading is by pulls, each bounded in records and bytes: memory stays flat however large the cell is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from holdfast.engines.base import Stored
from holdfast.engines.nats import api
from holdfast.engines.nats.connection import Connection, status
from holdfast.errors import HoldfastError, NoQuorum, Unknown
from holdfast.ids import new_id

_PULL_RECORDS: Final = 1000
_PULL_BYTES: Final = 8 * 1024 * 1024
_SILENCE_SECONDS: Final = 3.0
_API_SECONDS: Final = 2.0
_PLACEMENTS_MAX: Final = 120
"""With five replicas the chance that one of them is missed so often is below one in 10¹⁰."""

_NANOSECONDS: Final = 1_000_000_000


class ReplicaSize(msgspec.Struct, frozen=True):
    """How far one replica goes. ``messages`` counts its records."""

    server: str
    last_sequence: int
    messages: int


async def sizes(
    connection: Connection, cell: str, servers: Iterable[str]
) -> dict[str, ReplicaSize]:
    """How far each of these servers' replicas goes. Raises `NoQuorum`, `Unknown`."""
    wanted = list(servers)
    news = await _placed(connection, cell, wanted, {"deliver_policy": "new"})
    alls = await _placed(connection, cell, wanted, {"deliver_policy": "all"})
    _forget(connection, cell, [made.name for made in (*news.values(), *alls.values())])
    return {
        server: ReplicaSize(server, news[server].delivered.stream_seq, alls[server].num_pending)
        for server in wanted
    }


async def ends(connection: Connection, cell: str, servers: Iterable[str]) -> dict[str, int]:
    """The last sequence of each of these servers' replicas. Raises `NoQuorum`, `Unknown`."""
    made = await _placed(connection, cell, list(servers), {"deliver_policy": "new"})
    _forget(connection, cell, [one.name for one in made.values()])
    return {server: one.delivered.stream_seq for server, one in made.items()}


async def open_replicas(
    connection: Connection,
    cell: str,
    servers: Iterable[str],
    subjects: Sequence[str] = (),
    from_sequence: int = 1,
) -> dict[str, Replica]:
    """A reader of each of these servers' replicas. Raises `NoQuorum` where one of them has none,
    `Unknown`."""
    start = {"deliver_policy": "by_start_sequence", "opt_start_seq": max(from_sequence, 1)}
    wanted = list(servers)
    made = await _placed(
        connection,
        cell,
        wanted,
        {**start, "filter_subjects": list(subjects)} if subjects else start,
    )
    readers: dict[str, Replica] = {}
    for server in wanted:
        readers[server] = reader = Replica(connection, cell, made[server].name)
        await reader.listen()
    return readers


async def _placed(
    connection: Connection, cell: str, servers: Sequence[str], start: dict[str, object]
) -> dict[str, api.Consumer]:
    found: dict[str, api.Consumer] = {}
    extra: list[str] = []
    try:
        for _ in range(_PLACEMENTS_MAX):
            if len(found) == len(servers):
                return found
            name = new_id("sc")
            config = {**start, "inactive_threshold": 30 * _NANOSECONDS}
            made = await api.create_consumer(connection, cell, name, config, _API_SECONDS)
            # A server without a cluster names none: it is the only one.
            server = made.cluster.leader or (servers[0] if len(servers) == 1 else "")
            if server in servers and server not in found:
                found[server] = made
            else:
                extra.append(name)
        missing = ", ".join(server for server in servers if server not in found)
        extra += [made.name for made in found.values()]
        raise NoQuorum(f"the replica of {cell} on {missing} cannot be read: is that server up?")
    except HoldfastError:
        extra += [made.name for made in found.values()]
        raise
    finally:
        _forget(connection, cell, extra)


def _forget(connection: Connection, cell: str, names: Iterable[str]) -> None:
    """The server forgets them by itself where it cannot be told."""
    for name in names:
        connection.send(f"PUB $JS.API.CONSUMER.DELETE.{cell}.{name} 0\r\n\r\n".encode())


class Replica:
    """One ordered reading of one replica. Made by `open_replicas`; `close` it."""

    def __init__(self, connection: Connection, cell: str, consumer: str) -> None:
        self._connection = connection
        self._cell = cell
        self._consumer = consumer
        self._deliver = f"hf.t.{new_id('sc')}"
        self._subscription = 0
        self._pulls = 0
        self._arrived: asyncio.Queue[tuple[str, str, bytes, bytes]] = asyncio.Queue()

    async def listen(self) -> None:
        """Be ready for what the pulls bring."""
        self._subscription = await self._connection.listen(
            f"{self._deliver}.*", lambda *message: self._arrived.put_nowait(message)
        )

    async def next(self) -> list[Stored]:
        """The next records; none: the replica has no more. Raises `NoQuorum`, `Unknown`."""
        while True:
            records, ended = await self._pull()
            if records or ended:
                return records

    async def _pull(self) -> tuple[list[Stored], bool]:
        self._pulls += 1
        deliver = f"{self._deliver}.{self._pulls}"
        body = msgspec.json.encode(
            {"batch": _PULL_RECORDS, "max_bytes": _PULL_BYTES, "no_wait": True}
        )
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._cell}.{self._consumer}"
        if not self._connection.send(
            f"PUB {subject} {deliver} {len(body)}\r\n".encode() + body + b"\r\n"
        ):
            raise NoQuorum(f"no server is reached: {self._connection.trouble or 'not connected'}")
        records: list[Stored] = []
        while len(records) < _PULL_RECORDS:
            try:
                async with asyncio.timeout(_SILENCE_SECONDS):
                    subject, reply, headers, payload = await self._arrived.get()
            except TimeoutError:
                raise Unknown(f"the replica of {self._cell} that is read fell silent") from None
            code = status(headers) if headers else 0
            if code and subject != deliver:
                continue  # a full pull is said to be complete behind its last record
            if code in (404, 408):
                return records, True
            if code == 409 and (b"MaxBytes" in headers or b"Batch Completed" in headers):
                return records, False
            if code:
                text = headers.split(b"\r\n")[0].decode(errors="replace")
                raise NoQuorum(f"the replica of {self._cell} cannot be read any further: {text}")
            # $JS.ACK.<stream>.<consumer>.<delivered>.<stream sequence>.<consumer
            # sequence>.<time>.<pending>
            records.append(Stored(subject, int(reply.split(".")[-4]), payload))
        return records, False

    def close(self) -> None:
        """Forget the consumer."""
        self._connection.unlisten(self._subscription)
        _forget(self._connection, self._cell, [self._consumer])
