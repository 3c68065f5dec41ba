"""One run of the benchmark: a cluster, nodes of its own on this machine, the workloads one after the other."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec.structs import asdict

from holdfast.bench import kinds
from holdfast.bench.measure import Figure
from holdfast.bench.workloads import ALL, NAMES, Moments, Setting, failover
from holdfast.core.pools import forget
from holdfast.engines.nats import streams
from holdfast.engines.nats.engine import NatsEngine
from holdfast.errors import ConfigError, NoQuorum, Unknown
from holdfast.host.local_cluster import LocalCluster
from holdfast.host.nats_config import Security
from holdfast.host.process import encode
from holdfast.host.supervisor import HostSettings
from holdfast.ids import new_id
from holdfast.node.node import Node

_LABELS: Final = sorted(kinds.POOL.labels)
_PARTS: Final = ("st", "in", "out", "dl")
_START_SECONDS: Final = 60.0


class Settings(msgspec.Struct, frozen=True):
    """What to measure. ``at``: servers to join; empty for a fresh cluster here, "local" for the embedded engine."""

    at: tuple[str, ...] = ()
    workloads: tuple[str, ...] = NAMES
    nodes: int = 3
    agents: int = 10_000
    in_flight: int = 256
    seconds: float = 3.0
    security: Security = Security()

    def check(self) -> None:
        """Raises `ConfigError`."""
        for name in self.workloads:
            if name not in NAMES:
                raise ConfigError(f"there is no workload {name!r}; there are {', '.join(NAMES)}")
        if self.at == ("local",) and self.workloads == ("failover",):
            raise ConfigError("the embedded engine has one process, so there is no failover to measure")


class Outcome(msgspec.Struct):
    """All figures, and the failover's latencies over time."""

    where: str
    figures: list[Figure]
    failover: Moments


class Nodes:
    """A host without a server, whose nodes serve the benchmark's agents."""

    def __init__(self, urls: Sequence[str], count: int, security: Security) -> None:
        self._settings = HostSettings(
            new_id("bench"), None, list(urls), count, ["holdfast.bench.kinds"], labels=_LABELS, security=security
        )
        self._pids: dict[str, int] = {}
        self._ready: set[int] = set()
        self._error = ""
        self._changed = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Return when all are ready. Raises `ConfigError`."""
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "holdfast.host", stdin=pipe, stdout=pipe, start_new_session=True
        )
        assert self._process.stdin is not None
        self._process.stdin.write(encode(self._settings))
        self._reading = asyncio.get_running_loop().create_task(self._read())
        try:
            async with asyncio.timeout(_START_SECONDS):
                while len(self._ready) < self._settings.nodes:
                    if self._error or self._reading.done():
                        raise ConfigError(f"the benchmark's nodes did not start: {self._error or 'their host ended'}")
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise ConfigError(f"the benchmark's nodes were not ready after {_START_SECONDS} s") from None

    async def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        while line := await self._process.stdout.readline():
            facts: dict[str, Any] = json.loads(line)
            if "node_pid" in facts:
                self._pids[facts["node"]] = facts["node_pid"]
            if facts["event"] == "node-ready":
                self._ready.add(self._pids[facts["node"]])
            if facts["event"] in ("failed", "node-failed"):
                self._error = str(facts.get("error", ""))
            self._changed.set()
        self._changed.set()

    def pids(self) -> dict[str, int]:
        """Of each node, the newest process."""
        return dict(self._pids)

    async def stop(self) -> None:
        """End them in order."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            await self._process.wait()
        if self._reading is not None:
            await self._reading


async def measure(settings: Settings, report: Callable[[Figure], None]) -> Outcome:
    """Run all workloads; ``report`` hears of each figure at once. Raises `ConfigError`, and what joining raises."""
    settings.check()
    outcome = Outcome("", [], Moments([], []))
    async with _set_up(settings) as (outcome.where, setting):
        for name in settings.workloads:
            if name == "failover" and setting.node.engine.name == "local":
                continue
            figures = failover(setting, outcome.failover) if name == "failover" else ALL[name](setting)
            async for figure in figures:
                outcome.figures.append(figure)
                report(figure)
    return outcome


@asynccontextmanager
async def _set_up(settings: Settings) -> AsyncIterator[tuple[str, Setting]]:
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-bench-"))
        if settings.at == ("local",):
            where = "the embedded engine, in this process"
            node = await stack.enter_async_context(
                Node.join(f"local:{Path(directory) / 'bench.db'}", serve=kinds.KINDS, labels=_LABELS)
            )
            cells = ["raw0"]
            await node.engine.ensure_cells(cells, 1)
            yield where, Setting(node, settings.agents, settings.in_flight, settings.seconds, cells, dict)
            return
        urls = settings.at
        where = f"{len(urls)} servers that were there, {settings.nodes} nodes and a client here"
        if not urls:
            cluster = await stack.enter_async_context(LocalCluster(directory, nodes=0))
            urls, where = tuple(cluster.urls), f"3 servers, {settings.nodes} nodes and a client, all here"
        nodes = Nodes(urls, settings.nodes, settings.security)
        stack.push_async_callback(nodes.stop)
        await nodes.start()
        node = await stack.enter_async_context(Node.join(urls, **asdict(settings.security)))
        engine = node.engine
        assert isinstance(engine, NatsEngine)
        cells = [f"bench{n}" for n in range(len(node.manifest.cells))]
        found = await streams.info(engine.connection, node.manifest.cells[0])
        await engine.ensure_cells(cells, int(found.config["num_replicas"]))
        try:
            await node.ready(_START_SECONDS)
            yield where, Setting(node, settings.agents, settings.in_flight, settings.seconds, cells, nodes.pids)
        finally:
            await engine.drop_cells(cells)
            await nodes.stop()
            if settings.at:
                await _sweep(node)


async def _sweep(node: Node) -> None:
    """Remove what the agents left in a cluster that goes on. No node serves them any more.

    Their pool stays, without a kind that lives in it; names that were freed leave a small record each.
    """
    for pool in node.placement.table.pools:
        if pool.name != kinds.POOL.name:
            continue
        for number in pool.numbers:
            cell = node._runtime.cell_of(number)
            for part in _PARTS:
                for _ in range(3):
                    try:
                        await node.engine.log.purge(cell, f"{cell}.{number}.{part}.>", 1 << 62)
                        break
                    except (NoQuorum, Unknown):
                        continue
    await node.placement.change(lambda table: forget(table, [cls.__kind__.name for cls in kinds.KINDS]))
