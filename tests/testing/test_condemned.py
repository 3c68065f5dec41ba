"""Condemning a node while replicas lag: two do it at once, a sentence is not answered, or the node
lives after all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from holdfast.cluster.members.liveness import Liveness
from holdfast.testing.simulation.engine import SimEngine
from holdfast.testing.simulation.servers import Faults, Servers
from holdfast.testing.simulation.world import World

HOSTS = ("h1", "h2", "h3")
CELLS = ["c0", "c1", "c2"]


class Trial:
    """Three hosts with a cell each to lead, on each host a process; "h1" has proved its life, and
    fell silent."""

    def __init__(self, seed: int, lag_seconds: float) -> None:
        self.world = World(seed)
        self.servers = Servers(self.world, HOSTS, Faults(lag_seconds=lag_seconds))
        for cell in CELLS:
            made = self.servers.make(cell)
            made._lags = {host: 1.0 for host in HOSTS if host != made.leader}
        self.loops = {host: self.world.process(host) for host in HOSTS}
        self.lives = {
            host: Liveness(SimEngine(self.servers, host, loop), clock, host, CELLS, True)
            for host, (loop, clock) in self.loops.items()
        }
        self.verdicts: dict[str, bool] = {}
        self.seconds: dict[str, float] = {}
        self.spawn("h1", self.lives["h1"].start())
        assert self.world.run(5.0, self.lives["h1"].live)
        self.spawn("h1", self.lives["h1"].close())
        self.world.run(2.0)

    def spawn(self, host: str, work: Any) -> None:
        """Begin something in a host's process."""
        self.loops[host][0].create_task(work)

    def condemn(self, host: str) -> None:
        """Have a host condemn "h1", and note what it is told, and after how long."""

        async def run() -> None:
            began = self.world.now
            self.verdicts[host] = await self.lives[host].condemn("h1")
            self.seconds[host] = self.world.now - began

        self.spawn(host, run())


@pytest.fixture(params=range(12))
def trial(request: pytest.FixtureRequest) -> Iterator[Trial]:
    found = Trial(request.param, lag_seconds=0.1)
    yield found
    found.world.close()


def test_who_is_second_sees_that_the_node_is_condemned_although_replicas_lag(trial: Trial) -> None:
    trial.condemn("h2")
    trial.condemn("h3")
    assert trial.world.run(10.0, lambda: len(trial.verdicts) == 2)
    assert trial.verdicts == {"h2": True, "h3": True}
    assert max(trial.seconds.values()) < 3.5, (
        "the waiting for its proofs to be over, and no second time"
    )


def test_a_sentence_that_was_not_answered_was_passed_all_the_same(trial: Trial) -> None:
    trial.servers.planned = [(".life.h1", "answer-lost", 0.0)] * 2
    trial.condemn("h2")
    assert trial.world.run(20.0, lambda: "h2" in trial.verdicts)
    assert trial.verdicts["h2"]


def test_a_sentence_that_never_arrived_was_not_passed(trial: Trial) -> None:
    trial.servers.planned = [(".life.h1", "lost", 0.0)] * 2
    trial.condemn("h2")
    assert trial.world.run(20.0, lambda: "h2" in trial.verdicts)
    assert not trial.verdicts["h2"]


def test_who_proves_its_life_meanwhile_is_not_condemned_although_replicas_lag(trial: Trial) -> None:
    trial.condemn("h2")
    trial.world.run(1.0)
    trial.spawn("h1", trial.lives["h1"].start())
    assert trial.world.run(20.0, lambda: "h2" in trial.verdicts)
    assert (
        not trial.verdicts["h2"]
        and trial.lives["h1"].live()
        and trial.lives["h1"].incarnation == "h1"
    )
