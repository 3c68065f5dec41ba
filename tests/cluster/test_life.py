"""Proofs of life on real servers: who proves its life cannot be condemned, and who was condemned is
never live again."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from holdfast import limits
from holdfast.clock import SYSTEM_CLOCK
from holdfast.cluster.members.beats import HostBeat
from holdfast.cluster.members.liveness import Liveness, base, number
from holdfast.cluster.members.membership import Membership
from holdfast.engines.base import Engine, Record
from holdfast.host.server.nats_server import LocalServers

pytestmark = pytest.mark.cluster
_numbers = itertools.count()


@pytest.fixture
def url(servers: LocalServers) -> list[str]:
    return servers.urls


async def cells_of(engine: Engine) -> list[str]:
    run = f"life{os.getpid()}-{next(_numbers)}"
    cells = [f"{run}-{index}" for index in range(3)]
    await engine.ensure_cells(cells, 3)
    return cells


async def test_who_proves_its_life_cannot_be_condemned(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a machine without time for it would be a sentence
    monkeypatch.setattr(limits, "ISOLATE_SECONDS", 10.0)
    cells = await cells_of(engine)
    life, other = (Liveness(engine, SYSTEM_CLOCK, name, cells, True) for name in ("n-a", "n-b"))
    await life.start()
    try:
        await until_live(life)
        assert not await other.condemn("n-a")
        assert life.live() and life.incarnation == "n-a" and life.lapses == 0
    finally:
        await life.close()


async def test_who_does_not_is_not_live_when_it_is_condemned_and_goes_on_as_another(
    engine: Engine,
) -> None:
    cells = await cells_of(engine)
    life, other = (Liveness(engine, SYSTEM_CLOCK, name, cells, True) for name in ("n-a", "n-b"))
    ended = []
    life._on_condemned = lambda: ended.append(life.incarnation)
    await life.start()
    await until_live(life)
    await life.close()  # it falls silent
    assert await other.condemn("n-a")
    assert not life.live() and ended == []
    assert await other.condemn("n-a"), "whoever asks again is told the same"
    await life.start()
    try:
        await until_live(life)
        assert (
            ended == ["n-a~2"]
            and base("n-a~2") == "n-a"
            and (number("n-a"), number("n-a~2")) == (1, 2)
        )
        assert not await other.condemn("n-a~2")
        assert await other.condemn("n-a")
    finally:
        await life.close()


async def test_one_sentence_is_enough_for_a_node_to_go_on_as_another(engine: Engine) -> None:
    cells = await cells_of(engine)
    life, other = (Liveness(engine, SYSTEM_CLOCK, name, cells, True) for name in ("n-a", "n-b"))
    await life.start()
    await until_live(life)
    await life.close()
    found = await other._life_of(cells[0], "n-a")
    assert found is not None and await other._condemn(found, "n-a")
    await life.start()
    try:
        async with asyncio.timeout(240):
            while life.incarnation == "n-a" or not life.live():
                await asyncio.sleep(0.02)
        assert life.incarnation == "n-a~2"
    finally:
        await life.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(240):
        while not condition():
            await asyncio.sleep(0.02)


async def until_live(life: Liveness) -> None:
    await until(life.live)


async def test_who_was_removed_is_not_counted_among_those_who_vote() -> None:
    """Two of the three that vote are heard: they will elect, however many dead ones are
    remembered."""
    membership = Membership(cast(Any, None), cast(Any, None), False)
    now = asyncio.get_running_loop().time()
    for name, ago in (("h1", 5.0), ("h2", 0.0), ("h3", 60.0), ("h4", 0.0)):
        membership._hosts[name] = HostBeat(name, [], votes=True, voters=3)
        membership._hosts_heard_at[name] = now - ago
    assert membership.hears_majority(3)
    membership._hosts_heard_at["h4"] = now - 5
    assert not membership.hears_majority(3)
    membership._hosts["h2"] = HostBeat("h2", [], votes=True, voters=5)
    membership._hosts_heard_at["h4"] = now
    assert not membership.hears_majority(3)


async def test_a_log_that_lost_what_was_acknowledged_between_two_proofs_is_noticed(
    engine: Engine,
) -> None:
    cells = await cells_of(engine)
    life = Liveness(engine, SYSTEM_CLOCK, "n-a", cells, True)
    lost: list[str] = []
    life._on_cell_lost = lambda cell, why: lost.append(f"{cell}: {why}")
    await life.start()
    try:
        await until_live(life)
        for _ in range(20):
            (sequence,) = await engine.log.append(cells[0], [Record(f"{cells[0]}.alive", b"")])
            life.acknowledged(cells[0], sequence)
        proven = dict(life._last)
        await until(lambda: all(life._last[cell] > proven[cell] for cell in cells))
        assert lost == []
        life.acknowledged(cells[1], sequence + 1000)  # of which its log has nothing
        await until(lambda: bool(lost))
        assert (
            lost[0].startswith(f"{cells[1]}: its log goes up to ")
            and f"and {sequence + 1000} was" in lost[0]
        )
    finally:
        await life.close()


async def test_a_proof_that_is_acknowledged_late_is_no_loss() -> None:
    """What was written after it may have been acknowledged before it."""
    arrived, answer = asyncio.Event(), asyncio.Event()

    class Log:
        async def append(self, cell: str, records: list[Record]) -> range:
            if cell == "c0":
                arrived.set()
                await answer.wait()
            return range(10, 11)

    engine = cast(Any, SimpleNamespace(name="nats", log=Log(), when_failed=lambda _: None))
    life = Liveness(engine, SYSTEM_CLOCK, "n-a", ["c0"], True)
    lost: list[str] = []
    life._on_cell_lost = lambda cell, why: lost.append(why)
    life.acknowledged("c0", 9)
    proving = asyncio.create_task(life._prove("c0"))
    await arrived.wait()
    life.acknowledged("c0", 15)
    answer.set()
    await proving
    assert lost == [] and life.highest("c0") == 15
    await life._prove("c0")
    assert lost == ["its log goes up to 10, and 15 was acknowledged to this node"]
