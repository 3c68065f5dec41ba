"""What many hosts do when nothing is asked of them, simulated: `python -m bench.many_hosts [HOSTS]...`.

Every node is the real code on a virtual clock; servers, bus and time are simulated. Counted are records written, the bus's
deliveries to each node, and how long the loss of a node goes unmended. Real time per simulated second and node
is what its own code costs, the simulation's share included.
"""

from __future__ import annotations

import sys
import time
from collections import Counter

from rich.table import Table

from bench.measure import number, out
from holdfast import Agent, State, handler
from holdfast.testing import servers
from holdfast.testing.cluster import SimCluster
from holdfast.testing.world import World

_SECONDS = 10.0


class Quiet(Agent[State]):
    @handler
    async def nothing(self) -> None: ...


def measure(hosts: int) -> dict[str, float]:
    """Let so many hosts start, watch them, and kill one of their nodes."""
    delivered: Counter[str] = Counter()
    written: Counter[str] = Counter()
    deliver = servers.Interest.deliver

    def count(interest: servers.Interest, message: servers.Message) -> None:
        delivered[message.subject.split(".")[1]] += 1
        deliver(interest, message)

    servers.Interest.deliver = count  # type: ignore[method-assign]
    world = World(1)
    try:
        cluster = SimCluster(world, [Quiet], hosts, shards=max(128, 8 * hosts))

        def settled() -> bool:
            nodes = [process.node for process in cluster.nodes.values()]
            owned = sum(len(node._runtime.shards) for node in nodes if node is not None)
            return None not in nodes and len(nodes) == hosts and owned >= cluster.shards

        started = world.now
        if not world.run(120, settled):
            raise RuntimeError("the shards found no owners")
        start_seconds = world.now - started
        world.run(20)
        cluster.servers.on_cell = None
        for cell in cluster.servers.cells.values():
            cell.on_commit.append(lambda batch: written.update(record.subject.split(".")[1] for record in batch))
        delivered.clear()
        began = time.perf_counter()
        world.run(_SECONDS)
        real = time.perf_counter() - began
        found = {"life": float(written["life"]), "all": float(sum(written.values()))}
        heard = {subject: float(times) for subject, times in delivered.items()}
        cluster.kill_node("h1")
        killed = world.now
        world.run(30, lambda: world.now > killed + 0.05 and settled_without(cluster, cluster.shards))
        return {
            "hosts": hosts,
            "started in s": start_seconds,
            "records/s": found["all"] / _SECONDS,
            "of them life": found["life"] / _SECONDS,
            "beats heard by each/s": (heard.get("beat", 0) + heard.get("host", 0)) / _SECONDS / hosts,
            "real ms each/s": real / _SECONDS / hosts * 1e3,
            "mended in s": world.now - killed,
        }
    finally:
        servers.Interest.deliver = deliver  # type: ignore[method-assign]
        world.close()


def settled_without(cluster: SimCluster, shards: int) -> bool:
    """Whether all shards are served by nodes that live."""
    nodes = [process.node for process in cluster.nodes.values()]
    return sum(len(node._runtime.shards) for node in nodes if node is not None) >= shards


def main() -> int:
    """Simulate, and print."""
    rows = []
    for hosts in [int(word) for word in sys.argv[1:]] or [3, 10, 30, 100]:
        rows.append(measure(hosts))
        out.print("  " + ", ".join(f"{key} {number(value)}" for key, value in rows[-1].items()), style="dim")
    table = Table(*rows[0], box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*map(number, row.values()))
    out.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
