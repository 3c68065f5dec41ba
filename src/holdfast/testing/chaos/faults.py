"""What chaos does to a real cluster: processes that are killed or frozen, networks that are cut, a
disk that is full.

Each harm has a host that it is done to and a length, and is undone before it returns.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Final

import msgspec

from holdfast.agents.ref import AgentRef
from holdfast.errors import ConfigError, HandlerFailed, HoldfastError
from holdfast.host.host_child import HostChild
from holdfast.host.local_cluster import LocalCluster
from holdfast.host.server.nats_config import ServerSettings
from holdfast.host.server.nats_server import free_ports
from holdfast.host.settings import HostSettings
from holdfast.node.node import Node
from holdfast.testing.chaos.network import Network
from holdfast.testing.chaos.nuisance import Nuisance

_FLAP_SECONDS: Final = (0.1, 1.5)
_NOTICED_SECONDS: Final = 60.0
_AGAIN_SECONDS: Final = 120.0
_NUISANCE_SECONDS: Final = 60.0
"""How long a handler that does harm may take until its caller hears of it."""

KINDS: Final = {
    "kill-node": "kill -9 of a node's process; its host starts it again",
    "kill-server": "kill -9 of a host's nats-server; its host starts it again",
    "kill-host": "kill -9 of all processes of a host, which is started again after a while",
    "freeze-node": "SIGSTOP of a node's process, later SIGCONT",
    "freeze-server": "SIGSTOP of a host's nats-server, later SIGCONT",
    "freeze-host": "SIGSTOP of all processes of a host, later SIGCONT",
    "partition": "a host and the others do not reach each other",
    "one-way": "what a host sends does not arrive, or what is sent to it does not",
    "cut-link": "two hosts do not reach each other; both reach the others",
    "flapping": "a host is cut off and not, several times a second or once in some seconds",
    "renew-certificates": "all hosts get new certificates, and read them",
    "disk-full": "the last host's disk has no byte free",
    "lose-disk": "all files of a host are removed while it runs; once in a run",
    "second-host": "another host is started in a host's directory",
    "loop-handler": "a handler on a host never returns",
    "block-handler": "a handler on a host keeps its node's loop from running",
    "print-handler": "a handler on a host prints what a host could take for more than text",
}


def parse(names: Iterable[str]) -> list[str]:
    """Kinds of harm by their names. Raises `ConfigError`."""
    found = [name.strip() for name in names if name.strip()]
    for name in found:
        if name not in KINDS:
            raise ConfigError(f"there is no harm {name!r}; there are {', '.join(KINDS)}")
    return found


class Harms:
    """See the module. ``random``: for what a harm decides itself."""

    def __init__(self, cluster: LocalCluster, network: Network, node: Node, random: Random) -> None:
        self._cluster = cluster
        self._network = network
        self._node = node
        self._random = random
        self._busy: set[str] = set()
        self._lost_disk = False
        self._cuts: Counter[tuple[int, int]] = Counter()
        """How many harms that are under way have cut each way from a host to another."""

    def free_hosts(self, kind: str) -> list[str]:
        """Hosts that nothing is done to at this moment, and that this kind of harm can be done
        to."""
        if kind == "lose-disk" and self._lost_disk:
            # a second one, before the first has its copies again, would be a majority's loss
            return []
        hosts = self._cluster.hosts[-1:] if kind == "disk-full" else self._cluster.hosts
        return [host for host in hosts if host not in self._busy]

    async def do(self, kind: str, host: str, seconds: float) -> bool:
        """Do a harm and undo it; False where it could not be done, as what it is done to does not
        run."""
        actions: dict[str, Callable[[str, float], Awaitable[None]]] = {
            "kill-node": self._kill_node,
            "kill-server": self._kill_server,
            "kill-host": self._kill_host,
            "freeze-node": lambda host, seconds: self._freeze([self._node_pid(host)], seconds),
            "freeze-server": lambda host, seconds: self._freeze(
                [self._cluster.server_pid(host)], seconds
            ),
            "freeze-host": lambda host, seconds: self._freeze(self._cluster.pids(host), seconds),
            "partition": self._partition,
            "one-way": self._one_way,
            "cut-link": self._cut_link,
            "flapping": self._flapping,
            "renew-certificates": self._renew,
            "disk-full": self._fill_disk,
            "lose-disk": self._lose_disk,
            "second-host": self._second_host,
            "loop-handler": self._loop_handler,
            "block-handler": self._block_handler,
            "print-handler": self._print_handler,
        }
        with self._held(host):
            try:
                await actions[kind](host, seconds)
            except HandlerFailed:
                return True  # which is how a handler that loops, or blocks for long, is to end
            except (ProcessLookupError, HoldfastError):
                return False
        return True

    @contextmanager
    def _held(self, host: str) -> Iterator[None]:
        self._busy.add(host)
        try:
            yield
        finally:
            self._busy.discard(host)

    # Processes ------------------------------------------------------------------------------------

    def _node_pid(self, host: str) -> int:
        return self._cluster.node_pid(f"{host}-1")

    async def _kill_node(self, host: str, _seconds: float) -> None:
        self._cluster.kill_node(f"{host}-1")

    async def _kill_server(self, host: str, _seconds: float) -> None:
        os.kill(self._cluster.server_pid(host), signal.SIGKILL)

    async def _kill_host(self, host: str, seconds: float) -> None:
        await self._cluster.kill_host(host)
        await asyncio.sleep(seconds)
        await self._cluster.start_host(host)

    async def _freeze(self, pids: list[int], seconds: float) -> None:
        if not pids:
            raise ProcessLookupError
        try:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(seconds)
        finally:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    # The network ----------------------------------------------------------------------------------

    def _number(self, host: str) -> int:
        return self._cluster.hosts.index(host)

    def _others(self, host: str) -> list[int]:
        return [
            number for number in range(len(self._cluster.hosts)) if number != self._number(host)
        ]

    async def _cut(self, ways: list[tuple[int, int]], seconds: float) -> None:
        self._cuts.update(ways)
        try:
            await self._set(ways)
            await asyncio.sleep(seconds)
        finally:
            self._cuts.subtract(ways)
            await self._set(ways)

    async def _set(self, ways: list[tuple[int, int]]) -> None:
        await asyncio.gather(*(self._network.set(*way, not self._cuts[way]) for way in ways))

    def _both_ways(self, host: str) -> list[tuple[int, int]]:
        own = self._number(host)
        return [way for other in self._others(host) for way in ((own, other), (other, own))]

    async def _partition(self, host: str, seconds: float) -> None:
        await self._cut(self._both_ways(host), seconds)

    async def _one_way(self, host: str, seconds: float) -> None:
        own, mute = self._number(host), self._random.random() < 0.5
        await self._cut(
            [(own, other) if mute else (other, own) for other in self._others(host)], seconds
        )

    async def _cut_link(self, host: str, seconds: float) -> None:
        own, other = self._number(host), self._random.choice(self._others(host))
        await self._cut([(own, other), (other, own)], seconds)

    async def _flapping(self, host: str, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while loop.time() < end:
            await self._cut(self._both_ways(host), self._random.uniform(*_FLAP_SECONDS))
            await asyncio.sleep(self._random.uniform(*_FLAP_SECONDS))

    # The disk -------------------------------------------------------------------------------------

    async def _renew(self, whose: str, seconds: float) -> None:
        await self._network.renew()
        for host in self._cluster.hosts:
            # One to which something else is done reads them when it starts, or with its next
            # connection.
            if host not in self._busy or host == whose:
                with suppress(ProcessLookupError, IndexError):
                    os.kill(self._cluster.pids(host)[0], signal.SIGHUP)
        await asyncio.sleep(seconds)

    async def _fill_disk(self, _host: str, seconds: float) -> None:
        try:
            self._network.fill()
            await asyncio.sleep(seconds)
        finally:
            self._network.empty()

    async def _lose_disk(self, host: str, _seconds: float) -> None:
        """The host is to notice and to end; started again, it gets everything from the others."""
        if not self._cluster.pids(host):
            raise ProcessLookupError
        self._lost_disk = True
        await asyncio.to_thread(_empty, Path(_server_of(self._cluster.settings_of(host)).directory))
        try:
            async with asyncio.timeout(_NOTICED_SECONDS):
                await self._cluster.ended(host)
        except TimeoutError:
            raise AssertionError(
                f"host {host} went on for {_NOTICED_SECONDS:.0f} s without its files"
            ) from None
        await self._cluster.start_host(host, _AGAIN_SECONDS)

    async def _second_host(self, host: str, _seconds: float) -> None:
        """It is to be refused."""
        if not self._cluster.pids(host):
            raise ProcessLookupError
        told = self._cluster.settings_of(host)
        port, cluster_port = free_ports(2)
        server = msgspec.structs.replace(_server_of(told), port=port, cluster_port=cluster_port)
        second = HostChild(
            msgspec.structs.replace(told, server=server), (), lambda _event, _facts: None
        )
        try:
            await second.start(_NOTICED_SECONDS)
        except ConfigError as error:
            if "belongs to a host" in str(error):
                return
            raise
        finally:
            await second.stop()
        raise AssertionError(f"a second host started in the directory of {host}")

    # Users' code ----------------------------------------------------------------------------------

    def _nuisance(self, host: str) -> AgentRef[Nuisance]:
        """A new agent on a host, or, where the host has none of the shards now, on any."""
        name = ""
        for _ in range(100):
            name = f"{host}-{self._random.getrandbits(32):08x}"
            if self._node.describe(f"Nuisance/{name}").host == host:
                break
        return self._node.agent(Nuisance, name).options(timeout_seconds=_NUISANCE_SECONDS)

    async def _loop_handler(self, host: str, _seconds: float) -> None:
        agent = self._nuisance(host)
        await agent.ask(Nuisance.loop, agent.name)

    async def _block_handler(self, host: str, seconds: float) -> None:
        await self._nuisance(host).ask(Nuisance.block, seconds)

    async def _print_handler(self, host: str, _seconds: float) -> None:
        await self._nuisance(host).ask(Nuisance.shout)


def _server_of(settings: HostSettings) -> ServerSettings:
    assert settings.server is not None
    return settings.server


def _empty(directory: Path) -> None:
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
