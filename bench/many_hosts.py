"""What many hosts do when nothing is asked of them, simulated: `python -m bench.many_hosts
[HOSTS]...`.

Every node is the real code on a virtual clock; servers, bus and time are simulated. Counted are
records written, the bus's deliveries to each node, and how long the loss of a node goes unmended.
Real time per simulated second and node is what its own code costs, the simulation's share included.
"""

from __future__ import annotations

import sys
import time
from collections import Counter

from rich.table import Table

from bench.measure import number, out
from holdfast import Agent, State, handler
from holdfast.engines.base import Message
from holdfast.testing.simulation import servers
from holdfast.testing.simulation.cluster import SimCluster
from holdfast.testing.simulation.world import World

_SECONDS = 10.0


class Quiet(Agent[State]):
    @handler
    async def nothing(self) -> None: ...


def measure(hosts: int) -> dict[str, float]:
    """Let so many hosts start, watch them, and kill one of their nodes."""
    delivered: Counter[str] = Counter()
    written: Counter[str] = Counter()
    deliver = servers.Interest.deliver

    def count(interest: servers.Interest, message: Message) -> None:
        delivered[message.subject.split(".")[1]] += 1
        deliver(interest, message)

    servers.Interest.deliver = count  # type: ignore[method-assign, assignment]
    world = World(1)
    try:
        cluster = SimCluster(world, [Quiet], hosts, shards=max(128, 8 * hosts))

        start_seconds = _settle(world, cluster)
        world.run(20)
        for cell in cluster.servers.cells.values():
            cell.on_commit.append(
                lambda batch: written.update(record.subject.split(".")[1] for record in batch)
            )
        delivered.clear()
        began = time.perf_counter()
        world.run(_SECONDS)
        real = time.perf_counter() - began
        records, proofs, beats = (
            written.total(),
            written["life"],
            delivered["beat"] + delivered["host"],
        )
        cluster.kill_node("h1")
        return {
            "hosts": hosts,
            "started in s": start_seconds,
            "records/s": records / _SECONDS,
            "of them life": proofs / _SECONDS,
            "beats heard by each/s": beats / _SECONDS / hosts,
            "real ms each/s": real / _SECONDS / hosts * 1e3,
            "mended in s": _settle(world, cluster),
        }
    finally:
        servers.Interest.deliver = deliver  # type: ignore[method-assign]
        world.close()


def _settle(world: World, cluster: SimCluster) -> float:
    """Run until nodes that live serve all shards; return how long that took, in s."""

    def served() -> bool:
        nodes = [process.node for process in cluster.nodes.values()]
        return (
            sum(len(node._runtime.shards) for node in nodes if node is not None) >= cluster.shards
        )

    began = world.now
    if not world.run(120, served):
        raise RuntimeError("some shards found no owner")
    return world.now - began


def main() -> int:
    """Simulate, and print."""
    rows = []
    for hosts in [int(word) for word in sys.argv[1:]] or [3, 10, 30, 100]:
        rows.append(measure(hosts))
        out.print(
            "  " + ", ".join(f"{key} {number(value)}" for key, value in rows[-1].items()),
            style="dim",
        )
    table = Table(*rows[0], box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*map(number, row.values()))
    out.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
