"""Packs on real servers: a backup, the scrub, an inspection and a takeover see what is in them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.cluster.app import Account
from tests.cluster.test_upgrade import packs_of

from holdfast import LocalCluster, Node
from holdfast.admin.backup import backup, verify
from holdfast.admin.scrub.scrub import scrub
from holdfast.engines.nats.engine import NatsEngine

APP = str(Path(__file__).parent / "app.py")
NAMES = [f"a{n}" for n in range(400)]


async def add_to_all(node: Node, expected: int) -> None:
    agents = [node.agent(Account, name) for name in NAMES]
    assert set(await asyncio.gather(*(agent.ask(Account.add) for agent in agents))) == {expected}


@pytest.mark.cluster
@pytest.mark.timeout(900)
@pytest.mark.capability("B3", "D8")
async def test_what_is_packed_is_seen_by_all(tmp_path: Path) -> None:
    async with LocalCluster(tmp_path / "data", [APP]) as cluster, Node.join(cluster.urls) as node:
        await node.ready()
        await add_to_all(node, 1)
        await add_to_all(node, 2)
        assert await packs_of(node)
        for name in NAMES[::40]:
            async with asyncio.timeout(240):  # what is looked at may be a moment old
                while (await node.inspect(f"Account/{name}")).state != {"n": 2, "marks": []}:
                    await asyncio.sleep(0.1)

        facts = await backup.create(node, tmp_path / "packed.backup")
        assert facts.agents == len(NAMES)
        assert verify.verify(tmp_path / "packed.backup").agents == len(NAMES)
        assert isinstance(node.engine, NatsEngine)
        report = await scrub(node.engine)
        assert report.clean, report

        # Owners die right after an acknowledgement, one after the other.
        for count, host in enumerate(cluster.hosts, 3):
            await add_to_all(node, count)
            cluster.kill_node(f"{host}-1")
        await add_to_all(node, 6)
        assert (await scrub(node.engine)).clean
