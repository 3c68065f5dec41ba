"""Servers that are not what a client asked for, and that keep every byte that it sends to them in
clear."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any


class Impostor:
    """A server on loopback. ``heard``: all that clients sent, decrypted where there was TLS;
    ``connections``: how many."""

    def __init__(
        self, *, first: str = "", context: ssl.SSLContext | None = None, closes: str = ""
    ) -> None:
        self.first = first
        """What it says about TLS in its INFO: ``none``, ``required`` or ``available``; empty: it
        says nothing in clear."""
        self.context = context
        self.closes = closes
        """Where it closes: ``at once``, or once it has answered (``greeted``); empty: it does
        not."""
        self.heard = b""
        self.connections = 0
        self.port = 0
        self.forward = 0
        """The port of a real server whose INFO it passes on, without the word on TLS; 0: it makes
        up its own."""

    @property
    def where(self) -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self.port}"

    def info(self) -> dict[str, Any]:
        """What it says of itself."""
        facts = {
            "server_id": "X",
            "server_name": "x",
            "version": "2.15.1",
            "proto": 1,
            "port": self.port,
            "headers": True,
        }
        facts |= {"max_payload": 1 << 20, "jetstream": True, "auth_required": True, "nonce": "abc"}
        if self.first == "required":
            facts["tls_required"] = True
        if self.first == "available":
            facts["tls_available"] = True
        return facts

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            if self.closes == "at once":
                return
            if self.first:
                facts = await self._stripped() if self.forward else self.info()
                writer.write(b"INFO " + json.dumps(facts).encode() + b"\r\n")
                await writer.drain()
            while data := await reader.read(4096):
                self.heard += data
                if b"PING" in data:
                    writer.write(b"PONG\r\n")
                    if self.closes == "greeted":
                        return
        except (OSError, ssl.SSLError):
            pass
        finally:
            writer.close()

    async def _stripped(self) -> dict[str, Any]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.forward)
        line = await reader.readline()
        writer.close()
        facts: dict[str, Any] = json.loads(line.removeprefix(b"INFO "))
        return {name: value for name, value in facts.items() if not name.startswith("tls_")}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Impostor]:
        """Listen."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self.context)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
