"""A simulated cluster: hosts with servers and nodes, clients, and everything that can happen to
them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, Literal

from holdfast import codec, limits
from holdfast.agents.agent import Agent
from holdfast.cluster.facts.cohort import SIZES
from holdfast.cluster.members.beats import HOST_SUBJECT, HostBeat
from holdfast.cluster.members.standstills import Standstill
from holdfast.node.node import Node
from holdfast.testing.simulation.engine import SimEngine
from holdfast.testing.simulation.loop import SimLoop
from holdfast.testing.simulation.servers import Faults, Servers
from holdfast.testing.simulation.world import SimClock, World


class Process:
    """A simulated process with one node in it."""

    def __init__(
        self, cluster: SimCluster, name: str, host: str, serve: Sequence[type[Agent[Any]]], inc: str
    ) -> None:
        self.name = name
        self.host = host
        self.node: Node | None = None
        world, drift = cluster.world, cluster.clock_drift
        rate = 1.0 + world.random.uniform(-drift, drift)
        offset = world.random.uniform(-drift, drift) * 20
        self.loop, self.clock = world.process(name, SimClock(world, offset, rate))
        self._cluster = cluster
        self.loop.call_soon(self._start, list(serve), inc)

    def _start(self, serve: list[type[Agent[Any]]], incarnation: str) -> None:
        self.task = self.loop.create_task(self._main(serve, incarnation))

    async def _main(self, serve: list[type[Agent[Any]]], incarnation: str) -> None:
        engine = SimEngine(self._cluster.servers, self.host, self.loop)
        await engine.open()
        self.node = await Node.on(
            engine,
            serve,
            name=self.name,
            host=self.host,
            incarnation=incarnation,
            found=bool(serve),
            replicas=max(size for size in SIZES if size <= len(self._cluster.hosts)),
            wait=True,
            shards=self._cluster.shards,
            clock=self.clock,
        )

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run something in it."""
        self.loop.call_soon(self._spawn, work)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        self.works = getattr(self, "works", [])
        self.works.append(self.loop.create_task(work))


