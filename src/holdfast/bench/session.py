"""One run of the benchmark: a cluster, nodes of its own on this machine, the workloads one after
the other."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from holdfast import limits, said
from holdfast.bench import kinds
from holdfast.bench.measure import Figure
from holdfast.bench.workloads import ALL, NAMES, Moments, Setting, failover
from holdfast.core.pools import forget
from holdfast.core.spread import one_move
from holdfast.engines.nats import streams
from holdfast.engines.nats.engine import NatsEngine
from holdfast.errors import ConfigError, NoQuorum, Unknown
from holdfast.host.host_child import HostChild
from holdfast.host.local_cluster import LocalCluster
from holdfast.host.settings import HostSettings
from holdfast.host.voting.leader_balance import UNEVEN_SECONDS
from holdfast.ids import new_id
from holdfast.node.node import Node
from holdfast.records import packs, subjects
from holdfast.security import Security

_logger = logging.getLogger(__name__)
_LABELS: Final = sorted(kinds.POOL.labels)
_PARTS: Final = ("st", "in", "out", "dl")
_NODES: Final = 3
_COPIES: Final = 3
"""Of a cluster that is started for it: as many hosts, too."""
_START_SECONDS: Final = 60.0


class Settings(msgspec.Struct, frozen=True):
    """What to measure. ``at``: servers to join; empty for a fresh cluster here, "local" for the
    embedded engine."""

    at: tuple[str, ...] = ()
    workloads: tuple[str, ...] = NAMES
    nodes: int | None = None
    """Default: 3; the embedded engine has none."""
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
            raise ConfigError(
                "the embedded engine has one process, so there is no failover to measure"
            )
        if self.at == ("local",) and self.nodes is not None:
            raise ConfigError("the embedded engine has one process: --nodes is for a cluster")


class Outcome(msgspec.Struct):
    """All figures, and the failover's latencies over time."""

    where: str
    figures: list[Figure]
    failover: Moments


async def measure(settings: Settings, report: Callable[[Figure], None]) -> Outcome:
    """Run all workloads; ``report`` hears of each figure at once. Raises `ConfigError`, and what
    joining raises."""
    settings.check()
    outcome = Outcome("", [], Moments([], []))
    async with set_up(settings) as (outcome.where, setting):
        for name in settings.workloads:
            if name == "failover" and setting.node.engine.name == "local":
                continue
            figures = (
                failover(setting, outcome.failover) if name == "failover" else ALL[name](setting)
            )
            async for figure in figures:
                outcome.figures.append(figure)
                report(figure)
    return outcome


@asynccontextmanager
async def set_up(settings: Settings) -> AsyncIterator[tuple[str, Setting]]:
    """What the workloads run on, and in words where that is."""
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-bench-"))
        if settings.at == ("local",):
            where = "the embedded engine, in this process"
            node = await stack.enter_async_context(
                Node.join(
                    f"local:{Path(directory) / 'bench.db'}", serve=kinds.KINDS, labels=_LABELS
                )
            )
            cells = ["raw0"]
            await node.engine.ensure_cells(cells, 1)
            yield (
                where,
                Setting(node, settings.agents, settings.in_flight, settings.seconds, cells, dict),
            )
            return
        urls, count = settings.at, settings.nodes or _NODES
        where = f"{len(urls)} servers that were there, {count} nodes and a client here"
        if not urls:
            cluster = await stack.enter_async_context(
                LocalCluster(directory, hosts=_COPIES, nodes=0)
            )
            urls, where = tuple(cluster.urls), f"3 servers, {count} nodes and a client, all here"
        host = HostSettings(
            new_id("bench"), None, list(urls), count, ["holdfast.bench.kinds"],
            replicas=None if settings.at else _COPIES, labels=_LABELS, security=settings.security,
        )  # fmt: skip
        nodes = HostChild(host, (), said.show)
        stack.push_async_callback(nodes.stop)
        await nodes.start(_START_SECONDS)
        node = await stack.enter_async_context(Node.join(urls, security=settings.security))
        engine = node.engine
        assert isinstance(engine, NatsEngine)
        # no stream of anybody else has this name: these are removed at the end
        mark = new_id("bench")
        cells = [f"{mark}-{n}" for n in range(len(node.manifest.cells))]
        found = await streams.info(engine.connection, node.manifest.cells[0])
        await engine.ensure_cells(cells, int(found.config["num_replicas"]))
        try:
            await node.ready(_START_SECONDS)
            if not settings.at:
                await _leaders_are_spread(engine, node.manifest.cells)
            await _led_alike(engine, cells, node.manifest.cells)
            yield (
                where,
                Setting(
                    node,
                    settings.agents,
                    settings.in_flight,
                    settings.seconds,
                    cells,
                    lambda: nodes.nodes,
                ),
            )
        finally:
            await engine.drop_cells(cells)
            await nodes.stop()
            if settings.at:
                await _sweep(node)


