"""What nodes write about hosts that they do not hear: one event for each silence, and none by
whoever stood still itself."""

from __future__ import annotations

import asyncio

from holdfast import codec, limits
from holdfast.cluster.facts.events import Event
from holdfast.cluster.members.beats import HOST_SUBJECT, HostBeat
from holdfast.testing.simulation.cluster import SimCluster
from holdfast.testing.simulation.engine import SimEngine
from holdfast.testing.simulation.world import World
from holdfast.testing.workloads import Actor


class Cluster(SimCluster):
    """Its hosts number their beats, as real ones do; their processes outlive a loss of power, as if
    only the network did."""

    async def _beat(self, host: str, engine: SimEngine) -> None:
        number = 0
        while True:
            if self.host_up[host]:
                number += 1
                living = [self.incarnations[host]] if host in self.nodes else []
                votes = self.servers.up(host)
                beat = HostBeat(
                    host,
                    living,
                    self.ended[host],
                    f"life-of-{host}",
                    votes,
                    len(self.hosts),
                    number=number,
                )
                engine.bus.publish(HOST_SUBJECT, codec.encode_raw(beat))
            await asyncio.sleep(limits.BEAT_SECONDS)


class Story:
    """A cluster of three hosts, and what was written in it."""

    def __init__(self, seed: int) -> None:
        self.world = World(seed)
        self.cluster = Cluster(self.world, [Actor], shards=6)
        self.client = self.cluster.client("h1")
        self.found: list[Event] = []
        assert self.world.run(90, lambda: self.client.node is not None and self._served())
        self.world.run(10)

    def _served(self) -> bool:
        nodes = [process.node for process in self.cluster.nodes.values()]
        return (
            all(nodes) and sum(len(node._runtime.shards) for node in nodes if node is not None) == 6
        )

    def events(self, *kinds: str) -> list[tuple[str, str]]:
        found: list[Event] = []
        done: list[bool] = []

        async def read() -> None:
            assert self.client.node is not None
            found.extend([event async for event in self.client.node.events.read()])
            done.append(True)

        self.client.spawn(read())
        assert self.world.run(60, lambda: bool(done))
        return [(event.what, event.who) for event in found if event.what in kinds]


def test_whoever_was_frozen_says_nothing_about_others() -> None:
    for seed in range(4):
        story = Story(seed)
        try:
            for host in story.cluster.hosts:
                story.cluster.freeze_node(host, 6.0 + seed)
                story.world.run(20)
            assert story.events("host-silent", "host-returned") == []
        finally:
            story.world.close()


def test_whoever_wakes_calls_nobody_dead_before_it_could_read_what_came() -> None:
    for seed in range(4):
        story = Story(seed)
        try:
            assert story.client.node is not None
            membership, dead = story.client.node._membership, list[str]()
            membership._on_death = dead.append
            story.client.loop.freeze()
            # what was said meanwhile comes a moment after it wakes
            story.cluster.partition("h1", 6.0)
            story.world.later(6.1, story.client.loop.thaw)
            story.world.run(6.1 + limits.BEAT_SECONDS / 2)
            others = [story.cluster.incarnations[host] for host in ("h2", "h3")]
            assert not {*others} & {*dead} and not any(membership.silent(other) for other in others)
            assert {"h2", "h3"} <= membership._hosts_heard_at.keys()
        finally:
            story.world.close()


def test_whoever_stands_still_often_suspects_the_silent_all_the_same() -> None:
    for seed in range(4):
        story = Story(seed)
        try:
            node = story.cluster.nodes["h1"].node
            assert node is not None
            membership = node._membership
            assert {"h2", "h3"} <= membership._hosts_heard_at.keys()
            story.cluster.kill_host("h2", 1000.0)
            for _ in range(20):
                story.cluster.freeze_node("h1", 3 * limits.BEAT_SECONDS)
                story.world.run(4.5 * limits.BEAT_SECONDS)
            assert "h3" in membership._hosts_heard_at and "h2" not in membership._hosts_heard_at
        finally:
            story.world.close()


def test_each_silence_is_written_once_and_the_next_one_again() -> None:
    for seed in range(4):
        story = Story(seed)
        try:
            for _ in range(2):
                story.cluster.kill_host("h2", 15.0)
                story.world.run(40)
            wanted = [("host-silent", "h2"), ("host-returned", "h2")] * 2
            assert story.events("host-silent", "host-returned") == wanted
        finally:
            story.world.close()


def test_whoever_is_cut_off_does_not_call_the_majority_silent() -> None:
    for seed in range(4):
        story = Story(seed)
        try:
            story.cluster.partition("h3", 12.0)
            story.world.run(40)
            assert ("host-silent", "h1") not in story.events("host-silent")
            assert ("host-silent", "h2") not in story.events("host-silent")
            assert story.events("host-silent") == [("host-silent", "h3")]
        finally:
            story.world.close()
