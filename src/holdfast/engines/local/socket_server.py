"""How a running program's embedded log is looked at: the process that has it open answers on a
socket beside it.

One process at a time has the log. Without this, `holdfast status` on a running program could only
say who has it. The visitor is a client of the engine, not a second writer: its reads and appends
are done here, by the one writer, and its messages go over this process's bus. So whatever a client
does on a cluster works on a running embedded log too.

Only this user comes in: the socket has mode 0600, and on Linux the other side's user is asked for.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, cast

import msgspec

from holdfast.engines.base import Chunk, Engine, Expect, Message, Record, Subscription
from holdfast.engines.local import wire
from holdfast.errors import BadMessage, DataLoss, HoldfastError, NotFound, to_wire

_BUFFER_BYTES_MAX: Final = 8 * 1024 * 1024
"""What may wait for a visitor; beyond it the bus loses messages for it."""

_TAILS_MAX: Final = 1000
_logger = logging.getLogger(__name__)


class SocketServer:
    """Listens beside a log. ``engine``: open."""

    def __init__(self, engine: Engine, log: Path) -> None:
        self._engine = engine
        self._path = wire.socket_path(log)
        self._socket: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._visits: set[asyncio.Task[None]] = set()
        self._identity = (0, 0)

    async def open(self) -> None:
        """Begin to listen; where that cannot be, the log is used all the same, and nobody visits
        it."""
        try:
            self._socket = wire.listen(self._path)
            found = self._path.lstat()
        except OSError as error:
            _logger.info("%s cannot be looked at while it is open: %s", self._path, error)
            return
        self._identity = found.st_dev, found.st_ino
        self._server = await asyncio.start_unix_server(self._on_visitor, sock=self._socket)

    async def close(self) -> None:
        """Let nobody in any more, and let go of those who are there."""
        if self._server is None:
            return
        with suppress(OSError):
            found = self._path.lstat()
            if (found.st_dev, found.st_ino) == self._identity:
                self._path.unlink()
        self._server.close()
        self._server = None
        visits = list(self._visits)
        for visit in visits:
            visit.cancel()
        await asyncio.gather(*visits, return_exceptions=True)

    async def _on_visitor(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._visits.add(task)
        try:
            if wire.peer(writer.get_extra_info("socket")) in (-1, 0, os.geteuid()):
                await _Visit(self._engine, reader, writer).run()
        except asyncio.CancelledError:
            pass  # the log is closed: a server's callback that ends cancelled is logged as an error
        finally:
            self._visits.discard(task)
            writer.close()


class _Visit:
    """One visitor."""

    def __init__(
        self, engine: Engine, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._engine = engine
        self._reader = reader
        self._writer = writer
        self._tails: dict[int, AsyncIterator[Chunk]] = {}
        self._subscriptions: dict[int, Subscription] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Answer until it goes, or says what is not understood."""
        try:
            while True:
                number, name, arguments = msgspec.convert(
                    await wire.read(self._reader), tuple[int, str, list[Any]]
                )
                if name == "publish":  # in order, and nobody waits for it
                    with suppress(HoldfastError, msgspec.ValidationError):
                        self._engine.bus.publish(
                            *msgspec.convert(arguments, tuple[str, bytes, str])
                        )
                    continue
                task = asyncio.ensure_future(self._answer(number, name, arguments))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        except (EOFError, DataLoss, msgspec.ValidationError):
            pass
        finally:
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for subscription in self._subscriptions.values():
                await subscription.close()
            for tail in self._tails.values():
                await tail.aclose()  # type: ignore[attr-defined]  # tails are async generators

    async def _answer(self, number: int, name: str, arguments: list[Any]) -> None:
        try:
            kind, operation = _OPERATIONS[name]
            found = [number, True, await operation(self, *msgspec.convert(arguments, kind))]
        except HoldfastError as error:
            found = [number, False, to_wire(error)]
        except (KeyError, msgspec.ValidationError, RuntimeError) as error:
            found = [number, False, to_wire(BadMessage(f"{name} is not understood here: {error}"))]
        self._writer.write(wire.frame(found))
        with suppress(ConnectionError):
            await self._writer.drain()

    async def _hello(self, version: int) -> tuple[int, int]:
        if version != wire.FORMAT:
            raise BadMessage(
                f"the process that has this log open speaks form {wire.FORMAT}, not {version}: use "
                "one version"
            )
        return os.getpid(), wire.FORMAT

    async def _append(
        self, cell: str, records: list[tuple[str, bytes, Expect | None]]
    ) -> tuple[int, int]:
        sequences = await self._engine.log.append(cell, [Record(*record) for record in records])
        return sequences.start, sequences.stop

    async def _tail(self, number: int, cell: str, subjects: list[str], from_sequence: int) -> None:
        if len(self._tails) >= _TAILS_MAX or number in self._tails:
            raise BadMessage(f"a visitor has {_TAILS_MAX} tails, each with a number of its own")
        self._tails[number] = self._engine.log.tail(cell, subjects, from_sequence)

    async def _next(self, number: int) -> Chunk:
        if (tail := self._tails.get(number)) is None:
            raise NotFound(f"there is no tail {number}")
        return await anext(tail)

    async def _tail_end(self, number: int) -> None:
        if (tail := self._tails.pop(number, None)) is not None:
            # it is being read at this moment, by a request that was given up
            with suppress(RuntimeError):
                await tail.aclose()  # type: ignore[attr-defined]

    async def _subscribe(self, number: int, subject: str, queue: str) -> None:
        def heard(message: Message) -> None:
            if self._writer.transport.get_write_buffer_size() < _BUFFER_BYTES_MAX:
                self._writer.write(wire.frame([0, True, (number, *message)]))

        self._subscriptions[number] = await self._engine.bus.subscribe(subject, heard, queue)

    async def _unsubscribe(self, number: int) -> None:
        if (subscription := self._subscriptions.pop(number, None)) is not None:
            await subscription.close()


def _of_log(name: str) -> Callable[..., Awaitable[Any]]:
    return lambda visit, *arguments: getattr(visit._engine.log, name)(*arguments)


def _of_blobs(name: str) -> Callable[..., Awaitable[Any]]:
    return lambda visit, *arguments: getattr(visit._engine.blobs, name)(*arguments)


_OPERATIONS: Final = cast(
    dict[str, tuple[Any, Callable[..., Awaitable[Any]]]],
    {
        "hello": (tuple[int], _Visit._hello),
        "cells": (tuple[()], lambda visit: visit._engine.cells()),
        "append": (tuple[str, list[tuple[str, bytes, Expect | None]]], _Visit._append),
        "read": (tuple[str, str], _of_log("read")),
        "read_sequence": (tuple[str, int], _of_log("read_sequence")),
        "purge": (tuple[str, str, int], _of_log("purge")),
        "last_sequence": (tuple[str], _of_log("last_sequence")),
        "tail": (tuple[int, str, list[str], int], _Visit._tail),
        "next": (tuple[int], _Visit._next),
        "tail_end": (tuple[int], _Visit._tail_end),
        "subscribe": (tuple[int, str, str], _Visit._subscribe),
        "unsubscribe": (tuple[int], _Visit._unsubscribe),
        "blob_put": (tuple[str, bytes], _of_blobs("put")),
        "blob_get": (tuple[str], _of_blobs("get")),
        "blob_delete": (tuple[str], _of_blobs("delete")),
        "blob_keys": (tuple[str], _of_blobs("keys")),
    },
)