async def _leaders_are_spread(engine: NatsEngine, cells: Sequence[str]) -> None:
    """Wait until a new cluster has spread the leaders of its cells, which holds the writes to one
    for a moment."""

    async def spread() -> bool:
        found = [await streams.info(engine.connection, cell) for cell in cells]
        leaders = {facts.config["name"]: facts.cluster.leader for facts in found}
        return one_move(leaders, found[0].servers("")) is None

    await _until(
        spread,
        (UNEVEN_SECONDS + 2.0) * len(cells),
        "the leaders of the cells are not spread over the servers",
    )


async def _led_alike(engine: NatsEngine, cells: Sequence[str], others: Sequence[str]) -> None:
    """Have each of these cells led by the server that leads its like: where the leaders are decides
    a fifth of the rate."""
    for cell, other in zip(cells, others, strict=True):

        async def alike(cell: str = cell, other: str = other) -> bool:
            leader = (await streams.info(engine.connection, other)).cluster.leader
            if (await streams.info(engine.connection, cell)).cluster.leader == leader:
                return True
            await streams.move_leader(engine.connection, cell, leader)
            return False

        await _until(
            alike, UNEVEN_SECONDS + 2.0, f"{cell} is not led by the server that leads {other}"
        )


async def _until(look: Callable[[], Awaitable[bool]], seconds: float, otherwise: str) -> None:
    """Wait until it is so; where it is not in time, say so: the figures may suffer from it."""
    try:
        async with asyncio.timeout(seconds):
            while True:
                # there is no leader for a moment while it changes
                with suppress(NoQuorum, Unknown):
                    if await look():
                        return
                await asyncio.sleep(0.1)
    except TimeoutError:
        _logger.warning("after %.0f s %s: the figures may suffer from it", seconds, otherwise)


async def _sweep(node: Node) -> None:
    """Remove what the agents left in a cluster that goes on. No node serves them any more.

    Their pool stays, without a kind that lives in it; names that were freed leave a small record
    each.
    """
    for cell in node.manifest.cells:
        await _purge_packs(node, cell)
    pool = node.placement.table.pool(kinds.POOL.name)
    for number in () if pool is None else pool.numbers:
        cell = node._runtime.cell_of(number)
        for part in _PARTS:
            await _purge(node, cell, f"{cell}.{number}.{part}.>")
    await node.placement.change(
        lambda table: forget(table, [cls.__kind__.name for cls in kinds.KINDS])
    )


async def _purge_packs(node: Node, cell: str) -> None:
    """Remove the packs of its nodes, which served no other kinds; what was purged else would seem
    to be there again."""
    mine = {cls.__kind__.name for cls in kinds.KINDS}
    served: dict[str, set[str]] = {}
    tail = node.engine.log.tail(cell, [packs.filter_of(cell)])
    async for chunk in tail:
        for stored in chunk.records:
            tokens = (token for _, token, _ in packs.entries(stored))
            served.setdefault(subjects.chain_of(stored.subject), set()).update(
                token.partition("/")[0] for token in tokens
            )
        if chunk.caught_up:
            break
    await tail.aclose()  # type: ignore[attr-defined]  # tails are async generators
    for name in (name for name, some in served.items() if some <= mine):
        await _purge(node, cell, packs.filter_of(cell, name))


async def _purge(node: Node, cell: str, subjects: str) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + limits.QUORUM_WAIT_SECONDS
    while True:
        try:
            await node.engine.log.purge(cell, subjects, 1 << 62)
            return
        except (NoQuorum, Unknown):
            if loop.time() > end:
                raise
        await asyncio.sleep(0.1)
