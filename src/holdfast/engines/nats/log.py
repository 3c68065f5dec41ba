"""The log on JetStream: a cell is a stream, a batch is an atomic publish, a fence is an expected
sequence.

Each record of a batch is one line of protocol with raw headers, and the whole batch is one write to
the socket; only its last record asks for an acknowledgement. Facts of the server that shape this
file:

* a refused expectation anywhere refuses the whole batch, without saying which (error 10071);
* error 10164 is no refused expectation: another write with one on the same subject is under way. It
  is tried again;
* a refusal may be of a second copy of the batch, while the first one is written: a refused batch
  must be such that writing it again is harmless;
* an answer of status 503 with an empty body: no leader has the stream at this moment, nothing was
  written;
* no answer at all: the batch may have been written, or may be written later. That is certain some
  time after a change of leaders, of which the new one tells: what the old one had taken and not
  passed on, nobody answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Final

import msgspec

from holdfast import chance, limits
from holdfast.core import backoff
from holdfast.engines import checks
from holdfast.engines.base import Chunk, Log, Record, Shown, Stored
from holdfast.engines.nats import api, streams
from holdfast.engines.nats.connection import Connection, header, status
from holdfast.engines.nats.tail import Tail
from holdfast.errors import (
    Closed,
    Conflict,
    Fenced,
    HoldfastError,
    InvalidName,
    NoQuorum,
    NoResponders,
    Unknown,
)
from holdfast.ids import new_id

_IN_PROCESS_TRIES: Final = 20
_SECOND_SECONDS: Final = 0.05
_READ_SECONDS: Final = 1.0
_API_SECONDS: Final = 2.0
_ASKED_AT_ONCE: Final = 4
"""Filters whose subjects are asked for at once: for a hundred thousand subjects a busy leader needs
a second."""

_LEADERS: Final = "$JS.EVENT.ADVISORY.STREAM.LEADER_ELECTED"
_ELECTED_SECONDS: Final = 0.5
"""How long a new leader may take to answer what was under way when it was elected."""


class _Ack(msgspec.Struct):
    seq: int = 0
    error: api.ApiError | None = None


class _Message(msgspec.Struct):
    subject: str
    seq: int
    data: str = ""


class _MessageAnswer(msgspec.Struct):
    message: _Message | None = None
    error: api.ApiError | None = None


class _State(msgspec.Struct):
    last_seq: int = 0


class _Info(msgspec.Struct):
    state: _State


_decode_ack = msgspec.json.Decoder(_Ack).decode


class NatsLog(Log):
    """See `holdfast.engines.base.Log`. ``reading``: the connection that tails read by."""

    def __init__(self, connection: Connection, reading: Connection) -> None:
        self._connection = connection
        self._reading = reading
        self._batch_prefix = new_id("b")
        self._batches = 0
        self._random = chance.random()
        self._tails: set[Tail] = set()
        self._under_way: dict[str, set[int]] = {}
        self.closed = False
        self.appends = 0
        self.records = 0
        self.unknown = 0

    async def open(self) -> None:
        """Begin to hear of new leaders."""
        await self._connection.listen(f"{_LEADERS}.*", self._on_leader)

    def _on_leader(self, subject: str, _reply: str, _headers: bytes, _payload: bytes) -> None:
        for number in self._under_way.get(subject.rpartition(".")[2], ()):
            self._connection.answer_within(number, _ELECTED_SECONDS)

    def close(self) -> None:
        """End all tails with `Closed`."""
        self.closed = True
        for tail in list(self._tails):
            tail.stop()

    def _check_open(self, cell: str) -> None:
        if self.closed:
            raise Closed("the log was closed")
        checks.check_cell(cell)

    # Writing --------------------------------------------------------------------------------------

    async def _append(self, cell: str, records: Sequence[Record]) -> range:
        self._check_open(cell)
        checks.check_batch(
            cell, records, limits.RECORD_BYTES_MAX, limits.BATCH_RECORDS_MAX, limits.BATCH_BYTES_MAX
        )
        attempt = 0
        while True:
            last = await self._publish(cell, records)
            if last:
                self.appends += 1
                self.records += len(records)
                return range(last - len(records) + 1, last + 1)
            attempt += 1
            if attempt == _IN_PROCESS_TRIES:
                raise NoQuorum(
                    f"other writes with the same expectation are under way in {cell}: nothing was "
                    "written"
                )
            await asyncio.sleep(self._random.uniform(0.0005, 0.002) * attempt)

    async def _publish(self, cell: str, records: Sequence[Record]) -> int:
        """One attempt: the last record's sequence, or 0 where another write with the same
        expectation is under way."""
        connection = self._connection
        number, reply, future = connection.open_request()
        if not connection.send(self._encode(records, reply)):
            future.cancel()
            if self.closed:
                raise Closed("the log was closed")
            raise NoQuorum(
                "no server is reached, nothing was written: "
                f"{connection.trouble or 'not connected'}"
            )
        under_way = self._under_way.setdefault(cell, set())
        under_way.add(number)
        try:
            headers, answer = await connection.answer(number, future, limits.APPEND_TIMEOUT_SECONDS)
        except Unknown as error:
            self.unknown += 1
            raise Unknown(f"a batch of {len(records)} records in {cell}: {error}") from None
        finally:
            under_way.discard(number)
        if not answer:
            if status(headers) != 503:
                self.unknown += 1
                raise Unknown(
                    f"a batch in {cell}: an acknowledgement with status {status(headers)}"
                )
            raise NoQuorum(f"no server leads {cell} at this moment, nothing was written")
        ack = _decode_ack(answer)
        if ack.error is not None:
            ack = await self._second(number, ack)
        if ack.error is None:
            return ack.seq
        if ack.error.err_code == api.IN_PROCESS:
            return 0
        if ack.error.err_code == api.WRONG_LAST_SEQUENCE:
            text = f"{cell}: {ack.error.description}"
            if any(
                record.expect is not None and record.expect.subject != record.subject
                for record in records
            ):
                raise Fenced(text)
            raise Conflict(text)
        raise api.error_of(ack.error, f"a batch in {cell}")

    async def _second(self, number: int, refusal: _Ack) -> _Ack:
        """The acknowledgement that may follow a refusal.

        Around a change of leaders a batch may reach its stream twice. The second copy is refused
        while the first is under way, and the refusal is the faster answer (seen with 2.15.1, for
        seconds on end).
        """
        future = self._connection.open_request_again(number)
        try:
            headers, answer = await self._connection.answer(number, future, _SECOND_SECONDS)
        except Unknown:
            return refusal
        if not answer or status(headers):
            return refusal
        second = _decode_ack(answer)
        return second if second.error is None else refusal

    def _encode(self, records: Sequence[Record], reply: str) -> bytes:
        count = len(records)
        if count > 1:
            self._batches += 1
        batch = f"{self._batch_prefix}-{self._batches}"
        identity = f"NATS/1.0\r\nNats-Batch-Id:{batch}\r\nNats-Batch-Sequence:"
        parts: list[bytes] = []
        for place, (subject, payload, expect) in enumerate(records, 1):
            if count > 1:
                head = f"{identity}{place}\r\n"
                if place == count:
                    head += "Nats-Batch-Commit:1\r\n"
            else:
                head = "NATS/1.0\r\n"
            if expect is not None:
                head += f"Nats-Expected-Last-Subject-Sequence:{expect.sequence}\r\n"
                if expect.subject != subject:
                    head += f"Nats-Expected-Last-Subject-Sequence-Subject:{expect.subject}\r\n"
            to = f"{subject} {reply}" if place == count else subject
            if count == 1 and expect is None:
                parts.append(f"PUB {to} {len(payload)}\r\n".encode())
            else:
                headers = (head + "\r\n").encode()
                parts.append(
                    f"HPUB {to} {len(headers)} {len(headers) + len(payload)}\r\n".encode() + headers
                )
            parts.append(payload)
            parts.append(b"\r\n")
        return b"".join(parts)

    async def _purge(self, cell: str, subject: str, before_sequence: int) -> None:
        self._check_open(cell)
        checks.check_filter(subject)
        if before_sequence > 1:
            body = {"filter": subject, "seq": before_sequence}
            await api.call(self._connection, f"STREAM.PURGE.{cell}", body, _API_SECONDS)

    # Reading --------------------------------------------------------------------------------------

    async def _read(self, cell: str, subject: str) -> Stored | None:
        """The leader is asked first: of the newest, it is the one that is rarely behind."""
        checks.check_subject(subject)
        self._check_open(cell)
        what = {"last_by_subj": subject}
        try:
            return await self._read_leader(cell, what)
        except (NoQuorum, Unknown):
            found = await self._read_any(cell, what)
            if found is None:
                raise
            return found

    async def _read_sequence(self, cell: str, sequence: int) -> Stored | None:
        """Any replica will do; where that one has nothing, the leader is asked."""
        self._check_open(cell)
        if sequence < 1:
            return None
        found = await self._read_any(cell, {"seq": sequence}) or await self._read_leader(
            cell, {"seq": sequence}
        )
        return found if found is not None and found.sequence == sequence else None

    async def _read_any(self, cell: str, what: dict[str, str] | dict[str, int]) -> Stored | None:
        try:
            payload = msgspec.json.encode(what)
            headers, data = await self._connection.ask(
                f"$JS.API.DIRECT.GET.{cell}", payload, _READ_SECONDS
            )
        except (NoResponders, Unknown):
            return None
        if not headers or status(headers):
            return None
        return Stored(
            header(headers, b"Nats-Subject"), int(header(headers, b"Nats-Sequence")), data
        )

    async def _read_leader(self, cell: str, what: dict[str, str] | dict[str, int]) -> Stored | None:
        payload = msgspec.json.encode(what)
        try:
            _, data = await self._connection.ask(
                f"$JS.API.STREAM.MSG.GET.{cell}", payload, _READ_SECONDS
            )
        except (NoResponders, Unknown) as error:
            raise NoQuorum(f"no replica of {cell} answers: {error}") from None
        if not data:
            raise NoQuorum(f"no server leads {cell} at this moment")
        answer = msgspec.json.decode(data, type=_MessageAnswer)
        if answer.error is not None:
            if answer.error.code == 404 and answer.error.err_code != api.STREAM_NOT_FOUND:
                return None
            raise api.error_of(answer.error, cell)
        message = answer.message
        if message is None:
            return None
        return Stored(
            message.subject, message.seq, msgspec.convert(message.data, bytes, strict=False)
        )

    async def tail(
        self, cell: str, subjects: Sequence[str], from_sequence: int = 1, not_on: str = ""
    ) -> AsyncIterator[Chunk]:
        self._check_open(cell)
        if not subjects:
            raise InvalidName("a tail has at least one filter")
        for subject in subjects:
            checks.check_filter(subject)
        tail = Tail(self._reading, cell, subjects, from_sequence, not_on)
        self._tails.add(tail)
        attempt = 0
        try:
            while True:
                try:
                    chunk = await tail.next()
                except (Closed, InvalidName):
                    raise
                except HoldfastError:
                    attempt += 1
                    await asyncio.sleep(backoff.delay_seconds(attempt, self._random, 0.5))
                    continue
                attempt = 0
                yield chunk
        finally:
            self._tails.discard(tail)
            tail.stop()
            await tail.forget()

    async def subjects(self, cell: str, subject_filters: Sequence[str]) -> Shown | None:
        self._check_open(cell)
        for subject in subject_filters:
            checks.check_filter(subject)
        servers: set[str] = set()
        found: set[str] = set()
        for at in range(0, len(subject_filters), _ASKED_AT_ONCE):
            some = subject_filters[at : at + _ASKED_AT_ONCE]
            for shown in await asyncio.gather(
                *(streams.subjects(self._connection, cell, one) for one in some)
            ):
                servers.add(shown.server)
                found |= shown.subjects
        if len(servers) > 1:
            raise NoQuorum(f"{cell} got another leader")
        server = "".join(servers)
        return Shown(server, found) if server else None

    async def last_sequence(self, cell: str) -> int:
        self._check_open(cell)
        try:
            answer = await api.call(self._connection, f"STREAM.INFO.{cell}", None, _API_SECONDS)
        except Unknown as error:
            raise NoQuorum(str(error)) from None
        return msgspec.json.decode(answer, type=_Info).state.last_seq
