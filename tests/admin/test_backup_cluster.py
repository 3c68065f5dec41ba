"""A backup of a cluster under load shows one moment: no coin is lost or doubled, no effect is there
without its cause."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.admin.purses import Counter, Purse
from tests.admin.restored import APP, created, purses, restored_cluster, restored_file

from holdfast import LocalCluster, Node
from holdfast.admin.backup.verify import BackupFacts, verify

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(900),
]
PURSES = [f"p{n}" for n in range(24)]
ROUND = [f"c{n}" for n in range(7)]
LETTERS = [f"l{n}" for n in range(5)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalCluster]:
    async with LocalCluster(tmp_path_factory.mktemp("cluster"), [APP]) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(cluster: LocalCluster) -> AsyncIterator[Node]:
    async with Node.join(cluster.urls) as made:
        await made.ready()
        yield made


class Load:
    """Clients that go on, and what they know to have happened."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.acknowledged: dict[str, int] = {}
        self.begun: dict[str, int] = {}
        self.before: dict[str, int] = {}
        """What was acknowledged before the cut,"""
        self.after: dict[str, int] = {}
        """and what was begun before it was over."""
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._stop = False

    def report(self, event: str, facts: dict[str, Any]) -> None:
        self.events.append((event, facts))
        if event == "held":
            self.before = dict(self.acknowledged)
        elif event == "cut":
            self.after = dict(self.begun)

    async def run(self, work: Callable[[], Awaitable[BackupFacts]]) -> BackupFacts:
        """Do the work while the load goes on."""
        self.acknowledged = {
            "rounds": sum(
                [(await self.node.agent(Counter, name).ask(Counter.look)).n for name in ROUND]
            ),
            "letters": len(await self._noted(self.node)),
        }
        self.begun = dict(self.acknowledged)
        least = min(self.begun.values()) + 30
        tasks = [
            asyncio.create_task(one)
            for one in (self._rounds(), self._letters(), *map(self._coins, range(6)))
        ]
        try:
            async with asyncio.timeout(240):
                while min(self.acknowledged.values()) < least:
                    await asyncio.sleep(0.01)
            return await work()
        finally:
            self._stop = True
            await asyncio.gather(*tasks)

    async def _rounds(self) -> None:
        """One change after the other, each in another cell than the one before."""
        while not self._stop:
            name = ROUND[self.begun["rounds"] % len(ROUND)]
            self.begun["rounds"] += 1
            await self.node.agent(Counter, name).ask(Counter.add, 1)
            self.acknowledged["rounds"] += 1

    async def _letters(self) -> None:
        """The same with durable messages from outside."""
        while not self._stop:
            number = self.begun["letters"]
            self.begun["letters"] += 1
            await self.node.agent(Counter, LETTERS[number % len(LETTERS)]).send(
                Counter.note, str(number)
            )
            self.acknowledged["letters"] += 1

    async def _coins(self, seed: int) -> None:
        chance = random.Random(seed)
        while not self._stop:
            giver, taker = chance.sample(PURSES, 2)
            await self.node.agent(Purse, giver).ask(Purse.give, taker, chance.randint(1, 9))

    async def check(self, node: Node) -> None:
        """Compare a restored cluster with what the clients know."""
        await purses(node, PURSES, 100 * len(PURSES))
        counts = [(await node.agent(Counter, name).ask(Counter.look)).n for name in ROUND]
        total = sum(counts)
        assert counts == [(total + len(ROUND) - 1 - n) // len(ROUND) for n in range(len(ROUND))], (
            "effect without cause"
        )
        assert self.before["rounds"] <= total <= self.after["rounds"]
        async with asyncio.timeout(240):
            while len(found := await self._noted(node)) < self.before["letters"]:
                await asyncio.sleep(0.05)
        assert found == list(range(len(found))), "a message is there, and one before it is not"
        assert len(found) <= self.after["letters"]

    async def _noted(self, node: Node) -> list[int]:
        texts = [(await node.agent(Counter, name).ask(Counter.look)).texts for name in LETTERS]
        return sorted(int(text) for some in texts for text in some)


