"""Servers that get a batch twice, and answer with the refusal of the second copy: seen for seconds
around elections."""

from __future__ import annotations

import asyncio

import pytest
from tests.cluster.app import Post

from holdfast.engines.base import Stored
from holdfast.records import agent_record
from holdfast.testing.simulation.cluster import SimCluster
from holdfast.testing.simulation.servers import Faults
from holdfast.testing.simulation.world import World

SENDERS = [f"p{n}" for n in range(4)]
RECEIVERS = [f"r{n}" for n in range(4)]


@pytest.mark.parametrize("seed", range(3))
def test_a_batch_that_arrives_twice_is_written_once(seed: int) -> None:
    world = World(seed)
    try:
        run(world)
    finally:
        world.close()


def run(world: World) -> None:
    cluster = SimCluster(world, [Post], faults=Faults(append_twice=0.1))
    client = cluster.client("h1")
    assert world.run(60, lambda: client.node is not None)
    node = client.node
    assert node is not None
    newest: dict[str, tuple[int, int]] = {}
    wrong: list[str] = []

    def watch(batch: list[Stored]) -> None:
        for stored in batch:
            if ".st." in stored.subject:
                record = agent_record.decode(stored.payload, stored.subject)
                version, sequence = newest.get(stored.subject, (0, 0))
                if (record.version, record.previous) != (version + 1, sequence):
                    wrong.append(
                        f"{stored.subject} v{record.version} on {record.previous}, after v{version}"
                    )
                newest[stored.subject] = record.version, stored.sequence

    for cell in node.manifest.cells:
        cluster.servers.cells[cell].on_commit.append(watch)
    done: list[str] = []
    got: dict[str, dict[str, list[int]]] = {}

    async def spread(name: str) -> None:
        for count in range(1, 31):
            assert await node.agent(Post, name).ask(Post.spread, RECEIVERS) == count
        done.append(name)

    async def look() -> None:
        for name in RECEIVERS:
            while sum(
                map(len, (found := await node.agent(Post, name).ask(Post.got)).values())
            ) < 30 * len(SENDERS):
                await asyncio.sleep(0.1)
            got[name] = found

    for name in SENDERS:
        client.spawn(spread(name))
    assert world.run(120, lambda: len(done) == len(SENDERS)), world.story
    client.spawn(look())
    assert world.run(30, lambda: len(got) == len(RECEIVERS)), got
    assert not wrong, wrong[0]
    assert got == {receiver: {name: list(range(30)) for name in SENDERS} for receiver in RECEIVERS}
