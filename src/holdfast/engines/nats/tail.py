"""One ordered reading of a cell, that goes on at the next sequence whatever happens to servers.

The server pushes through a disposable consumer: one replica, in memory, no acknowledgements. It
numbers what it delivers, so a gap is seen; its heartbeat tells its death within two seconds. Then,
and after a reconnection, a new consumer begins behind the last record that was read. Flow control
is answered when a message was read, not when it arrived: a reader that is slow slows the server,
and no memory fills.

Of a stream in which much was replaced, a server finds the next record for several filters by
looking through all subjects of a block, for each record anew: 33,000 records took 10 s, and the
whole stream of them 0.2 s. So who has much to catch up with reads everything, and picks; once it is
up to date it goes on with a consumer that has the filters.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final

from holdfast.engines.base import Chunk, Stored, matcher
from holdfast.engines.nats import api
from holdfast.engines.nats.connection import Connection, header, status
from holdfast.errors import Closed
from holdfast.ids import new_id

_HEARTBEAT_SECONDS: Final = 0.5
_SILENCE_SECONDS: Final = 1.6
_READ_SECONDS: Final = 0.01
_CHUNK_RECORDS: Final = 2000
_API_SECONDS: Final = 2.0
_PLACEMENTS_MAX: Final = 12
"""With two replicas to choose from, the chance that the wanted one is missed so often is below one
in 4,000."""

_WIDE_ABOVE: Final = 500
"""Records that wait for several filters, above which everything is read."""

_WIDE_SECONDS: Final = 1.0
"""How long that goes on after it was up to date: who reads up to here only, is done by then."""

_NANOSECONDS: Final = 1_000_000_000


class Tail:
    """See the module. It has at most one consumer at a time."""

    def __init__(
        self,
        connection: Connection,
        cell: str,
        subjects: Sequence[str],
        from_sequence: int,
        not_on: str,
    ) -> None:
        self._connection = connection
        self._cell = cell
        self._subjects = list(subjects)
        self._matches = matcher(tuple(subjects))
        self._wide = False
        self._up_to_date_at = 0.0
        self._following = max(from_sequence, 1)
        self._not_on = not_on
        self._server = ""
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._arrived: deque[tuple[str, str, bytes, bytes]] = deque()
        self._subscription = 0
        self._consumer = ""
        self._delivered = 0
        self._begun = 0
        self._heard_at = 0.0
        self._stopped = False

    def stop(self) -> None:
        """End the reading with `Closed`."""
        self._stopped = True
        self._wake.set()

    async def next(self) -> Chunk:
        """The next records. Raises `Closed` when stopped; `NoQuorum` or `Unknown` where there is no
        consumer now."""
        while not self._stopped:
            narrows = self._wide and 0.0 < self._up_to_date_at < self._loop.time() - _WIDE_SECONDS
            if narrows:
                await self.forget()
                self._wide = False
            if not self._consumer:
                self._begun += not narrows
                pending = await self._begin()
                if pending == 0:
                    # Nothing to read up to here: that is news, also without a record.
                    return Chunk([], True, self._server, self._interruptions())
            chunk = self._take()
            if chunk is not None:
                return chunk
            if self._consumer:
                await self._wait()
        raise Closed("the log was closed")

    def _interruptions(self) -> int:
        """How often the reading began, or went on by another connection."""
        return self._begun + self._connection.reconnections

    async def _wait(self) -> None:
        self._wake.clear()
        silence = self._heard_at + _SILENCE_SECONDS - self._loop.time()
        timer = self._loop.call_later(max(silence, 0.0), self._wake.set)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()
        if self._is_silent():
            # where this process stood still, what came meanwhile is not read yet
            await asyncio.sleep(_READ_SECONDS)
            if self._is_silent():
                await self.forget()

    def _is_silent(self) -> bool:
        return not self._arrived and self._loop.time() - self._heard_at >= _SILENCE_SECONDS

    async def _begin(self) -> int:
        """Make a consumer that begins at the next sequence; return how many records wait for it."""
        made = await self._place()
        if not self._wide and len(self._subjects) > 1 and made.num_pending > _WIDE_ABOVE:
            self._wide, self._up_to_date_at = True, 0.0
            made = await self._place()
        self._server = made.cluster.leader
        return made.num_pending

    async def _place(self) -> api.Consumer:
        for _ in range(_PLACEMENTS_MAX if self._not_on else 1):
            await self.forget()
            made = await self._create()
            if made.cluster.leader != self._not_on:
                break
        return made

    async def _create(self) -> api.Consumer:
        connection = self._connection
        name = new_id("t")
        deliver = f"hf.t.{name}"
        self._arrived.clear()
        self._delivered = 0
        self._heard_at = self._loop.time()
        self._subscription = await connection.listen(deliver, self._on_message)
        config: dict[str, object] = {
            "deliver_subject": deliver,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": self._following,
            "flow_control": True,
            "idle_heartbeat": int(_HEARTBEAT_SECONDS * _NANOSECONDS),
            "inactive_threshold": 5 * _NANOSECONDS,
            "filter_subjects": [f"{self._cell}.>"] if self._wide else self._subjects,
        }
        try:
            made = await api.create_consumer(connection, self._cell, name, config, _API_SECONDS)
        except BaseException:
            connection.unlisten(self._subscription)
            self._subscription = 0
            raise
        self._consumer = name
        self._heard_at = self._loop.time()
        return made

    def _on_message(self, subject: str, reply: str, headers: bytes, payload: bytes) -> None:
        self._heard_at = self._loop.time()
        self._arrived.append((subject, reply, headers, payload))
        self._wake.set()

    def _take(self) -> Chunk | None:
        """What arrived, up to a bound; None where there is no record in it."""
        records: list[Stored] = []
        caught_up = False
        arrived = self._arrived
        while arrived and len(records) < _CHUNK_RECORDS:
            subject, reply, headers, payload = arrived.popleft()
            if headers and status(headers) == 100:
                self._control(reply, headers)
                continue
            # $JS.ACK.<stream>.<consumer>.<delivered>.<stream sequence>.<consumer
            # sequence>.<time>.<pending>
            tokens = reply.split(".")
            if len(tokens) < 9 or tokens[-6] != self._consumer:
                continue  # the rest of a consumer that was given up
            sequence, delivered = int(tokens[-4]), int(tokens[-3])
            if delivered != self._delivered + 1:
                self._restart()
                break
            self._delivered = delivered
            if sequence < self._following:
                continue  # a replica that is behind the start begins at its own end
            self._following = sequence + 1
            caught_up = tokens[-1] == "0"
            if not self._wide or self._matches(subject):
                records.append(Stored(subject, sequence, payload))
        if caught_up and self._up_to_date_at == 0.0:
            self._up_to_date_at = self._loop.time()
        return (
            Chunk(records, caught_up, self._server, self._interruptions())
            if records or caught_up
            else None
        )

    def _control(self, reply: str, headers: bytes) -> None:
        if reply:  # flow control: what was sent before it has been read
            self._connection.send(f"PUB {reply} 0\r\n\r\n".encode())
            return
        stalled = header(headers, b"Nats-Consumer-Stalled")
        if stalled:
            self._connection.send(f"PUB {stalled} 0\r\n\r\n".encode())
        last = header(headers, b"Nats-Last-Consumer")
        if last and int(last) > self._delivered:
            self._restart()  # something that was delivered did not arrive

    def _restart(self) -> None:
        self._arrived.clear()
        self._connection.unlisten(self._subscription)
        self._subscription, self._consumer = 0, ""

    async def forget(self) -> None:
        """Give up the consumer; the server forgets it by itself where it cannot be told."""
        name = self._consumer
        if self._subscription:
            self._restart()
        if name and self._connection.ready():
            subject = f"$JS.API.CONSUMER.DELETE.{self._cell}.{name}"
            self._connection.send(f"PUB {subject} 0\r\n\r\n".encode())
