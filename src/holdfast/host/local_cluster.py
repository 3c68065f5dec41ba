"""Complete hosts on one machine's loopback interface: for development, tests and demonstrations.

Each host is a process of its own with its own server, directory and ports, and its nodes as
children; killing it takes all of them down at once, as a machine's loss does. What they stored is
found again by the next start.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from holdfast import files, ids, loops, signals
from holdfast.children import share
from holdfast.cluster.facts.cohort import SIZES
from holdfast.errors import ConfigError, DataLoss
from holdfast.host import addresses, frozen, state
from holdfast.host.directory import DirectoryLock, Started, agree, explain, remember
from holdfast.host.host_child import HostChild
from holdfast.host.server.keeper import RESTART_SECONDS_MIN, STABLE_SECONDS, longer
from holdfast.host.server.nats_config import ServerSettings
from holdfast.host.server.nats_server import free_ports
from holdfast.host.settings import HostSettings, Report
from holdfast.pipes import Writer
from holdfast.said import SAID_EVENTS, said_line
from holdfast.security import Security


class Place(msgspec.Struct, frozen=True):
    """Where one host runs, and how it reaches the others: by default all of them share the loopback
    interface.

    ``routes``: the servers of those that found the cluster as HOST:PORT, empty for one that joins
    it later. ``others``: URLs of the other hosts' servers.
    """

    port: int
    cluster_port: int
    routes: tuple[str, ...]
    others: tuple[str, ...]
    listen: str = "127.0.0.1"
    security: Security = Security()
    gossip: bool = True
    command: tuple[str, ...] = ()
    """What its command line begins with, to put it into a network of its own."""

    @property
    def url(self) -> str:
        """Where clients connect."""
        scheme = "tls" if self.security.tls_cert else "nats"
        return f"{scheme}://{addresses.join(self.listen, self.port)}"


def _on_loopback(hosts: int, founders: int, ports: int) -> list[Place]:
    """Places that share the loopback interface, from a first port on; 0 takes free ones."""
    found = list(range(ports, ports + 2 * hosts)) if ports else free_ports(2 * hosts)
    clients, cluster = found[:hosts], found[hosts:]
    routes = tuple(f"127.0.0.1:{port}" for port in cluster[:founders]) if hosts > 1 else ()
    urls = tuple(f"nats://127.0.0.1:{port}" for port in clients)
    return [
        Place(clients[i], cluster[i], routes if i < founders else (), urls[i + 1 :] + urls[:i])
        for i in range(hosts)
    ]


class LocalCluster:
    """Hosts ``h1``, ``h2``, … with nodes ``h1-1``, …; use it with ``async with``.

    ``hosts``: 1, 3 or 5 vote; those beyond have joined without a vote. ``directory``: where the
    hosts keep their logs. ``apps``: what the nodes serve, as `holdfast up` takes it. ``ports``: the
    first port to use; 0 takes free ones. ``labels``: of each host's nodes. ``report``: hears of
    each event with the host's name, also of each line that a node or host prints. ``places``: where
    each host runs, instead of all on loopback. ``log``: a file that gets what they print; without
    it and without ``report``, this process's standard error does. ``lock``: on the directory, where
    it was taken already.
    """

    def __init__(
        self,
        directory: str | Path,
        apps: Sequence[str] = (),
        *,
        hosts: int = 3,
        nodes: int = 1,
        ports: int = 0,
        labels: Mapping[str, Sequence[str]] | None = None,
        report: Report | None = None,
        places: Sequence[Place] = (),
        log: str | Path = "",
        lock: DirectoryLock | None = None,
    ) -> None:
        if hosts < 1 or hosts == 2:
            raise ConfigError(
                f"a cluster has 1 host, or 3 and more, not {hosts}: two are no safer than one"
            )
        if nodes < 0:
            raise ConfigError(f"a host has 0 or more nodes, not {nodes}")
        directory = self._directory = Path(directory)
        founders = max(size for size in SIZES if size <= hosts)
        if ports and not 0 < ports <= 65536 - 2 * hosts:
            raise ConfigError(
                f"{hosts} hosts need the ports {ports} to {ports + 2 * hosts - 1}: there are none "
                "above 65535"
            )
        self._lock = lock or DirectoryLock(directory)
        self._started = Started(hosts, below=True)
        self._labels = labels or {}
        self._apps, self._nodes = [_absolute(app) for app in apps], nodes
        places = places or _on_loopback(hosts, founders, ports)
        if len(places) != hosts:
            raise ConfigError(f"{hosts} hosts need as many places, not {len(places)}")
        self.urls = [place.url for place in places]
        self._report = report or (_ignore if log else self._print)
        self._log = Path(log) if log else None
        self._writer = Writer(self._write)
        self._hosts: dict[str, HostChild] = {}
        for index, place in enumerate(places):
            self._add(f"h{index + 1}", place, founders)

    def _add(self, name: str, place: Place, replicas: int | None) -> None:
        server = ServerSettings(
            name,
            str((self._directory / name).resolve()),
            place.listen,
            place.port,
            cluster_port=place.cluster_port,
            routes=place.routes,
            gossip=place.gossip,
            security=place.security,
            processors=share(len(self.urls)),
        )
        join = "" if place.routes or len(self.urls) == 1 else self.urls[0].partition("://")[2]
        settings = HostSettings(
            name, server, list(place.others), self._nodes, self._apps, None if join else replicas,
            security=place.security, join=join,
        )  # fmt: skip
        settings.labels = list(self._labels.get(name, ()))
        self._hosts[name] = HostChild(settings, place.command, self._heard)

    def _heard(self, event: str, facts: dict[str, Any]) -> None:
        if self._log is not None and event in SAID_EVENTS:
            self._print(event, facts)
        self._report(event, facts)

    def _print(self, event: str, facts: dict[str, Any]) -> None:
        if event in SAID_EVENTS:
            self._writer.put(said_line(facts))

    def _write(self, line: str) -> None:
        if self._log is None:
            with suppress(ValueError, AttributeError):  # it is closed, or there is none
                sys.stderr.write(f"{line}\n")
                sys.stderr.flush()
        else:
            with files.appending(self._log) as file:
                file.write(f"{line}\n".encode(errors="backslashreplace"))

    async def add_host(self, name: str, timeout_seconds: float = 60.0) -> None:
        """Start one more host on loopback, which joins without a vote; return once its nodes are
        ready.

        Raises `ConfigError`.
        """
        if name in self._hosts:
            raise ConfigError(f"there is a host {name!r}: give the new one another name")
        ids.check_machine(name, "host")
        port, cluster_port = free_ports(2)
        place = Place(port, cluster_port, (), tuple(self.urls))
        self.urls.append(place.url)
        self._add(name, place, None)
        await self.start_host(name, timeout_seconds)

    @property
    def hosts(self) -> list[str]:
        """Their names."""
        return list(self._hosts)

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.kill()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self, timeout_seconds: float = 60.0) -> None:
        """Start the hosts, and return once all their nodes are ready. Raises `ConfigError` with
        what went wrong."""
        for joining in (False, True):
            names = [
                name for name, host in self._hosts.items() if bool(host.settings.join) is joining
            ]
            await loops.together(*(self.start_host(name, timeout_seconds) for name in names))

    async def start_host(self, name: str, timeout_seconds: float = 60.0) -> None:
        """Start one host, and return once its nodes are ready. Raises `ConfigError`."""
        await loops.in_thread(self._lock.take)
        agree(self._directory, self._started)
        remember(self._directory, self._started)
        self._refuse_loss(name, self._lost())
        self._note_one(self._find(name).settings)
        await self._find(name).start(timeout_seconds)

    async def keep(self) -> None:
        """Start each host again that ends by itself, with pauses that grow; until it is cancelled.

        One that is stopped (``SIGSTOP``) is said, and killed when that lasts, with its server and
        nodes. Raises `DataLoss` where so many hosts lost their directories that they would begin an
        empty cluster.
        """
        await loops.together(
            *(work(name) for name in self._hosts for work in (self._keep, self._watch_frozen))
        )

    async def _watch_frozen(self, name: str) -> None:
        host = self._find(name)

        async def goes_on() -> bool:
            return True  # as far as is known here, whoever is not stopped does

        await frozen.watch(
            "host",
            lambda: host.pid,
            goes_on,
            lambda event, facts: self._report(event, {"host": name, **facts}),
            lambda: self.kill_host(name),
        )

    async def _keep(self, name: str) -> None:
        host, delay, loop = self._find(name), RESTART_SECONDS_MIN, asyncio.get_running_loop()
        while True:
            started = loop.time()
            await host.ended()
            delay = RESTART_SECONDS_MIN if loop.time() - started > STABLE_SECONDS else longer(delay)
            await asyncio.sleep(delay)
            try:
                self._refuse_loss(
                    name,
                    [other for other in self._hosts if not self._has_state(other)] + self._lost(),
                )
                await self.start_host(name)
            except (ConfigError, OSError, subprocess.SubprocessError) as error:
                self._report("host-failed", {"host": name, "error": str(error)})
                await host.stop()

    def _has_state(self, name: str) -> bool:
        return state.is_there(self._directory / name)

    def _lost(self) -> list[str]:
        return [name for name in self._hosts if state.is_lost(self._directory / name)]

    def _refuse_loss(self, name: str, gone: list[str]) -> None:
        """Raises `DataLoss` for one of half of those who vote, or more, whose data are gone."""
        voters = [other for other in self._hosts if state.counts(self._directory / other)]
        if name in gone and len(gone) * 2 >= len(voters):
            left = [
                str(path)
                for other in sorted(gone)
                for path in state.stores_aside(self._directory / other)
            ]
            aside = (
                f". Stores that were put aside may be all that is left: {', '.join(left)}"
                if left
                else ""
            )
            raise DataLoss(
                f"{', '.join(sorted(gone))} below {self._directory} lost their data: they are not "
                "started again, as they would begin an empty cluster. Restore a backup into a new "
                f"--dir, or remove this one to begin anew{aside}"
            )

    def _note_one(self, settings: HostSettings) -> None:
        """Keep what one host was started as: it is not to be started alone. Raises
        `ConfigError`."""
        if settings.server is None:
            return
        directory, name = self._directory / settings.name, settings.name
        try:
            files.make_directory(directory)
        except OSError as error:
            raise ConfigError(explain(error, directory)) from None
        remember(directory, Started(1, False, name, settings.server.routes, settings.join))

    def reload(self) -> None:
        """Have all hosts read their settings and certificates again."""
        for host in self._hosts.values():
            host.send_signal(signal.SIGHUP)

    def kill_at_once(self) -> None:
        """``kill -9`` all processes, without waiting."""
        signals.kill([pid for name in self._hosts for pid in self.pids(name)])

    def _find(self, name: str) -> HostChild:
        try:
            return self._hosts[name]
        except KeyError:
            raise ConfigError(
                f"there is no host {name!r}: there are {', '.join(self._hosts)}"
            ) from None

    def settings_of(self, name: str) -> HostSettings:
        """What a host was told. Raises `ConfigError`."""
        return self._find(name).settings

    async def ended(self, name: str) -> None:
        """Return when a host's process has ended."""
        await self._find(name).ended()

    def node_pid(self, node: str) -> int:
        """The process of a node, such as ``h1-1``. Raises `ConfigError` where it does not run."""
        pid = self._find(node.partition("-")[0]).nodes.get(node)
        if pid is None:
            raise ConfigError(f"node {node} does not run")
        return pid

    def server_pid(self, host: str) -> int:
        """The process of a host's nats-server."""
        return self._find(host).server_pid

    def pids(self, host: str) -> list[int]:
        """All processes of a host that are known to run: its own, its server, its nodes."""
        found = self._find(host)
        if not found.pid:
            return []
        return [pid for pid in (found.pid, found.server_pid, *found.nodes.values()) if pid]

    def kill_node(self, node: str) -> int:
        """``kill -9`` a node; its host starts it again. Return the process that was killed."""
        pid = self.node_pid(node)
        self._find(node.partition("-")[0]).nodes.pop(node)
        os.kill(pid, signal.SIGKILL)
        return pid

    async def kill_host(self, name: str) -> None:
        """``kill -9`` a host; its server and its nodes die with it."""
        host = self._find(name)
        pids = self.pids(name)
        if host.process is not None and host.process.returncode is None:
            host.process.kill()
            await host.process.wait()
        for pid in pids[1:]:  # where the kernel does not see to it
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if host.reader is not None:
            await asyncio.gather(host.reader, return_exceptions=True)

    async def kill(self) -> None:
        """``kill -9`` all hosts."""
        await asyncio.gather(*(self.kill_host(name) for name in self._hosts))
        self._lock.release()
        await asyncio.to_thread(self._writer.close)

    async def stop(self) -> None:
        """End all hosts in order."""
        await asyncio.gather(*(self.stop_host(name) for name in self._hosts))
        self._lock.release()
        await asyncio.to_thread(self._writer.close)

    async def stop_host(self, name: str) -> None:
        """End a host in order, as `SIGTERM` does; it keeps its part in the cluster."""
        await self._find(name).stop()


def _absolute(app: str) -> str:
    """A file's path that does not depend on the directory, also with ``:Class`` behind it."""
    where, colon, names = app.partition(".py:")
    path = where + ".py" if colon else app
    if path.endswith(".py"):
        return str(Path(path).resolve()) + (f":{names}" if colon else "")
    return app


def _ignore(_event: str, _facts: dict[str, Any]) -> None:
    pass
