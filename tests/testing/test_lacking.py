"""A replica that lost an agent's newest record, whose older one it still shows in a pack, is not
taken for whole."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from holdfast.cluster.ownership.recovery import Recovery
from holdfast.engines.base import Record, Stored
from holdfast.errors import DataLoss, HoldfastError
from holdfast.records import packs, subjects
from holdfast.testing.simulation.engine import SimEngine
from holdfast.testing.simulation.servers import Servers
from holdfast.testing.simulation.world import World

HOSTS = ("h1", "h2", "h3")
CHAIN = "n-h1-1-0"
AGENT = "c0.7.st.Account/a"


class Trial:
    """A cell in which an agent is in a pack, and moved on since; a process that is to take over its
    shard."""

    def __init__(self) -> None:
        self.world = World(5)
        servers = Servers(self.world, HOSTS)
        self.cell = servers.make("c0")
        self.loop, _ = self.world.process("h2")
        engine = SimEngine(servers, "h2", self.loop)
        for record in (
            Record("c0.8.st.Account/b", b"other"),
            packs.record("c0", CHAIN, 0, [(7, "Account/a", b"one"), (8, "Account/c", b"c")]),
            Record(AGENT, b"two"),
        ):
            self.cell.propose([record], lambda _: None)
        answers: list[range | HoldfastError] = []
        self.cell.propose([Record(subjects.epoch("c0", 7), b"")], answers.append)
        (answer,) = answers
        assert isinstance(answer, range)
        self.epoch = answer[0]
        self.world.run(2.0)
        self.recovery = Recovery(engine, lambda: None)
        self.outcome: list[list[Stored] | HoldfastError] = []

    def lose(self, subject: str) -> None:
        """Every replica but the leader's, so that whichever is read has lost it."""
        for host in HOSTS:
            if host != self.cell.leader:
                replica = self.cell.replicas[host]
                replica.records.pop(replica.newest.pop(subject), None)

    def read(self) -> list[Stored] | HoldfastError:
        """What recovery finds, or how it fails."""

        async def run() -> None:
            try:
                found, _, _ = await self.recovery.read(
                    "c0", {7: self.epoch}, [CHAIN], anywhere=False
                )
            except HoldfastError as error:
                self.outcome.append(error)
            else:
                self.outcome.append(found)

        self.loop.create_task(run())
        assert self.world.run(20.0, lambda: bool(self.outcome))
        return self.outcome.pop()

    def is_warm(self) -> bool:
        """Whether the shard was followed for a while, and is taken for whole."""

        async def run() -> None:
            self.recovery.follow("c0", [7], [7])

        self.loop.create_task(run())
        self.world.run(10.0)
        return self.recovery.warm() == [7]


@pytest.fixture
def trial() -> Iterator[Trial]:
    found = Trial()
    yield found
    found.world.close()


def test_the_newest_record_of_each_agent_is_read(trial: Trial) -> None:
    found = trial.read()
    assert isinstance(found, list)
    assert [(one.subject, one.payload) for one in found] == [(AGENT, b"two")]


@pytest.mark.parametrize("subject", [AGENT, f"c0.pk.{CHAIN}.0"])
def test_a_replica_that_lost_a_record_is_not_believed(trial: Trial, subject: str) -> None:
    trial.lose(subject)
    found = trial.read()
    assert isinstance(found, DataLoss) and subject in str(found)


def test_what_is_followed_is_warm(trial: Trial) -> None:
    assert trial.is_warm()


@pytest.mark.parametrize("subject", [AGENT, f"c0.pk.{CHAIN}.0"])
def test_what_is_followed_on_a_replica_that_lost_a_record_is_not_warm(
    trial: Trial, subject: str
) -> None:
    trial.lose(subject)
    assert not trial.is_warm()


def test_what_is_read_after_an_interruption_is_not_taken_for_whole() -> None:
    warm: list[bool] = []
    for away in (1, 2):
        trial = Trial()
        assert trial.is_warm()
        others = [host for host in HOSTS if host != trial.cell.leader]
        # in one of the two runs it is the one that is read
        trial.cell.servers.down.add(others[away - 1])
        trial.world.run(0.5)
        trial.cell.propose([Record(AGENT, b"three")], lambda _: None)
        trial.world.run(0.5)
        trial.lose(AGENT)
        trial.world.run(5.0)
        trial.cell.propose([Record(subjects.epoch("c0", 7), b"")], lambda _: None)
        trial.world.run(5.0)
        warm.append(trial.recovery.warm() == [7])
        if warm[-1]:
            assert trial.recovery._followed[7].records[AGENT].payload == b"three"
        trial.world.close()
    assert sorted(warm) == [False, True]
