"""The way to a server, and back to one after each loss: the part of a connection that is rare, and
must not be trusted.

nats-py keeps the protocol (INFO, CONNECT, pings, subscriptions). Where to connect, when, over what,
and which errors end in what, is decided here: nats-py believes a server that says that it needs no
TLS, sends a password to addresses that it only heard of, and tries a server that closes at once
hundreds of times a second.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import urlparse

from nats import errors as nats_errors
from nats.aio.client import Client, Srv

from holdfast import chance, limits
from holdfast.engines.nats.certificates import Certificates
from holdfast.engines.nats.pool import Pool, Server
from holdfast.engines.nats.wire import Refused, Wire, explained
from holdfast.errors import ConfigError, NoQuorum

_END_SECONDS: Final = 1.0
"""How long what was written last may take to be sent."""

_logger = logging.getLogger(__name__)


class Link(Client):
    """See the module. ``role``: what it is for, in the log; ``tells``: whether it says there that
    it was lost, and is back."""

    follows_others = True
    """Whether it may go to other servers than those that it was told."""

    def __init__(self, role: str, tells: bool) -> None:
        super().__init__()
        self.reconnections = 0
        self.trouble = ""
        self._role = role
        self._level = logging.WARNING if tells else logging.DEBUG
        self._refused = asyncio.Event()
        """No server can be used: each was tried, and one of them is not trusted, or does not trust
        us."""
        self._closing = False
        self._said = ""
        self._loop: asyncio.AbstractEventLoop
        self._pool: Pool
        self._certificates: Certificates

    def _lost(self) -> None:
        """What is to be done as soon as the connection is lost."""

    async def establish(
        self,
        urls: Sequence[str],
        certificates: Certificates,
        user: str,
        password: str,
        timeout_seconds: float,
    ) -> None:
        """Connect to the first server that answers.

        Raises `NoQuorum`, and `ConfigError` where every server was tried and one of them refuses,
        or is refused.
        """
        self._loop = asyncio.get_running_loop()
        certificates.check()
        self._certificates = certificates
        # Servers tell of others. A password goes to an address that its owner did not name if TLS
        # shows whose it is.
        self._pool = Pool(
            urls, self.follows_others and (certificates.wanted or not user), chance.random()
        )
        options: dict[str, Any] = {"user": user, "password": password} if user else {}
        connecting = self._loop.create_task(
            self.connect(
                [f"nats://{server.where}" for server in self._pool.servers],
                name="holdfast",
                dont_randomize=True,
                ping_interval=1,
                max_outstanding_pings=2,
                error_cb=self._on_error,
                skip_subject_validation=True,
                **options,
            )
        )
        refused = self._loop.create_task(self._refused.wait())
        try:
            await asyncio.wait(
                {connecting, refused}, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED
            )
        except asyncio.CancelledError:
            connecting.cancel()
            await self.shut()
            raise
        finally:
            refused.cancel()
        if connecting.done() and connecting.exception() is None:
            return
        connecting.cancel()
        await asyncio.gather(connecting, return_exceptions=True)
        await self.shut()
        if self._refused.is_set():
            raise ConfigError(self._pool.refusal() or self.trouble)
        places = ", ".join(server.where for server in self._pool.servers if server.given)
        raise NoQuorum(f"no server answers at {places}: {self.trouble or 'no connection'}")

    async def shut(self) -> None:
        """Close, without waiting for what is under way."""
        if self._closing:
            return
        self._closing = True
        self._status = Client.CLOSED
        self._lost()
        tasks = [task for task in (*self._parts(), self._reconnection_task) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._subs.clear()
        if isinstance(self._transport, Wire):
            await self._transport.end(_END_SECONDS)

    def _wire(self) -> Wire:
        assert isinstance(self._transport, Wire)
        return self._transport

    def _parts(self) -> list[asyncio.Task[None] | None]:
        return [self._reading_task, self._ping_interval_task, self._flusher_task]

    async def _on_error(self, error: Exception) -> None:
        text = str(error) or type(error).__name__
        if text != self.trouble:
            _logger.debug("%s says: %s", self._role, text)
        self.trouble = text

    # Connecting -----------------------------------------------------------------------------------

    async def _select_next_server(self) -> None:
        """Connect to a server, the first one that works, however long it takes. nats-py's `connect`
        calls it."""
        while True:
            server, wait_seconds = self._pool.next(self._loop.time())
            await asyncio.sleep(wait_seconds)
            try:
                await self._greet(server)
            except Exception as error:  # whatever a server says, or does not say
                if isinstance(self._transport, Wire):
                    self._transport.abort()
                if _cancelled():
                    raise asyncio.CancelledError from error
                await self._failed(
                    server,
                    explained(error, server.where) if isinstance(error, ssl.SSLError) else error,
                )
            else:
                server.connected(self._loop.time())
                return

    async def _failed(self, server: Server, error: Exception) -> None:
        self._status = Client.RECONNECTING
        refuses = isinstance(error, (Refused, ConfigError)) or "authorization" in str(error).lower()
        text = (
            str(error)
            if server.where in str(error)
            else f"{server.where}: {str(error) or type(error).__name__}"
        )
        await self._on_error(nats_errors.Error(text))
        server.failed(self._loop.time(), self._pool.random, text if refuses else "")
        if refuses and text != self._said and self._reconnection_task is not None:
            self._said = text  # it is tried again, but somebody may have to do something
            _logger.log(self._level, "%s cannot be made again: %s", self._role, text)
        if self._pool.refusal():
            self._refused.set()

    async def _greet(self, server: Server) -> None:
        self._transport = wire = await self._dial(server)
        self._current_server = Srv(urlparse(f"nats://{server.where}"))
        self._ps.reset()
        self.options["connect_timeout"] = server.step_seconds()
        await super()._process_connect_init()
        await self._process_info(wire.news)

    async def _dial(self, server: Server) -> Wire:
        """Connect, over TLS if that is wanted: by the other of the two ways if one fails."""
        # Also after a failure a server is asked in the way of our own ones first.
        hello_first, server.hello_first = server.hello_first, True
        for last in (False, True):
            for name in server.names:
                wire = Wire()
                try:
                    await wire.open(
                        server.host,
                        server.port,
                        name,
                        self._certificates,
                        hello_first,
                        server.step_seconds(),
                    )
                except Refused:
                    if name == server.names[-1]:
                        raise  # else its certificate may have the other name
                except (TimeoutError, ConnectionRefusedError):
                    raise
                except OSError:
                    if last or not self._certificates.wanted:
                        raise
                    break
                else:
                    server.hello_first = hello_first
                    return wire
            hello_first = not hello_first
        raise AssertionError("not reached")

    async def _process_connect_init(self) -> None:
        """Nothing: `_select_next_server` did it."""

    # nats-py's
    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:  # noqa: ARG002
        self._pool.told(info.get("connect_urls"))

    # Coming back ----------------------------------------------------------------------------------

    async def _process_err(self, err_msg: str) -> None:
        # nats-py closes for good at most errors; a process that serves agents comes back.
        await self._on_error(nats_errors.Error(err_msg))
        if "permissions violation" not in err_msg:
            await self._process_op_err(nats_errors.Error(err_msg))

    async def _process_op_err(self, e: Exception) -> None:
        """The connection is lost. Whoever notices first begins the one task that brings it back."""
        if self._closing or not self.is_connected:
            return
        self._status = Client.RECONNECTING
        self._pool.current.lost(self._loop.time(), self._pool.random)
        await self._on_error(e)
        self._lost()
        if self._reconnection_task is None or self._reconnection_task.done():
            _logger.log(
                self._level,
                "%s to %s was lost: %s",
                self._role,
                self._pool.current.where,
                self.trouble,
            )
            self._reconnection_task = self._loop.create_task(self._attempt_reconnect())

    async def _attempt_reconnect(self) -> None:
        while self.is_reconnecting and not self._closing:
            for part in self._parts():
                if part is not None:
                    part.cancel()
            self._wire().abort()
            await self._select_next_server()
            for number, sub in self._subs.items():
                self._wire().write(f"SUB {sub._subject} {sub._queue} {number}\r\n".encode())
            self.reconnections += 1
            # one that is lost again at once is not said to be back
            await asyncio.sleep(limits.RECONNECT_SECONDS_MIN)
        self._said = ""
        if not self._closing:
            _logger.log(self._level, "%s is back, to %s", self._role, self._pool.current.where)


def _cancelled() -> bool:
    """Whether the running task was told to end. nats-py waits in ways that lose this, with Python
    3.11."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
