"""A host: one machine's part in the cluster. It runs one nats-server and some nodes, and starts again what ends.

Every host is the same; none is the head. A host tells the others at once when a process of its nodes ended: it was its
parent, so it knows. That is what makes a takeover after a crash fast, without anybody guessing from silence.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgspec

from holdfast import codec, ids, limits
from holdfast.cluster.membership import HOST_SUBJECT, HostBeat
from holdfast.engines.nats.engine import NatsEngine
from holdfast.errors import HoldfastError
from holdfast.host.nats_config import Security, ServerSettings
from holdfast.host.nats_server import NatsServer
from holdfast.node.process import NodeSettings

_RESTART_SECONDS_MIN: Final = 0.2
_RESTART_SECONDS_MAX: Final = 10.0
_STABLE_SECONDS: Final = 10.0
"""A process that lived so long starts again at once."""

_ENDED_MAX: Final = 64

_logger = logging.getLogger(__name__)

Report = Callable[[str, dict[str, Any]], None]
"""Takes an event's name and its facts."""


class HostSettings(msgspec.Struct):
    """Everything that a host is told. ``server`` is None where the servers are somebody else's (``urls``)."""

    name: str
    server: ServerSettings | None
    urls: list[str]
    """Servers to connect to, besides the own one."""
    nodes: int = 1
    apps: list[str] = []
    replicas: int | None = None
    labels: list[str] = []
    capacity: float = 1.0
    """Of each of its nodes."""
    security: Security = Security()


class _NodeChild:
    def __init__(self, name: str) -> None:
        self.name = name
        self.incarnation = ""
        self.process: asyncio.subprocess.Process | None = None
        self.ready = False
        self.error = ""
        self.starts = 0


