"""One TCP connection to a server, over TLS where TLS is wanted: nothing is said before the server
has proved who it is.

NATS was made so that a server says in clear whether it uses TLS. A client that believes this sends
its password to anybody who can stand in between and leaves the word out. Here TLS is a condition.
The client begins with the handshake, which servers of our hosts expect. A server that speaks first
must say that it uses TLS, and then prove it. Else the connection ends, before a byte of ours was
sent that says anything.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from contextlib import suppress
from typing import Any, Final

from nats.aio.transport import TcpTransport

from holdfast.engines.nats.certificates import Certificates

_READ_BYTES: Final = 64 * 1024
_ALERTS: Final = ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED", "DECRYPT_ERROR")


class Refused(OSError):
    """Trying again will not help: this server is not to be trusted, or does not trust us."""


class _Protocol(asyncio.StreamReaderProtocol):
    def eof_received(self) -> bool:
        super().eof_received()
        return False  # what asyncio does over TLS in any case, after a warning


class Wire(TcpTransport):
    """nats-py's transport; see the module. Open it with `open`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # nats-py's
        self._greeting = b""
        self._greeted = False
        self.secured = False
        self.news: dict[str, Any] = {}
        """What the server said of itself after its greeting, before it answered."""

    async def open(
        self,
        host: str,
        port: int,
        name: str,
        certificates: Certificates,
        hello_first: bool,
        timeout_seconds: float,
    ) -> None:
        """Connect; with TLS to a server that proves to be ``name``, if TLS is wanted.

        ``hello_first``: begin with the handshake; else read what the server says first. Raises
        `Refused`, `OSError`, `TimeoutError`, `ConfigError`.
        """
        where = f"{host}:{port}"
        first = certificates.wanted and hello_first
        options: dict[str, Any] = (
            {"ssl": certificates.context(), "server_hostname": name} if first else {}
        )
        try:
            async with asyncio.timeout(timeout_seconds):
                reader, self._bare_io_writer = await asyncio.open_connection(
                    host, port, limit=_READ_BYTES, **options
                )
        except ssl.SSLError as error:
            raise explained(error, where, certificates.authority) from None
        self._bare_io_reader, self._io_reader, self._io_writer = (
            reader,
            reader,
            self._bare_io_writer,
        )
        self.secured = first
        if first or not certificates.wanted:
            return
        try:
            async with asyncio.timeout(timeout_seconds):
                self._greeting = await reader.readline()
            _check_greeting(self._greeting, where)
            await self._secure(name, certificates, where, timeout_seconds)
        except BaseException:
            self.abort()
            raise

    async def _secure(
        self, name: str, certificates: Certificates, where: str, timeout_seconds: float
    ) -> None:
        assert self._bare_io_writer is not None
        # A reader of its own: what came in clear behind the greeting is not taken for what came
        # over TLS.
        reader = asyncio.StreamReader(limit=_READ_BYTES)
        protocol = _Protocol(reader)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_seconds):
                transport = await loop.start_tls(
                    self._bare_io_writer.transport,
                    protocol,
                    certificates.context(),
                    server_hostname=name,
                )
        except ssl.SSLError as error:
            raise explained(error, where, certificates.authority) from None
        if transport is None:
            raise ConnectionResetError(f"{where} closed the connection")
        reader.set_transport(transport)
        self._io_reader = reader
        self._io_writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        self.secured = True

    async def connect_tls(  # nats-py calls it
        self,
        uri: Any,
        ssl_context: Any,  # noqa: ARG002
        buffer_size: int,  # noqa: ARG002
        connect_timeout: int,
    ) -> None:
        """Do what nats-py asks for if a server wants TLS, also where this side did not: the server
        has to prove itself."""
        if not self.secured:
            await self._secure(str(uri), Certificates(wanted=True), str(uri), connect_timeout)

    async def readline(self) -> bytes:
        """The server's greeting, then its answer to the first ping. Raises `ConnectionError` where
        neither comes.

        nats-py takes whatever comes for an answer. Where a server closes, or says something else
        first, it would be neither connected nor failed, for ever.
        """
        if not self._greeted:
            self._greeted = True
            return self._greeting or await self._next_line()
        while True:
            line = await self._next_line()
            if line == b"PONG\r\n" or line.startswith(b"-ERR"):
                return line
            if line == b"PING\r\n":
                self.write(b"PONG\r\n")
            elif facts := _facts(line):
                self.news = facts
            else:
                raise ConnectionError("it does not speak as a NATS server does")

    async def _next_line(self) -> bytes:
        assert self._io_reader is not None
        line = await self._io_reader.readline()
        if not line.endswith(b"\n"):
            raise ConnectionResetError("it closed the connection before it had answered")
        return line

    def write(self, payload: bytes) -> None:
        """Send, when the socket takes it."""
        assert self._io_writer is not None
        self._io_writer.write(payload)

    async def end(self, timeout_seconds: float) -> None:
        """Close, with what was written still sent. It raises nothing."""
        if self._io_writer is not None:
            self._io_writer.close()
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(timeout_seconds):
                    await self._io_writer.wait_closed()

    def abort(self) -> None:
        """Close at once."""
        for writer in (self._io_writer, self._bare_io_writer):
            if writer is not None:
                writer.transport.abort()


def explained(error: ssl.SSLError, where: str, authority: str = "") -> OSError:
    """A failed handshake in words: `Refused` if one side does not take the other's certificate."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return Refused(
            f"the certificate of {where} is not trusted: {error.verify_message or error.reason}. "
            "Is it the server that you mean, and is its certificate signed by "
            f"{authority or 'an authority that this machine knows'} (tls_ca)?"
        )
    reason = (error.reason or str(error)).upper()
    if "ALERT" in reason and any(word in reason for word in _ALERTS):
        return Refused(
            f"{where} does not take our certificate ({reason.lower().replace('_', ' ')}): give "
            "tls_cert and tls_key that its authority signed, and that have not ended"
        )
    return ConnectionError(f"{where}: {error.reason or error}")


def _facts(line: bytes) -> dict[str, Any]:
    """What a server says of itself in an INFO line; empty where it is none."""
    try:
        facts = json.loads(line.removeprefix(b"INFO ")) if line.startswith(b"INFO ") else None
    except (ValueError, RecursionError):
        facts = None
    return facts if isinstance(facts, dict) else {}


def _check_greeting(line: bytes, where: str) -> None:
    facts = _facts(line)
    if not facts:
        raise ConnectionError(f"{where} is not a NATS server, or closed the connection at once")
    if facts.get("tls_required") is not True and facts.get("tls_available") is not True:
        raise Refused(
            f"{where} does not offer TLS, and TLS was asked for, so nothing was sent to it. Is it "
            "the server that you mean? Give the server certificates, or leave tls:// and the "
            "certificates out"
        )
