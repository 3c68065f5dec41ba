"""A log that goes back is noticed by those to whom it acknowledged more."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.cluster.app import Account

from holdfast import HoldfastError, Node, NotDone
from holdfast.host.server.nats_server import LocalServers
from holdfast.node.checkup import state

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[Node]:
    """A node on a server of its own, with one copy of everything."""
    servers = LocalServers(directory, 1)
    await servers.start()
    try:
        async with Node.join(servers.urls, serve=[Account], found=True, replicas=1) as node:
            await node.ready()
            yield node
    finally:
        await servers.stop()


async def test_a_node_stops_serving_a_cell_whose_log_went_back(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        (cell,) = node.manifest.cells
        agent = node.agent(Account, "a")
        for n in range(1, 30):
            assert await agent.ask(Account.add, 1) == n
        # As if all its copies had been thrown away: everything is gone, and the server takes
        # writes.
        await node.engine.drop_cells([cell])
        await node.engine.ensure_cells([cell], 1)
        async with asyncio.timeout(240):
            while cell not in node._ownership.lost_cells:
                await asyncio.sleep(0.1)
        assert "was acknowledged" in node._ownership.lost_cells[cell]
        assert state(node._parts).shards == [] and state(node._parts).lost_cells
        with pytest.raises(HoldfastError) as refused:
            await agent.options(timeout_seconds=3).ask(Account.add, 1)
        assert isinstance(refused.value, NotDone) or "Unknown" in type(refused.value).__name__
        said = [event async for event in node.events.read() if event.what == "cell-lost"]
        assert [event.who for event in said] == [cell]


async def test_each_batch_and_each_claim_is_compared_with_what_was_acknowledged(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as node:
        (cell,) = node.manifest.cells
        agent = node.agent(Account, "a")
        assert await agent.ask(Account.add, 1) == 1
        await node.life.close()  # no proof tells any more
        node.life.live_until = math.inf  # whatever follows, and however long that takes
        before = node.life.highest(cell)
        assert await agent.ask(Account.add, 1) == 2
        assert node.life.highest(cell) > before
        node.life.acknowledged(cell, before + 1000)  # of which the log has nothing
        node._runtime.reclaim(cell)
        async with asyncio.timeout(240):
            while cell not in node._ownership.lost_cells:
                await asyncio.sleep(0.05)
        assert f"and {before + 1000} was acknowledged" in node._ownership.lost_cells[cell]
        assert state(node._parts).shards == []
