"""A batch costs more than what is in it: those who ask again as soon as they are answered share
one; one waits for nobody."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.cluster.app import Account

from holdfast import limits
from holdfast.testing.simulation.cluster import SimCluster
from holdfast.testing.simulation.world import World


def asked_by(callers: int) -> tuple[float, float]:
    """Turns in a batch, and virtual seconds, while each of some callers asks its own agent forty
    times in a row."""
    world = World(11)
    try:
        cluster = SimCluster(world, [Account])
        client: Any = cluster.client("h1")
        assert world.run(60, lambda: client.node is not None)
        assert world.run(
            60, lambda: all(process.node is not None for process in cluster.nodes.values())
        )
        done: list[float] = []

        async def ask(name: str, times: int, after: float) -> None:
            agent = client.node.agent(Account, name)
            await asyncio.sleep(after)
            for _ in range(times):
                await agent.ask(Account.add)

        async def run(times: int) -> None:
            await asyncio.gather(*(ask(f"a{n}", times, n / 5_000) for n in range(callers)))
            done.append(world.now)

        def counts() -> tuple[int, int]:
            runtimes = [
                process.node._runtime
                for process in cluster.nodes.values()
                if process.node is not None
            ]
            committers = [one for runtime in runtimes for one in runtime.committers.values()]
            return sum(one.turns for one in committers), sum(one.batches for one in committers)

        client.spawn(run(2))
        assert world.run(60, lambda: len(done) == 1), world.story
        (turns, batches), began = counts(), world.now
        client.spawn(run(40))
        assert world.run(60, lambda: len(done) == 2), world.story
        now_turns, now_batches = counts()
        return (now_turns - turns) / (now_batches - batches), done[1] - began
    finally:
        world.close()


def test_many_who_ask_again_share_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    together, seconds = asked_by(150)
    monkeypatch.setattr(limits, "LINGER_SECONDS_MAX", 0.0)
    apart, seconds_apart = asked_by(150)
    assert together > 1.3 * apart
    assert seconds < seconds_apart, "who waits for a fuller batch is not answered later for it"


def test_one_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    _, seconds = asked_by(1)
    monkeypatch.setattr(limits, "LINGER_SECONDS_MAX", 0.0)
    assert asked_by(1)[1] == seconds
