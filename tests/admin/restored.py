"""Backups and restores of real clusters, as the tests need them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.admin.purses import Purse
from tests.patience import again

from holdfast import LocalCluster, Node
from holdfast.admin.backup.backup import create
from holdfast.admin.backup.cut import Report
from holdfast.admin.backup.restore import restore
from holdfast.admin.backup.verify import BackupFacts
from holdfast.cluster.facts.manifest import Manifest, data_cells, ensure
from holdfast.engines.base import Engine
from holdfast.engines.local.engine import LocalEngine
from holdfast.engines.nats.engine import NatsEngine
from holdfast.errors import Overloaded

APP = str(Path(__file__).parent / "purses.py")


@asynccontextmanager
async def opened(engine: Engine) -> AsyncIterator[Engine]:
    """An engine while it is needed."""
    await engine.open()
    try:
        yield engine
    finally:
        await engine.close()


@asynccontextmanager
async def restored_cluster(
    directory: Path, backup: Path, hosts: int
) -> AsyncIterator[LocalCluster]:
    """A cluster on empty directories that a backup was restored into, with its nodes."""
    async with (
        LocalCluster(directory, hosts=hosts, nodes=0) as servers,
        opened(NatsEngine(servers.urls)) as engine,
    ):
        await restore(engine, backup, replicas=hosts)
    async with LocalCluster(directory, [APP], hosts=hosts) as cluster:
        yield cluster


async def restored_file(path: Path, backup: Path, cells: int = 1) -> BackupFacts:
    """An embedded log that a backup was restored into."""
    async with opened(LocalEngine(path)) as engine:
        return await restore(engine, backup, cells=cells)


async def local_log(path: Path, cells: int, shards: int = 8) -> None:
    """An embedded log with several cells: what turns send crosses from one to another, as on a
    cluster."""
    async with opened(LocalEngine(path)) as engine:
        await engine.ensure_cells(["g1reg"], 1)
        await ensure(
            engine,
            "g1reg",
            Manifest.new(cells=data_cells(1, cells), shards=shards, now=time.time()),
        )


async def backup_of(path: Path, target: Path) -> BackupFacts:
    """A backup of an embedded log."""
    async with Node.join(f"local:{path}") as node:
        return await create(node, target)


async def created(node: Node, target: Path, report: Report | None = None) -> BackupFacts:
    """A backup of a cluster. The marks of a cut have 2 s, which a machine without time may not give
    them in any attempt: then the backup is begun again, and reported from its beginning."""
    return await again(lambda: create(node, target, report), Overloaded)


async def crash(node: Node) -> None:
    """End a node on an embedded log without letting it finish anything."""
    await node.engine.close()
    await node.close()


async def purses(node: Node, names: list[str], coins: int) -> None:
    """Wait until no coin is under way any more; then each is there once, and came in the order of
    its sender."""
    async with asyncio.timeout(240):
        while True:
            looks = [await node.agent(Purse, name).ask(Purse.look) for name in names]
            total = sum(look.n for look in looks)
            assert total <= coins, "a coin was doubled"
            given = sum(look.given for look in looks)
            got = sum(len(numbers) for look in looks for numbers in look.got.values())
            if given == got:
                break
            await asyncio.sleep(0.05)
    assert total == coins
    for look in looks:
        for numbers in look.got.values():
            assert numbers == sorted(set(numbers)), "a message came twice, or out of order"
