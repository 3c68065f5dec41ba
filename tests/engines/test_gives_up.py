"""Who waits for a connection no longer hears so at once, also where the connection fails in that
very moment."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from holdfast.engines.nats.engine import NatsEngine
from holdfast.errors import NoQuorum
from holdfast.host.server.nats_server import free_ports

CLIENTS = 400

LIES = {
    "it closes at once": b"",
    "it closes after its greeting": b"INFO {}\r\n",
    "it closes before its answer": b'INFO {"max_payload": 1048576, "headers": true}\r\n',
}


async def give_up(url: str) -> None:
    """Many clients at once give up at moments close to each other: in some of them the connection
    fails just then."""

    async def one(seconds: float) -> None:
        with pytest.raises(NoQuorum):
            await NatsEngine([url], connect_seconds=seconds).open()

    async with asyncio.timeout(240):
        await asyncio.gather(*(one(0.1 + n / CLIENTS / 10) for n in range(CLIENTS)))
        while asyncio.all_tasks() != {asyncio.current_task()}:  # nobody goes on trying
            await asyncio.sleep(0.01)


async def test_where_nobody_listens() -> None:
    (port,) = free_ports(1)
    await give_up(f"nats://127.0.0.1:{port}")


@pytest.mark.parametrize("greeting", LIES.values(), ids=LIES)
async def test_where_a_server_closes(greeting: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        with suppress(ConnectionResetError):
            if greeting:
                await reader.read(10)
                await asyncio.sleep(0.1)
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1")
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        await give_up(f"nats://127.0.0.1:{port}")