async def fill(node: Node) -> None:
    """Every purse and every counter exists; a few are registered."""
    await asyncio.gather(*(node.agent(Purse, name).ask(Purse.look) for name in PURSES))
    for name in PURSES:
        if node.lookup(Purse, name) is None:
            await node.register(Purse, name, metadata={"color": "red"})


@pytest.mark.capability("B6")
async def test_a_backup_under_load_is_of_one_moment(node: Node, tmp_path: Path) -> None:
    await fill(node)
    load = Load(node)
    large = node.agent(Counter, "large")
    await large.ask(Counter.grow, 1_000_000)
    facts = await load.run(lambda: created(node, tmp_path / "b.backup", load.report))
    assert verify(tmp_path / "b.backup") == facts
    assert facts.registered == len(PURSES) and facts.blobs == 1
    for _ in range(3):
        await large.ask(Counter.grow, 1_000_000)  # what comes after the cut is not in it
    async with (
        restored_cluster(tmp_path / "new", tmp_path / "b.backup", 3) as other,
        Node.join(other.urls) as there,
    ):
        await there.ready()
        assert there.manifest.generation == node.manifest.generation + 1
        await load.check(there)
        assert there.count(kind=Purse) == len(PURSES)
        assert await there.agent(Counter, "large").ask(Counter.size) == (1_000_000, b"\x01")
        assert await there.agent(Counter, "large").ask(Counter.grow, 900_000) == 2
        # It is a cluster like any other: owners die, and what was restored is recovered.
        other.kill_node("h1-1")
        other.kill_node("h2-1")
        await load.check(there)


async def test_a_cluster_becomes_an_embedded_log(node: Node, tmp_path: Path) -> None:
    await fill(node)
    facts = await created(node, tmp_path / "b.backup")
    await restored_file(tmp_path / "new.db", tmp_path / "b.backup")
    assert facts.agents > len(PURSES) // 2
    async with Node.join(f"local:{tmp_path / 'new.db'}", serve=[Purse, Counter]) as there:
        await purses(there, PURSES, 100 * len(PURSES))
        assert there.count(kind=Purse) == len(PURSES)


async def check_in_a_log(load: Load, directory: Path, backup: Path) -> None:
    """Restore into an embedded log, which is quickly done, and compare."""
    await restored_file(directory / "new.db", backup)
    async with Node.join(f"local:{directory / 'new.db'}", serve=[Purse, Counter]) as there:
        await there.ready()
        await load.check(there)


async def test_an_owner_killed_during_the_hold_spoils_nothing(
    cluster: LocalCluster, node: Node, tmp_path: Path
) -> None:
    killed: list[int] = []

    class Killing(Load):
        def report(self, event: str, facts: dict[str, Any]) -> None:
            super().report(event, facts)
            if event == "held" and not killed:
                killed.append(cluster.kill_node("h2-1"))

    await node.ready()
    load = Killing(node)
    await load.run(lambda: created(node, tmp_path / "b.backup", load.report))
    assert killed
    await check_in_a_log(load, tmp_path, tmp_path / "b.backup")
    await node.ready()
    load.before, load.after = load.acknowledged, load.begun
    await load.check(node)  # the cluster went on, and lost nothing either


@pytest.mark.soak
async def test_a_server_killed_while_the_tails_read_spoils_nothing(
    cluster: LocalCluster, node: Node, tmp_path: Path
) -> None:
    for number, moment in enumerate(["read", "held", "read", "held"]):
        done: list[int] = []

        class Killing(Load):
            def report(
                self,
                event: str,
                facts: dict[str, Any],
                moment: str = moment,
                done: list[int] = done,
            ) -> None:
                super().report(event, facts)
                if event == moment and not done:
                    done.append(cluster.server_pid(f"h{number % 3 + 1}"))  # noqa: B023
                    os.kill(done[0], signal.SIGKILL)

        await node.ready()
        load = Killing(node)
        directory = tmp_path / str(number)
        directory.mkdir()
        await load.run(lambda: created(node, directory / "b.backup", load.report))  # noqa: B023
        await check_in_a_log(load, directory, directory / "b.backup")