class Host:
    """See the module. ``report`` hears of each event: ``server``, ``server-ended``,
    ``server-failed``, ``node-ready``, ``node-ended``, ``node-said``."""

    def __init__(self, settings: HostSettings, report: Report) -> None:
        self.settings = settings
        self._report = report
        self._server = None if settings.server is None else NatsServer(settings.server)
        own = [] if self._server is None else [self._server.url]
        self._urls = [*own, *(url for url in settings.urls if url not in own)]
        self._engine: NatsEngine | None = None
        self._children = [_NodeChild(f"{settings.name}-{index + 1}") for index in range(settings.nodes)]
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self._incarnation = ids.new_id("h")
        self._ended: deque[str] = deque(maxlen=_ENDED_MAX)
        """Incarnations whose processes ended."""

    async def start(self) -> None:
        """Start the server and the nodes. Raises `ConfigError`, `NoQuorum`."""
        loop = asyncio.get_running_loop()
        if self._server is not None:
            await self._server.start()
            self._report(
                "server",
                {"server": self._server.settings.name, "server_pid": self._server.pid, "url": self._server.url},
            )
            self._tasks.append(loop.create_task(self._keep_server(self._server)))
        security = self.settings.security
        self._engine = NatsEngine(
            self._urls,
            tls_ca=security.tls_ca,
            tls_cert=security.tls_cert,
            tls_key=security.tls_key,
            user=security.user,
            password=security.password,
        )
        await self._engine.open()
        self._tasks.append(loop.create_task(self._beat()))
        self._tasks += [loop.create_task(self._keep_node(child)) for child in self._children]

    async def failed(self) -> None:
        """Return when one of the parts that keep others alive ended; raises its error."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    # The server ----------------------------------------------------------------------------------------------------

    async def _keep_server(self, server: NatsServer) -> None:
        delay = _RESTART_SECONDS_MIN
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            code = await server.wait()
            if self._stopping:
                return
            self._report("server-ended", {"server": server.settings.name, "code": code})
            delay = (
                _RESTART_SECONDS_MIN
                if loop.time() - started > _STABLE_SECONDS
                else min(delay * 2, _RESTART_SECONDS_MAX)
            )
            while True:
                await asyncio.sleep(delay)
                try:
                    await server.start()
                    break
                except HoldfastError as error:
                    self._report("server-failed", {"server": server.settings.name, "error": str(error)})
                    delay = min(delay * 2, _RESTART_SECONDS_MAX)
            self._report("server", {"server": server.settings.name, "server_pid": server.pid, "url": server.url})

    # Nodes ---------------------------------------------------------------------------------------------------------

    def _say_who_lives(self) -> None:
        if self._engine is not None and self._engine.connected():
            living = [child.incarnation for child in self._children if child.incarnation]
            self._engine.bus.publish(
                HOST_SUBJECT,
                codec.encode_raw(HostBeat(self.settings.name, living, list(self._ended), self._incarnation)),
            )

    async def _beat(self) -> None:
        while True:
            self._say_who_lives()
            await asyncio.sleep(limits.BEAT_SECONDS)

    async def _keep_node(self, child: _NodeChild) -> None:
        loop = asyncio.get_running_loop()
        delay = _RESTART_SECONDS_MIN
        while True:
            started = loop.time()
            code = await self._run_node(child)
            if self._stopping:
                return
            self._report("node-ended", {"node": child.name, "code": code, "error": child.error})
            delay = (
                _RESTART_SECONDS_MIN
                if loop.time() - started > _STABLE_SECONDS
                else min(delay * 2, _RESTART_SECONDS_MAX)
            )
            await asyncio.sleep(delay)

    async def _run_node(self, child: _NodeChild) -> int:
        # The name of its life is known, and said, before it begins: nobody takes a beat of it for a ghost's.
        child.incarnation = ids.new_id("n")
        child.ready, child.error = False, ""
        child.starts += 1
        self._say_who_lives()
        security = self.settings.security
        settings = NodeSettings(
            urls=self._urls,
            parent=os.getpid(),
            apps=self.settings.apps,
            name=child.name,
            host=self.settings.name,
            incarnation=child.incarnation,
            replicas=self.settings.replicas,
            labels=self.settings.labels,
            capacity=self.settings.capacity,
            tls_ca=security.tls_ca,
            tls_cert=security.tls_cert,
            tls_key=security.tls_key,
            user=security.user,
            password=security.password,
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "holdfast.node",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        child.process = process
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(msgspec.json.encode(settings) + b"\n")
        try:
            while line := await process.stdout.readline():
                self._heard(child, process.pid, line)
            return await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            self._ended.append(child.incarnation)
            child.incarnation = ""
            child.process = None
            self._say_who_lives()

    def _heard(self, child: _NodeChild, pid: int, line: bytes) -> None:
        try:
            event = msgspec.json.decode(line)
        except msgspec.DecodeError:
            event = None
        if not isinstance(event, dict) or "event" not in event:
            self._report("node-said", {"node": child.name, "text": line.decode(errors="replace").rstrip()})
        elif event["event"] == "ready":
            child.ready = True
            facts = {
                "node": child.name,
                "node_pid": pid,
                "incarnation": child.incarnation,
                "kinds": event.get("kinds", []),
            }
            self._report("node-ready", facts)
        elif event["event"] == "failed":
            child.error = str(event.get("error", ""))

    def node_pids(self) -> list[int]:
        """The processes of the nodes."""
        return [child.process.pid for child in self._children if child.process is not None]

    # End -----------------------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Have the nodes let go of their shards and end, then the server."""
        if self._stopping:
            return
        self._stopping = True
        processes = [child.process for child in self._children if child.process is not None]
        for process in processes:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
        if processes:
            waits = [asyncio.ensure_future(process.wait()) for process in processes]
            _, late = await asyncio.wait(waits, timeout=limits.DRAIN_SECONDS * 2)
            if late:
                _logger.warning("%d nodes did not end in time and are killed", len(late))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._engine is not None:
            await self._engine.close()
        if self._server is not None:
            await self._server.stop()
