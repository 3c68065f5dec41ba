"""Backups and restores of real clusters, as the tests need them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.admin.app import Purse

from holdfast import LocalCluster, Node
from holdfast.admin.restore import restore
from holdfast.admin.verify import BackupFacts
from holdfast.engines.base import Engine
from holdfast.engines.local.engine import LocalEngine
from holdfast.engines.nats.engine import NatsEngine

APP = str(Path(__file__).parent / "app.py")


@asynccontextmanager
async def opened(engine: Engine) -> AsyncIterator[Engine]:
    """An engine while it is needed."""
    await engine.open()
    try:
        yield engine
    finally:
        await engine.close()


@asynccontextmanager
async def restored_cluster(directory: Path, backup: Path, hosts: int) -> AsyncIterator[LocalCluster]:
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


async def purses(node: Node, names: list[str], coins: int) -> None:
    """Wait until no coin is under way any more; then each is there once, and came in the order of its sender."""
    async with asyncio.timeout(60):
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
