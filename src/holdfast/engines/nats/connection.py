"""One connection to a server: nats-py's client, with a reader and a writer of our own on the hot
path.

nats-py makes a `Msg`, a queue entry and a task switch of every message. Here a message is handed to
its callback as it is parsed, with its headers as bytes, and all that one tick of the loop sends is
written at once. What is rare (INFO, PING, reconnection, TLS) stays nats-py's business.

What cannot be sent now is dropped or refused, never kept for later: a batch that is sent after a
reconnection would be one that its writer believes lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from nats import errors as nats_errors
from nats.aio.subscription import Subscription as NatsSubscription
from nats.protocol.parser import Parser

from holdfast import limits
from holdfast.engines.nats.certificates import Certificates
from holdfast.engines.nats.link import Link
from holdfast.errors import Closed, NoQuorum, NoResponders, Unknown
from holdfast.ids import new_id

Callback = Callable[[str, str, bytes, bytes], None]
"""Takes (subject, reply, headers, payload); headers are empty where there are none. It does not
raise."""

_BUFFERED_BYTES_MAX: Final = 64 * 1024 * 1024
"""More than this waiting for a socket means a server that does not read."""

_logger = logging.getLogger(__name__)


class _Parser(Parser):
    """Messages straight to their callbacks; everything else as nats-py does it."""

    nc: Connection

    def reset(self) -> None:
        super().reset()
        self._rest = b""

    async def parse(self, data: bytes = b"") -> None:
        buffer = self._rest + data if self._rest else data
        callbacks = self.nc.callbacks
        position, end = 0, len(buffer)
        while position < end:
            line_end = buffer.find(b"\r\n", position)
            if line_end < 0:
                break
            operation = buffer[position]
            start = line_end + 2
            # MSG subject sid [reply] size, HMSG … header size
            if operation == 0x4D or operation == 0x48:
                parts = buffer[position:line_end].split()
                try:
                    size, number = int(parts[-1]), int(parts[2])
                except (ValueError, IndexError):
                    raise nats_errors.ProtocolError from None
                position_after = start + size + 2
                if position_after > end:
                    break
                callback = callbacks.get(number)
                if callback is not None:
                    headed = operation == 0x48
                    payload_at = start + int(parts[-2]) if headed else start
                    try:
                        reply = parts[3].decode() if len(parts) == (6 if headed else 5) else ""
                        callback(
                            parts[1].decode(),
                            reply,
                            buffer[start:payload_at],
                            buffer[payload_at : start + size],
                        )
                    except UnicodeDecodeError:
                        pass  # somebody published under a name that is not text: it is not for us
                    except Exception:
                        _logger.exception("the callback of %s failed", parts[1])
                position = position_after
            else:
                self.buf = bytearray(buffer[position:start])
                position = start
                await super().parse()
        self._rest = buffer[position:]


class Connection(Link):
    """See the module. ``on_disconnect`` is called each time the connection is lost."""

    def __init__(self, role: str = "the connection", tells: bool = False) -> None:
        super().__init__(role, tells)
        self._ps: Parser = _Parser(self)
        self.callbacks: dict[int, Callback] = {}
        self.on_disconnect: list[Callable[[], None]] = []
        self.unanswered = 0
        self.sent_bytes = 0
        self._inbox = new_id("hf.i")
        self._requests: dict[int, asyncio.Future[tuple[bytes, bytes]]] = {}
        self._request = 0
        self._out: list[bytes] = []

    async def open(
        self,
        urls: Sequence[str],
        certificates: Certificates,
        user: str,
        password: str,
        timeout_seconds: float,
    ) -> None:
        """Connect to the first server that answers. Raises `NoQuorum`, `ConfigError` where it is
        not to be."""
        await self.establish(urls, certificates, user, password, timeout_seconds)
        await self.listen(f"{self._inbox}.*", self._on_reply)

    async def shut(self) -> None:
        """Close, without waiting for what is under way: its outcome is `Unknown`."""
        self._write_out()
        await super().shut()

    def _lost(self) -> None:
        """No answer will come on this connection any more."""
        self._out.clear()
        requests, self._requests = self._requests, {}
        for future in requests.values():
            if not future.done():
                future.set_exception(Unknown("the connection was lost before the answer came"))
        if not self._closing:
            for callback in self.on_disconnect:
                callback()

    # Writing --------------------------------------------------------------------------------------

    def ready(self) -> bool:
        """Whether what is sent now goes to a socket."""
        return self.is_connected and not self._closing

    def send(self, data: bytes) -> bool:
        """Write with all else of this tick. False: it was dropped, and will never be sent."""
        if not self.ready():
            return False
        if not self._out:
            self._loop.call_soon(self._write_out)
        self._out.append(data)
        return True

    def _write_out(self) -> None:
        out, self._out = self._out, []
        writer = getattr(self._transport, "_io_writer", None)
        if not out or writer is None or not self.ready() or writer.transport.is_closing():
            return
        if writer.transport.get_write_buffer_size() > _BUFFERED_BYTES_MAX:
            self.trouble = "the server does not read: what is sent to it is dropped"
            return
        data = b"".join(out)
        self.sent_bytes += len(data)
        writer.write(data)

    # Reading --------------------------------------------------------------------------------------

    async def listen(self, subject: str, callback: Callback, queue: str = "") -> int:
        """Subscribe, and return the subscription's number once the server knows of it. Raises
        `Closed`, `NoQuorum`."""
        if self._closing:
            raise Closed("the engine was closed")
        self._sid += 1
        number = self._sid
        self.callbacks[number] = callback
        # nats-py says it again to the next server after a reconnection.
        self._subs[number] = NatsSubscription(self, number, subject, queue)
        if self.send(f"SUB {subject} {queue} {number}\r\n".encode()):
            self._write_out()
            try:
                await self._read_by_server(limits.APPEND_TIMEOUT_SECONDS)
            except (nats_errors.Error, OSError) as error:
                if self._closing:
                    raise Closed("the engine was closed") from None
                self.trouble = str(error)  # it is said again when the connection is back
        return number

    async def _read_by_server(self, timeout_seconds: float) -> None:
        """Wait until the server has read all that was sent. Raises `TimeoutError`, or errors of
        nats-py.

        Not nats-py's `flush`: on Python 3.11 it loses a cancellation that comes together with the
        answer, and whoever cancelled waits for ever.
        """
        answered: asyncio.Future[bool] = self._loop.create_future()
        await self._send_ping(answered)
        _, late = await asyncio.wait([answered], timeout=timeout_seconds)
        if late:
            raise TimeoutError("the server does not answer a ping")

    def unlisten(self, number: int) -> None:
        """End a subscription."""
        self.callbacks.pop(number, None)
        if self._subs.pop(number, None) is not None:
            self.send(f"UNSUB {number}\r\n".encode())

    async def unlisten_in_order(self, number: int) -> None:
        """End a subscription once all that the server sent before it heard of the end has
        arrived."""
        if self._subs.pop(number, None) is not None and self.send(f"UNSUB {number}\r\n".encode()):
            self._write_out()
            try:
                with suppress(nats_errors.Error, OSError):
                    await self._read_by_server(1.0)
            finally:
                self.callbacks.pop(number, None)
        self.callbacks.pop(number, None)

    # Asking ---------------------------------------------------------------------------------------

    def open_request(self) -> tuple[int, str, asyncio.Future[tuple[bytes, bytes]]]:
        """A number, the reply subject to give, and the future of (headers, payload)."""
        self._request = number = self._request + 1
        future: asyncio.Future[tuple[bytes, bytes]] = self._loop.create_future()
        self._requests[number] = future
        return number, f"{self._inbox}.{number}", future

    def open_request_again(self, number: int) -> asyncio.Future[tuple[bytes, bytes]]:
        """The future of one more answer to a request that was answered."""
        self._requests[number] = future = self._loop.create_future()
        return future

    async def answer(
        self, number: int, future: asyncio.Future[tuple[bytes, bytes]], timeout_seconds: float
    ) -> tuple[bytes, bytes]:
        """Await an answer. Raises `Unknown` after the timeout, or when the connection is lost."""
        timer = self._loop.call_later(timeout_seconds, self._late, number, timeout_seconds)
        try:
            return await future
        finally:
            timer.cancel()
            self._requests.pop(number, None)

    def answer_within(self, number: int, timeout_seconds: float) -> None:
        """Wait no longer than this for an answer that is awaited."""
        self._loop.call_later(timeout_seconds, self._late, number, timeout_seconds)

    def _late(self, number: int, timeout_seconds: float) -> None:
        future = self._requests.pop(number, None)
        if future is not None and not future.done():
            self.unanswered += 1
            future.set_exception(Unknown(f"no answer within {timeout_seconds} s"))

    async def ask(
        self, subject: str, payload: bytes, timeout_seconds: float
    ) -> tuple[bytes, bytes]:
        """Ask, and return (headers, payload). Raises `NoQuorum` where nothing was sent,
        `NoResponders`, `Unknown`."""
        number, reply, future = self.open_request()
        if not self.send(
            b"PUB %s %s %d\r\n%s\r\n" % (subject.encode(), reply.encode(), len(payload), payload)
        ):
            self._requests.pop(number, None)
            if self._closing:
                raise Closed("the engine was closed")
            raise NoQuorum(f"no server is reached: {self.trouble or 'not connected'}")
        headers, answer = await self.answer(number, future, timeout_seconds)
        if status(headers) == 503 and not answer:
            raise NoResponders(f"nobody serves {subject}")
        return headers, answer

    def _on_reply(self, subject: str, _reply: str, headers: bytes, payload: bytes) -> None:
        future = self._requests.pop(int(subject.rpartition(".")[2]), None)
        if future is not None and not future.done():
            future.set_result((headers, payload))


def status(headers: bytes) -> int:
    """The status in the first line of headers (``NATS/1.0 503``), 0 where there is none."""
    text = headers[9:12]
    return int(text) if text.isdigit() else 0


def header(headers: bytes, name: bytes) -> str:
    """The value of a header, empty where it is missing. ``name`` as the server writes it."""
    start = headers.find(b"\r\n" + name + b":")
    if start < 0:
        return ""
    start += len(name) + 3
    return headers[start : headers.find(b"\r\n", start)].strip().decode()