class SimCluster:
    """``hosts`` hosts with one node each, serving ``serve``; a node that ends is started again by
    its host.

    ``clock_drift``: by how much each process's clocks are faster or slower at most, as a fraction.
    ``late_seconds``: within which the hosts start for the first time, one by one; 0: all at once.
    """

    def __init__(
        self,
        world: World,
        serve: Sequence[type[Agent[Any]]],
        hosts: int = 3,
        faults: Faults | None = None,
        shards: int = 128,
        clock_drift: float = 0.0,
        late_seconds: float = 0.0,
    ) -> None:
        self.world = world
        self.shards = shards
        self.clock_drift = clock_drift
        self.hosts = [f"h{n + 1}" for n in range(hosts)]
        self.servers = Servers(world, self.hosts, faults)
        self.serve = list(serve)
        self.nodes: dict[str, Process] = {}
        self.clients: list[Process] = []
        self.incarnations: dict[str, str] = {}
        self.host_up = dict.fromkeys(self.hosts, True)
        self.ended: dict[str, list[str]] = {host: [] for host in self.hosts}
        """What each host knows to have ended."""
        self.still: dict[str, list[Standstill]] = {host: [] for host in self.hosts}
        """What each host says of nodes that stand still, or stood."""
        for host in self.hosts:
            loop, _ = world.process(f"host {host}")
            loop.call_soon(self._host, host, loop)
            if late_seconds:
                self._start_late(host, world.random.uniform(0, late_seconds))
            else:
                self.start_node(host)

    def _start_late(self, host: str, seconds: float) -> None:
        """Power on for the first time, while clients already try to join."""
        self.host_up[host] = False
        self.servers.down.add(host)

        def begin() -> None:
            self.world.tell(f"{host} starts for the first time")
            self.host_up[host] = True
            self.servers.down.discard(host)
            self.start_node(host)

        self.world.later(seconds, begin)

    def _host(self, host: str, loop: SimLoop) -> None:
        self._task = loop.create_task(self._beat(host, SimEngine(self.servers, host, loop)))

    async def _beat(self, host: str, engine: SimEngine) -> None:
        while True:
            if self.host_up[host]:
                living = [self.incarnations[host]] if host in self.nodes else []
                beat = HostBeat(
                    host,
                    living,
                    self.ended[host],
                    votes=self.servers.up(host),
                    voters=len(self.hosts),
                )
                beat.still = self.still[host]
                engine.bus.publish(HOST_SUBJECT, codec.encode_raw(beat))
            await asyncio.sleep(limits.BEAT_SECONDS)

    def start_node(self, host: str) -> Process:
        """A new life of the host's node."""
        incarnation = f"n-{host}-{self.world.random.getrandbits(24):06x}"
        self.incarnations[host] = incarnation
        self.nodes[host] = Process(self, f"{host}-1", host, self.serve, incarnation)
        return self.nodes[host]

    def client(self, host: str) -> Process:
        """A process that serves nothing."""
        found = Process(self, f"client-{len(self.clients) + 1}", host, [], "")
        self.clients.append(found)
        return found

    # What can happen ------------------------------------------------------------------------------

    def kill_node(self, host: str) -> None:
        """kill -9: its host starts it again within a second."""
        process = self.nodes.pop(host, None)
        if process is None:
            return
        self.world.tell(f"kill -9 the node of {host}")
        process.loop.kill()
        self.ended[host].append(self.incarnations[host])

        def again() -> None:
            if self.host_up[host] and host not in self.nodes:
                self.start_node(host)

        self.world.later(self.world.random.uniform(0.3, 1.5), again)

    def stop_node(self, host: str) -> None:
        """SIGTERM: it lets go of its shards and ends; its host starts it again."""
        process = self.nodes.get(host)
        if process is not None and process.node is not None and not process.loop.frozen:
            self.world.tell(f"stop the node of {host} in order")
            process.spawn(self._close(host, process, process.node))

    async def _close(self, host: str, process: Process, node: Node) -> None:
        await node.close()
        if self.nodes.get(host) is process:
            self.world.later(0.0, lambda: self._reap(host, process))

    def _reap(self, host: str, process: Process) -> None:
        if self.nodes.get(host) is process:
            self.kill_node(host)

    def stand_still(self, host: str, label: str, says: bool) -> None:
        """A handler of the host's node never returns: the host says which, if it can, and ends the
        node."""
        process = self.nodes[host]
        assert process.node is not None
        running = [
            one for one in process.node._runtime.resident.values() if one.running is not None
        ]
        told = codec.encode_raw((label,))
        what = next(
            one for one in running if one.running is not None and one.running.arguments == told
        )
        assert what.running is not None
        token, key, name = what.token, what.running.key, self.incarnations[host]
        self.world.tell(
            f"the node of {host} stands still in {token} "
            f"{key}{'' if says else ', and nobody is told'}"
        )
        process.loop.freeze()

        def tell(seconds: float, ended: bool) -> None:
            if self.nodes.get(host) is process:
                if says:
                    known = [one for one in self.still[host] if one.incarnation != name]
                    self.still[host] = [
                        *known,
                        Standstill(name, seconds, token, key, "app.py:1", ended=ended),
                    ]
                if ended:
                    self.kill_node(host)

        self.world.later(1.0, lambda: tell(1.0, False))
        self.world.later(limits.STANDSTILL_SECONDS, lambda: tell(limits.STANDSTILL_SECONDS, True))

    def freeze_node(self, host: str, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after a while."""
        process = self.nodes.get(host)
        if process is None:
            return
        self.world.tell(f"freeze the node of {host} for {seconds:.1f} s")
        process.loop.freeze()
        self.world.later(seconds, process.loop.thaw)

    def stop_server(self, host: str, seconds: float) -> None:
        """The host's server ends or freezes, and is back after a while."""
        self.world.tell(f"the server of {host} is away for {seconds:.1f} s")
        self.servers.down.add(host)
        self.world.later(seconds, lambda: self.servers.down.discard(host))

    def kill_host(self, host: str, seconds: float) -> None:
        """Power off: server and node; back after a while."""
        self.world.tell(f"power off {host} for {seconds:.1f} s")
        self.host_up[host] = False
        self.ended[host] = []
        self.servers.down.add(host)
        process = self.nodes.pop(host, None)
        if process is not None:
            process.loop.kill()

        def back() -> None:
            self.host_up[host] = True
            self.servers.down.discard(host)
            if host not in self.nodes:
                self.start_node(host)

        self.world.later(seconds, back)

    def partition(
        self, host: str, seconds: float, way: Literal["both", "out", "in"] = "both"
    ) -> None:
        """Cut a host off: in both directions, or only what it sends, or only what is sent to it."""
        self.world.tell(
            f"cut off {host}{'' if way == 'both' else f' ({way} only)'} for {seconds:.1f} s"
        )
        cuts = [(host, other) for other in self.hosts if other != host] if way != "in" else []
        cuts += [(other, host) for other in self.hosts if other != host] if way != "out" else []
        for source, target in cuts:
            self.world.cut(source, target)

        def mend() -> None:
            for source, target in cuts:
                self.world.mend(source, target)

        self.world.later(seconds, mend)
