"""What a server says, or does not say, before it answers the first ping of a connection.

A server that starts sends its clients news of the others just then; one that is killed just then
closes the connection. Neither may leave a connection that is neither made nor tried again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from holdfast.engines.base import Record
from holdfast.engines.nats.engine import NatsEngine
from holdfast.errors import NoQuorum, Unknown
from holdfast.host.server.nats_config import ServerSettings
from holdfast.host.server.nats_server import NatsServer, free_ports

pytestmark = pytest.mark.timeout(900)

TRIES = 2
"""Connections that are meddled with, of each phase."""


class Meddler:
    """A way to a server: it puts ``word`` before the answer to the first ping, and closes after it
    if ``closes``."""

    def __init__(self, server_port: int, word: bytes, closes: bool) -> None:
        self.server_port = server_port
        self.word = word
        self.closes = closes
        self.port = 0
        self.left = 0
        self._open: set[asyncio.StreamWriter] = set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self.server_port)
        self._open.add(writer)
        try:
            writer.write(await from_server.readline())
            to_server.write(await reader.readuntil(b"PING\r\n"))
            if self.left:
                self.left -= 1
                writer.write(self.word)
                if self.closes:
                    return
            async with asyncio.TaskGroup() as group:
                group.create_task(_pass_on(from_server, writer))
                group.create_task(_pass_on(reader, to_server))
        except (OSError, asyncio.IncompleteReadError, ExceptionGroup):
            pass
        finally:
            self._open.discard(writer)
            writer.close()
            to_server.close()

    def cut(self) -> None:
        """Close all connections."""
        for writer in self._open:
            writer.transport.abort()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Meddler]:
        """Listen."""
        listening = await asyncio.start_server(self._serve, "127.0.0.1")
        self.port = listening.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            self.cut()
            listening.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    raise ConnectionResetError


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    (port,) = free_ports(1)
    made = NatsServer(ServerSettings("one", str(tmp_path / "server"), port=port))
    await made.start()
    yield made
    await made.stop()


@pytest.mark.parametrize("word, closes", [
    pytest.param(b"", True, id="it closes"),
    pytest.param(b"INFO {", True, id="it closes in the midst of a line"),
    pytest.param(b"PONG", True, id="it closes in the midst of its answer"),
    pytest.param(b"-ERR 'Server Shutdown'\r\n", True, id="it says an error"),
    pytest.param(b"PONG\n", True, id="half an end of line"),
    pytest.param(b"HTTP/1.1 400 Bad Request\r\n", False, id="it is no NATS server"),
    pytest.param(b"INFO [1]\r\n", False, id="news that are none"),
    pytest.param(b"INFO " + b"[" * 60_000 + b"\r\n", False, id="deep news"),
    pytest.param(b"INFO " + b" " * 200_000 + b"\r\n", False, id="endless news"),
    pytest.param(b'INFO {"connect_urls": 7}\r\n', False, id="news"),
    pytest.param(b"PING\r\n", False, id="a ping of its own"),
    pytest.param(b'PING\r\nINFO {}\r\n' * 100, False, id="many of both"),
])  # fmt: skip
async def test_a_connection_is_made_whatever_comes_before_the_answer(
    server: NatsServer, word: bytes, closes: bool
) -> None:
    made = Meddler(urlsplit(server.url).port or 0, word, closes)
    async with AsyncExitStack() as stack:
        meddler = await stack.enter_async_context(made.running())
        meddler.left = TRIES
        engine = NatsEngine([f"nats://127.0.0.1:{meddler.port}"])
        await engine.open()
        stack.push_async_callback(engine.close)
        await engine.ensure_cells(["c"], 1)
        for n in range(2):
            # The connection of tails and that of all else are lost, and each comes back past what
            # is in its way.
            before = engine.connection.reconnections
            meddler.left = TRIES
            meddler.cut()
            async with asyncio.timeout(240):
                while engine.connection.reconnections == before or not engine.connected():
                    await asyncio.sleep(0.01)
                while True:
                    try:
                        await engine.log.append("c", [Record(f"c.{n}", b"x")])
                        break
                    except (NoQuorum, Unknown):
                        await asyncio.sleep(0.01)


async def test_news_before_the_answer_are_heard(server: NatsServer) -> None:
    (other,) = free_ports(1)
    word = f'INFO {{"connect_urls": ["127.0.0.1:{other}"]}}\r\n'.encode()
    async with Meddler(urlsplit(server.url).port or 0, word, False).running() as meddler:
        meddler.left = TRIES
        engine = NatsEngine([f"nats://127.0.0.1:{meddler.port}"])
        await engine.open()
        known = [known.where for known in engine.connection._pool.servers]
        await engine.close()
    assert known == [f"127.0.0.1:{meddler.port}", f"127.0.0.1:{other}"]
