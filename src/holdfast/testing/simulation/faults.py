"""What is done to the hosts of a simulated cluster, each by its name in a scenario. All of it
passes after a while."""

# ruff: noqa: ARG001  # all harms are called alike

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

from holdfast import codec
from holdfast.cluster.members.beats import BEAT_SUBJECT, HOST_SUBJECT, HostBeat
from holdfast.cluster.members.liveness import base
from holdfast.engines.base import Message, Stored
from holdfast.records import packs
from holdfast.testing.simulation.cluster import SimCluster

Harm = Callable[[SimCluster, Random, str, float], None]
"""Given the cluster, what to draw from, a host, and for how many seconds."""


def kill_node(cluster: SimCluster, random: Random, host: str, seconds: float) -> None:
    """kill -9 of the node; its host starts it again."""
    cluster.kill_node(host)


def stop_node(cluster: SimCluster, random: Random, host: str, seconds: float) -> None:
    """SIGTERM of the node; its host starts it again."""
    cluster.stop_node(host)


def freeze_node(cluster: SimCluster, random: Random, host: str, seconds: float) -> None:
    """SIGSTOP of the node, and SIGCONT."""
    cluster.freeze_node(host, seconds)


def freeze_at_commit(cluster: SimCluster, random: Random, host: str, seconds: float) -> None:
    """The node is stopped when its next batch is committed: after the handlers, before the
    replies."""
    armed = [True]

    def watch(batch: list[Stored]) -> None:
        process = cluster.nodes.get(host)
        if not armed or process is None or process.node is None:
            return
        for stored in packs.unfold(batch):
            _, shard, kind, *_ = [*stored.subject.split("."), "", ""]
            if kind == "st" and int(shard) in process.node._runtime.shards:
                armed.clear()
                cluster.freeze_node(host, seconds)
                return

    for cell in cluster.servers.cells.values():
        cell.on_commit.append(watch)
    cluster.world.later(seconds, armed.clear)


def stop_server(cluster: SimCluster, random: Random, host: str, seconds: float) -> None:
    """The server is away, the node is not."""
    cluster.stop_server(host, seconds)


def kill_host(cluster: SimCluster, random: Random, host: str, seconds: float) -> None:
    """Power off."""
    cluster.kill_host(host, seconds)


def partition(cluster: SimCluster, random: Random, host: str, seconds: float) -> None:
    """The host is cut off from all others."""
    cluster.partition(host, seconds)


def one_way(cluster: SimCluster, random: Random, host: str, seconds: float) -> None:
    """What the host sends does not arrive; what is sent to it does. Or the other way round."""
    cluster.partition(host, seconds, "out" if random.random() < 0.7 else "in")


def mute(cluster: SimCluster, random: Random, host: str, seconds: float) -> None:
    """Messages from the host, beats too, are lost; what it writes into the log is not."""
    cluster.world.tell(f"mute {host} for {seconds:.1f} s")
    cluster.servers.muted.add(host)
    cluster.world.later(seconds, lambda: cluster.servers.muted.discard(host))


def flap(cluster: SimCluster, random: Random, host: str, seconds: float) -> None:
    """The host's links go and come, several times."""
    passed = 0.0
    while passed < seconds:
        gone = random.uniform(0.2, 2.0)
        cluster.world.later(passed, lambda gone=gone: cluster.partition(host, gone))  # type: ignore[misc]
        passed += gone + random.uniform(0.1, 1.0)


def elect(cluster: SimCluster, random: Random, host: str, seconds: float) -> None:
    """A cell gets another leader, although nothing is wrong."""
    cell = random.choice(list(cluster.servers.cells.values()))
    cell.elect()


def damage(cluster: SimCluster, random: Random, host: str, seconds: float) -> None:
    """Records of agents in one host's replicas are lost or damaged there. It is always the same
    host: a minority."""
    cluster.servers.damage(cluster.hosts[-1])


def slander(cluster: SimCluster, random: Random, host: str, seconds: float) -> None:
    """Somebody says in the name of a node that lives that it left, or goes on as another, or can
    carry next to nothing."""
    process = cluster.nodes.get(host)
    if process is None or process.node is None:
        return
    beat = process.node._parts.beat()
    beat.number = process.node._membership._sent + random.choice([1, 3, 1 << 40])
    kind = random.choice(["left", "another", "capacity"])
    if kind == "left":
        beat.leaving = True
    elif kind == "another":
        beat.incarnation = f"{base(beat.incarnation)}~{random.randint(2, 9)}"
    else:
        beat.capacity = random.choice([0.01, 1000.0])
    cluster.world.tell(f"slander: the node of {host}: {kind}")
    cluster.servers.publish(
        random.choice(cluster.hosts), Message(BEAT_SUBJECT, "", codec.encode_raw(beat))
    )


def false_word(cluster: SimCluster, random: Random, host: str, seconds: float) -> None:
    """Somebody says in the name of hosts that the processes of their nodes ended."""
    for name in cluster.hosts if random.random() < 0.5 else [host]:
        word = HostBeat(name, [], [cluster.incarnations[name]])
        cluster.world.tell(f"false word: the node of {name}")
        cluster.servers.publish(
            random.choice(cluster.hosts), Message(HOST_SUBJECT, "", codec.encode_raw(word))
        )


ALL: Final[dict[str, Harm]] = {
    harm.__name__: harm
    for harm in (
        kill_node,
        stop_node,
        freeze_node,
        freeze_at_commit,
        stop_server,
        kill_host,
        partition,
        one_way,
        mute,
        flap,
        elect,
        damage,
        slander,
        false_word,
    )
}
"""What a scenario may name."""
