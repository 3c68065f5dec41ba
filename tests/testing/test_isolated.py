"""Who is isolated says so to callers, and has nothing in its memory by then that it would answer
from."""

from __future__ import annotations

import pytest

from holdfast import limits
from holdfast.cluster.members.liveness import Liveness
from holdfast.testing.simulation.engine import SimEngine
from holdfast.testing.simulation.servers import Servers
from holdfast.testing.simulation.world import World

HOSTS = ("h1", "h2", "h3")
CELLS = ["c0", "c1", "c2"]


@pytest.mark.parametrize("seed", range(40))
def test_who_is_isolated_has_dropped_its_shards_before(seed: int) -> None:
    """Whenever between two proofs, or two looks at the clock, its servers fall silent."""
    world = World(seed)
    servers = Servers(world, HOSTS)
    for cell in CELLS:
        servers.make(cell)
    loop, clock = world.process("h1")
    life = Liveness(SimEngine(servers, "h1", loop), clock, "n-a", CELLS, True)
    dropped: list[bool] = []
    life._on_lapse = lambda: dropped.append(True)
    try:
        loop.create_task(life.start())
        assert world.run(5.0, life.live)
        world.run(1.0 + seed * limits.ISOLATE_SECONDS / 40)
        assert life.live() and not life.isolated() and not dropped
        for host in HOSTS[1:]:
            world.cut("h1", host)
            world.cut(host, "h1")
        assert world.run(20.0, life.isolated)
        assert not life.live() and dropped
    finally:
        world.close()
