"""The engine of a process that visits an embedded log which another one has open: see
`holdfast.engines.local.socket_server`.

It serves no agents; it is a client, as a process without agents is on a cluster. When the other
process ends, so does the visit: reads raise `Closed`, and an append whose answer did not come is
`Unknown`.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from holdfast import limits
from holdfast.engines import checks
from holdfast.engines.base import (
    Blobs,
    Bus,
    Chunk,
    Engine,
    Log,
    Message,
    Record,
    Stored,
    Subscription,
)
from holdfast.engines.local import lock, wire
from holdfast.engines.local.bus import request
from holdfast.errors import (
    Closed,
    ConfigError,
    DataLoss,
    InvalidName,
    NoQuorum,
    NotFound,
    TooLarge,
    Unknown,
    from_wire,
)

_AGAIN_SECONDS: Final = 0.02
_WRITES: Final = frozenset({"append", "purge", "blob_put", "blob_delete"})


def answers(log: Path) -> bool:
    """Whether a process has the log open, and lets this one visit it."""
    try:
        wire.connect(log).close()
    except BlockingIOError:
        return True  # it does, and takes nobody in at the moment
    except OSError:
        return False
    return True


class _Line:
    """The connection: questions with numbers, and answers to them."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._numbers = itertools.count(1)
        self._open: dict[int, asyncio.Future[Any]] = {}
        self.callbacks: dict[int, Callable[[Message], None]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self.over = ""

    async def connect(self) -> int:
        """Connect; the number of the other process. Raises `ConfigError`, and `NoQuorum` where that
        one stands still."""
        try:
            async with asyncio.timeout(limits.CONNECT_SECONDS):
                reader, self._writer = await asyncio.open_unix_connection(
                    sock=await self._taken_in()
                )
                self._reading = asyncio.get_running_loop().create_task(self._read(reader))
                pid, _ = msgspec.convert(await self.ask("hello", wire.FORMAT), tuple[int, int])
        except TimeoutError:
            raise NoQuorum(
                f"process {lock.owner(self._log)} has {self._log} open and does not answer: it is "
                "stopped, or one of its handlers keeps it busy. Let it go on, or end it"
            ) from None
        except OSError as error:
            raise ConfigError(
                f"the process that has {self._log} open does not answer: {error}"
            ) from None
        return pid

    async def _taken_in(self) -> socket.socket:
        while True:
            try:
                return wire.connect(self._log)
            except BlockingIOError:
                await asyncio.sleep(_AGAIN_SECONDS)

    def number(self) -> int:
        """One that was not given before."""
        return next(self._numbers)

    def say(self, name: str, *arguments: Any, number: int = 0) -> None:
        """Send, and wait for nothing. Raises `Closed`."""
        if self._writer is None or self.over:
            raise Closed(self.over or "the engine is not open")
        self._writer.write(wire.frame([number, name, arguments]))

    async def ask(self, name: str, *arguments: Any) -> Any:
        """The answer. Raises the error that came in its place; `Closed`, or `Unknown` for a write
        without an answer."""
        number = self.number()
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._open[number] = future
        try:
            self.say(name, *arguments, number=number)
            return await future
        except EOFError:
            raise (Unknown if name in _WRITES else Closed)(self.over) from None
        finally:
            del self._open[number]

    async def _read(self, reader: asyncio.StreamReader) -> None:
        why = "ended, or closed it"
        try:
            while True:
                number, good, value = await wire.read(reader)
                if not number:
                    subscription, *message = value
                    if (callback := self.callbacks.get(subscription)) is not None:
                        callback(Message(*message))
                elif (future := self._open.get(number)) is not None and not future.done():
                    if good:
                        future.set_result(value)
                    else:
                        future.set_exception(from_wire(*value))
        except EOFError:
            pass
        except (DataLoss, TypeError, ValueError) as error:
            why = f"said what is not understood ({error})"
        finally:
            self.over = self.over or f"the process that has {self._log} open {why}"
            for future in self._open.values():
                if not future.done():
                    future.set_exception(EOFError())

    async def close(self) -> None:
        """Go."""
        self.over = self.over or "the engine was closed"
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        if self._writer is not None:
            self._writer.close()


class SocketEngine(Engine):
    """See the module. ``path``: the log's file."""

    name = "local"
    record_bytes_max = limits.RECORD_BYTES_MAX
    batch_records_max = limits.BATCH_RECORDS_MAX
    batch_bytes_max = limits.BATCH_BYTES_MAX

    def __init__(self, path: Path) -> None:
        self.path = path
        self.owner = 0
        """The process that has the log open."""
        self._line = _Line(path)
        self.log: SocketLog = SocketLog(self._line)
        self.bus: SocketBus = SocketBus(self._line)
        self.blobs: SocketBlobs = SocketBlobs(self._line)

    async def open(self) -> None:
        try:
            self.owner = await self._line.connect()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        await self._line.close()

    async def ensure_cells(
        self, cells: Sequence[str], replicas: int, first_sequence: int = 1
    ) -> None:
        missing = sorted({*map(checks.check_cell, cells)} - {*await self.cells()})
        if missing or replicas != 1 or first_sequence != 1:
            raise ConfigError(
                f"{self.path} is open in process {self.owner}, which alone makes its cells"
            )

    async def check_cells(self, cells: Sequence[str]) -> int:
        if missing := sorted({*map(checks.check_cell, cells)} - {*await self.cells()}):
            raise NotFound(f"there is no cell {missing[0]}")
        return 1

    async def cells(self) -> list[str]:
        return msgspec.convert(await self._line.ask("cells"), list[str])

    async def drop_cells(self, cells: Sequence[str]) -> None:
        raise ConfigError(
            f"{self.path} is open in process {self.owner}, which alone removes its cells: "
            f"{', '.join(cells)}"
        )

    def connected(self) -> bool:
        return bool(self.owner) and not self._line.over

    def servers(self) -> int:
        return 1

    def statistics(self) -> Mapping[str, int | float | str]:
        return {}


class SocketLog(Log):
    """The log, asked for from the other process."""

    def __init__(self, line: _Line) -> None:
        self._line = line

    async def _append(self, cell: str, records: Sequence[Record]) -> range:
        checks.check_batch(
            cell, records, limits.RECORD_BYTES_MAX, limits.BATCH_RECORDS_MAX, limits.BATCH_BYTES_MAX
        )
        given = [(subject, bytes(payload), expect) for subject, payload, expect in records]
        return range(*msgspec.convert(await self._line.ask("append", cell, given), tuple[int, int]))

    async def _read(self, cell: str, subject: str) -> Stored | None:
        return msgspec.convert(await self._line.ask("read", cell, subject), Stored | None)

    async def _read_sequence(self, cell: str, sequence: int) -> Stored | None:
        return msgspec.convert(await self._line.ask("read_sequence", cell, sequence), Stored | None)

    async def tail(
        self,
        cell: str,
        subjects: Sequence[str],
        from_sequence: int = 1,
        not_on: str = "",  # noqa: ARG002  # one copy
    ) -> AsyncIterator[Chunk]:
        if not subjects:
            raise InvalidName("a tail has at least one filter")
        number = self._line.number()
        await self._line.ask("tail", number, cell, list(subjects), from_sequence)
        try:
            while True:
                yield msgspec.convert(await self._line.ask("next", number), Chunk)
        finally:
            if not self._line.over:
                self._line.say("tail_end", number, number=self._line.number())

    # one copy
    async def subjects(self, cell: str, subject_filters: Sequence[str]) -> None:  # noqa: ARG002
        return None

    async def _purge(self, cell: str, subject: str, before_sequence: int) -> None:
        await self._line.ask("purge", cell, subject, before_sequence)

    async def last_sequence(self, cell: str) -> int:
        return msgspec.convert(await self._line.ask("last_sequence", cell), int)


class SocketBlobs(Blobs):
    """The blobs, asked for from the other process."""

    def __init__(self, line: _Line) -> None:
        self._line = line

    async def _put(self, key: str, value: bytes) -> None:
        if len(value) > limits.BLOB_BYTES_MAX:
            raise TooLarge(f"a blob of {len(value)} bytes; {limits.BLOB_BYTES_MAX} are allowed")
        await self._line.ask("blob_put", key, value)

    async def _get(self, key: str) -> bytes:
        return msgspec.convert(await self._line.ask("blob_get", key), bytes)

    async def delete(self, key: str) -> None:
        await self._line.ask("blob_delete", key)

    async def keys(self, prefix: str) -> list[str]:
        return msgspec.convert(await self._line.ask("blob_keys", prefix), list[str])


class SocketBus(Bus):
    """The other process's bus."""

    def __init__(self, line: _Line) -> None:
        self._line = line

    def publish(self, subject: str, payload: bytes, reply: str = "") -> None:
        checks.check_subject(subject)
        if reply:
            checks.check_subject(reply)
        if len(payload) > limits.RECORD_BYTES_MAX:
            raise TooLarge(
                f"a message of {len(payload)} bytes on {subject}; {limits.RECORD_BYTES_MAX} are "
                "allowed"
            )
        if not self._line.over:
            self._line.say("publish", subject, bytes(payload), reply)

    async def subscribe(
        self, subject: str, callback: Callable[[Message], None], queue: str = ""
    ) -> Subscription:
        checks.check_filter(subject)
        number = self._line.number()
        self._line.callbacks[number] = callback
        await self._line.ask("subscribe", number, subject, queue)
        return _Subscription(self._line, number)

    async def request(self, subject: str, payload: bytes, timeout_seconds: float) -> bytes:
        return await request(self, subject, payload, timeout_seconds)


class _Subscription(Subscription):
    def __init__(self, line: _Line, number: int) -> None:
        self._line = line
        self._number = number

    async def close(self) -> None:
        if self._line.callbacks.pop(self._number, None) is not None and not self._line.over:
            try:
                await self._line.ask("unsubscribe", self._number)
            except Closed:
                return
