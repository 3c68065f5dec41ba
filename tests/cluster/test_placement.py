"""Where agents live, on real hosts: pools and labels, standbys, cordons and drains, and the events
that tell of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cluster.app import Account
from tests.cluster.pools_app import Trainer

from holdfast import (
    Agent,
    ConfigError,
    DeadlineExceeded,
    LocalCluster,
    Node,
    NotFound,
    Pool,
    State,
    handler,
)
from holdfast.admin.fleet import nodes
from holdfast.core import pools

APPS = [str(Path(__file__).parent / name) for name in ("app.py", "pools_app.py")]
NAMES = [f"a{n}" for n in range(60)]


async def until(condition: Callable[[], bool], seconds: float = 240.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


class Load:
    """Calls to many agents, without a pause. Any that fails, fails the test."""

    def __init__(self, node: Node) -> None:
        self._agents = [node.agent(Account, name) for name in NAMES]
        self._stop = False
        self.added = dict.fromkeys(NAMES, 0)
        self.tasks = [asyncio.create_task(self._add(agent.name)) for agent in self._agents]
        self._node = node

    async def _add(self, name: str) -> None:
        agent = self._node.agent(Account, name)
        while not self._stop:
            self.added[name] += 1
            assert await agent.ask(Account.add, 1) == self.added[name]
            await asyncio.sleep(0.01)

    async def end(self) -> None:
        self._stop = True
        await asyncio.gather(*self.tasks)


def names_of(node: Node, owners: set[str]) -> set[str]:
    return {member.name for member in node.members() if member.incarnation in owners}


def owners_of(node: Node, pool: str) -> set[str]:
    found = node.placement.table.pool(pool)
    assert found is not None
    return {owner for number, owner in node.owners().items() if number in found.numbers}


@pytest.mark.cluster
@pytest.mark.timeout(900)
@pytest.mark.capability("B3", "B13", "C6", "D4", "D6")
async def test_labels_standbys_drain_and_events(tmp_path: Path) -> None:
    labels = {"h1": ["gpu"], "h2": ["gpu"]}
    async with (
        LocalCluster(tmp_path, APPS, labels=labels) as cluster,
        Node.join(cluster.urls) as node,
    ):
        await node.ready()
        # A pool's shards live where its labels are, as long as somebody has them; each of the two
        # has its share soon.
        await until(lambda: names_of(node, owners_of(node, "gpu")) == {"h1-1", "h2-1"})
        await until(lambda: "" not in owners_of(node, "gpu"))
        trainers = [node.agent(Trainer, f"t{n}") for n in range(30)]
        for trainer in trainers:
            assert await trainer.ask(Trainer.step, 1000) == 1

        # Each is kept warm on another host, which takes over when its owner is killed, with all
        # that was acknowledged.
        def all_warm() -> bool:
            infos = [node.describe(trainer.agent_id) for trainer in trainers]
            return all(info.standbys and info.owner not in info.standbys for info in infos)

        await until(all_warm)
        victim = "h1-1"
        gone = next(member.incarnation for member in node.members() if member.name == victim)
        heirs = {
            t.agent_id: node.describe(t.agent_id).standbys
            for t in trainers
            if node.describe(t.agent_id).owner == gone
        }
        assert heirs
        waiting = set(heirs)

        def taken() -> bool:
            """Whether each was at one of its standbys: half of them move to the new node some
            seconds later."""
            waiting.difference_update(
                [one for one in waiting if node.describe(one).owner in heirs[one]]
            )
            return not waiting

        taking = asyncio.create_task(until(taken))
        cluster.kill_node(victim)
        for trainer in trainers:
            assert await trainer.ask(Trainer.step, 1000) == 2
        await taking
        # An event is written beside the work, so it may come a little after the first answers.
        async with asyncio.timeout(240):
            async for event in node.events.read(follow=True):
                if (
                    event.what == "shards-claimed"
                    and event.facts["unclean"]
                    and event.facts["warm"]
                ):
                    break
        # … and there is a standby again when there is another host that may be one.
        await until(all_warm)

        # A drain under load: no call fails, every change is there, and nothing is left.
        load = Load(node)
        await until(lambda: min(load.added.values()) > 3)
        await nodes.drain(node, "h2", 240)
        assert "h2-1" not in names_of(node, set(node.owners().values()))
        with pytest.raises(NotFound, match="h9"):
            await nodes.drain(node, "h9")
        # Nobody labelled is left on h2: the pool's shards are on h1, and stay there.
        assert names_of(node, owners_of(node, "gpu")) == {"h1-1"}
        # When the last labelled node is drained too, a label gives way, and that is said.
        await nodes.drain(node, "h1", 240)
        assert names_of(node, owners_of(node, "gpu")) == {"h3-1"}
        with pytest.raises(DeadlineExceeded, match=r"no other node|it goes on"):
            await nodes.drain(node, "h3", 1)
        for host in ("h1", "h2", "h3"):
            await nodes.uncordon(node, host)
        with pytest.raises(NotFound, match="not cordoned"):
            await nodes.uncordon(node, "h1")
        await until(lambda: names_of(node, owners_of(node, "gpu")) <= {"h1-1", "h2-1"})
        await until(lambda: len(owners_of(node, "main")) == 3)
        await load.end()
        assert [await trainer.ask(Trainer.steps) for trainer in trainers] == [2] * 30

        found = [event async for event in node.events.read()]
        assert [event.position for event in found] == sorted(event.position for event in found)
        kinds = [event.what for event in found]
        for wanted in (
            "host-joined",
            "node-joined",
            "node-ended",
            "shards-claimed",
            "cordoned",
            "drained",
            "uncordoned",
            "placement-fallback",
        ):
            assert wanted in kinds, kinds
        # A node that the machine gave no time may be condemned besides; its process did not end.
        ended = [
            event
            for event in found
            if event.what == "node-ended" and event.facts["why"] == "its process ended"
        ]
        assert [event.who for event in ended] == [victim]


@pytest.mark.cluster
@pytest.mark.capability("A9")
async def test_a_node_that_flaps_leaves_no_ghost(tmp_path: Path) -> None:
    async with (
        LocalCluster(tmp_path, [], hosts=1, nodes=0) as cluster,
        Node.join(cluster.urls, found=True, replicas=1) as watcher,
    ):
        for _ in range(10):
            async with Node.join(cluster.urls, serve=[Account], name="flapper") as node:
                await until(
                    lambda node=node: (
                        node.incarnation in {one.incarnation for one in watcher.members()}
                    )
                )  # type: ignore[misc]
        await until(lambda: not [member for member in watcher.members() if member.kinds])


async def test_pools_on_an_embedded_log(tmp_path: Path) -> None:
    class Apart(Agent[State], pool=Pool(name="apart", shards=1)):
        @handler
        async def where(self) -> int:
            return self.context.fence

    class Moved(Agent[State], kind="Apart"):
        @handler
        async def where(self) -> int:
            return self.context.fence

    class Lost(Agent[State], pool="nowhere"):
        pass

    class Larger(Agent[State], kind="Apart", pool=Pool(name="apart", shards=2)):
        pass

    url = f"local:{tmp_path / 'log.db'}"
    async with Node.join(url, serve=[Apart, Account]) as node:
        await node.ready()
        assert node.shards == 129
        shards = {node.describe(f"Apart/{n}").shard for n in range(20)}
        assert shards == {128}
        assert await node.agent(Apart, "a").ask(Apart.where) > 0
        with pytest.raises(ConfigError, match="no pool 'other'"):
            await node.placement.change(lambda table: pools.change_pool(table, "other", standbys=1))
        with pytest.raises(ConfigError, match="0 to 2 standbys"):
            await node.placement.change(lambda table: pools.change_pool(table, "apart", standbys=3))
    for wrong, why in (
        (Moved, "live in pool 'apart'"),
        (Lost, "nobody has declared"),
        (Larger, "never changes"),
    ):
        with pytest.raises(ConfigError, match=why):
            async with Node.join(url, serve=[wrong]):
                pass
    for bad in ({"shards": 0}, {"standbys": 3}, {"labels": frozenset({"a b"})}, {"name": "a.b"}):
        with pytest.raises(ConfigError):
            Pool(**{"name": "x", **bad})  # type: ignore[arg-type]
    for wrong_node in ({"labels": ["two words"]}, {"capacity": 0.0}):
        with pytest.raises(ConfigError):
            async with Node.join(url, **wrong_node):  # type: ignore[arg-type]
                pass
