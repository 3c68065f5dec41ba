"""Turns that wait for one another are found at once, wherever their agents are; what only looks
like it goes on."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest
from tests.agents.kinds import Count, on, serving
from tests.patience import PATIENT_SECONDS

from holdfast import (
    Agent,
    DeadlineExceeded,
    HandlerFailed,
    Node,
    OutcomeUnknown,
    WouldDeadlock,
    handler,
    limits,
    reader,
)
from holdfast.agents.calls import Open
from holdfast.records.messages import ERROR, OK, Call


class Crosser(Agent[Count]):
    """Its turns begin together, and then ask."""

    begun: ClassVar[set[str]] = set()
    node: ClassVar[Node]

    async def together(self, size: int) -> None:
        Crosser.begun.add(self.name)
        while len(Crosser.begun) < size:
            await asyncio.sleep(0.001)

    @handler
    async def touch(self) -> int:
        self.state.n += 1
        return self.state.n

    @handler
    async def slowly(self, seconds: float) -> int:
        await asyncio.sleep(seconds)
        return await self.touch()

    @handler
    async def meet(self, other: str, size: int) -> int:
        await self.together(size)
        return await self.agent(Crosser, other).ask(Crosser.touch)

    @handler
    async def meet_through_the_node(self, other: str, size: int) -> int:
        await self.together(size)
        return await Crosser.node.agent(Crosser, other).ask(Crosser.touch)

    @handler
    async def meet_in_a_task(self, other: str, size: int) -> int:
        await self.together(size)
        task = asyncio.create_task(self.agent(Crosser, other).ask(Crosser.touch))
        await asyncio.sleep(0.3)
        BACKGROUND.append(task)
        return await self.touch()

    @handler
    async def meet_either(self, other: str, third: str, size: int) -> int:
        await self.together(size)
        asks = [
            asyncio.create_task(self.agent(Crosser, name).ask(Crosser.touch))
            for name in (other, third)
        ]
        await asyncio.wait(asks, return_when=asyncio.FIRST_COMPLETED)
        BACKGROUND.extend(asks)
        return await self.touch()

    @handler
    async def meet_reader(self, other: str, size: int) -> int:
        await self.together(size)
        return await self.agent(Crosser, other).ask(Crosser.value)

    @handler
    async def ask_myself_through_the_node(self) -> int:
        return await Crosser.node.agent(Crosser, self.name).ask(Crosser.touch)

    @handler
    async def around(self, names: list[str]) -> int:
        ref = Crosser.node.agent(Crosser, names[0])
        return await (ref.ask(Crosser.around, names[1:]) if names[1:] else ref.ask(Crosser.touch))

    @handler
    async def down(self, names: list[str]) -> int:
        if not names:
            return await self.touch()
        return await self.agent(Crosser, names[0]).ask(Crosser.down, names[1:])

    @reader
    async def value(self) -> int:
        return self.state.n

    @reader
    async def read_and_ask(self) -> int:
        return await self.agent(Crosser, self.name).ask(Crosser.touch)


BACKGROUND: list[asyncio.Task[int]] = []


@pytest.fixture(autouse=True)
def none_begun() -> None:
    Crosser.begun = set()
    BACKGROUND.clear()


async def outcomes(*asks: object) -> list[object]:
    async with asyncio.timeout(PATIENT_SECONDS - 5):  # the deadline would end them as well
        return await asyncio.gather(*asks, return_exceptions=True)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize("way", [Crosser.meet, Crosser.meet_through_the_node])
@pytest.mark.parametrize("size", [2, 3, 7])
async def test_crossed_calls_are_refused(url: list[str], size: int, way: object) -> None:
    async with (
        on(url, Crosser) as node,
        on(url, Crosser) if "nats" in url[0] else serving_too(node) as second,
    ):
        Crosser.node = second
        names = [f"x{n}" for n in range(size)]
        asks = [
            node.agent(Crosser, a).ask(way, b, size)
            for a, b in zip(names, [*names[1:], names[0]], strict=True)
        ]  # type: ignore[call-overload]
        found = await outcomes(*asks)
        refused = [one for one in found if isinstance(one, WouldDeadlock)]
        assert refused, found
        assert all(isinstance(one, (int, WouldDeadlock)) for one in found)
        if node is second:
            assert len(refused) == 1, "one of them is refused, and the others go on"
        assert "→" in str(refused[0]) and "Crosser/x0" in str(refused[0])
        for name in names:
            assert await node.agent(Crosser, name).ask(Crosser.touch) >= 1


def serving_too(node: Node) -> Node:
    return Same(node)  # type: ignore[return-value]


class Same:
    def __init__(self, node: Node) -> None:
        self._node = node

    async def __aenter__(self) -> Node:
        return self._node

    async def __aexit__(self, *_: object) -> None:
        pass


async def test_an_address_of_the_node_knows_the_turn_that_awaits_it(tmp_path: Path) -> None:
    async with serving(tmp_path / "log.db", Crosser) as node:
        Crosser.node = node
        with pytest.raises(WouldDeadlock, match="waiting for this very call"):
            await node.agent(Crosser, "a").ask(Crosser.ask_myself_through_the_node)
        with pytest.raises(WouldDeadlock):
            await node.agent(Crosser, "a").ask(Crosser.around, ["b", "c", "a"])
        assert await node.agent(Crosser, "a").ask(Crosser.around, ["b", "c", "d"]) == 1
        assert await node.agent(Crosser, "a").ask(Crosser.read_and_ask) == 1, (
            "a reader keeps its agent from nothing"
        )


async def test_what_no_turn_waits_for_is_not_refused(tmp_path: Path) -> None:
    async with serving(tmp_path / "log.db", Crosser) as node:
        a, b = node.agent(Crosser, "a"), node.agent(Crosser, "b")
        found = await outcomes(a.ask(Crosser.meet_in_a_task, "b", 2), b.ask(Crosser.meet, "a", 2))
        assert all(isinstance(one, int) for one in found), found
        assert all(isinstance(one, int) for one in await outcomes(*BACKGROUND))
        Crosser.begun, before = set(), len(BACKGROUND)
        found = await outcomes(a.ask(Crosser.meet_either, "b", "c", 2), b.ask(Crosser.meet, "a", 2))
        assert all(isinstance(one, int) for one in found), found
        assert all(isinstance(one, int) for one in await outcomes(*BACKGROUND[before:]))
        Crosser.begun = set()
        found = await outcomes(
            a.ask(Crosser.meet_reader, "b", 2), b.ask(Crosser.meet_reader, "a", 2)
        )
        assert all(isinstance(one, int) for one in found), found


async def test_asks_in_one_direction_never_meet(url: list[str]) -> None:
    chance = random.Random(5)
    async with on(url, Crosser) as node:
        names = [f"n{n}" for n in range(8)]

        async def one() -> int:
            some = sorted(chance.sample(names, 4))
            return await node.agent(Crosser, some[0]).ask(Crosser.down, some[1:])

        found = await outcomes(*(one() for _ in range(150)))
        assert all(isinstance(each, int) for each in found), found


async def test_an_error_at_the_deadline_says_what_it_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ATTEMPT_SECONDS", 0.3)  # the answer to a second attempt says it
    async with serving(tmp_path / "log.db", Crosser) as node:
        slow = asyncio.create_task(node.agent(Crosser, "a").ask(Crosser.slowly, 60.0))
        await asyncio.sleep(0.1)
        with pytest.raises(
            (OutcomeUnknown, DeadlineExceeded), match="waits behind a turn of slowly"
        ):
            await node.agent(Crosser, "a").options(timeout_seconds=4).ask(Crosser.touch)
        slow.cancel()
        with pytest.raises((asyncio.CancelledError, HandlerFailed)):
            await slow


async def test_what_was_refused_runs_at_no_later_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ATTEMPT_SECONDS", 1000.0)  # no attempts but those of this test
    async with serving(tmp_path / "log.db", Crosser) as node:
        calls: list[Call] = []
        send = node._router._send

        def sent(opened: Open) -> None:
            send(opened)
            if opened.call.handler == "touch":
                calls.append(msgspec.structs.replace(opened.call))

        node._router._send = sent  # type: ignore[method-assign]
        found = await outcomes(
            *(node.agent(Crosser, a).ask(Crosser.meet, b, 2) for a, b in ("ab", "ba"))
        )
        refused = [one for one in found if isinstance(one, WouldDeadlock)]
        assert len(refused) == 1 and len(calls) == 2, found
        before = [await node.agent(Crosser, name).ask(Crosser.value) for name in "ab"]
        answers: list[tuple[int, bytes]] = []
        for call in calls:
            node._runtime.intake.take(
                call, lambda _, outcome, payload: answers.append((outcome, payload))
            )
        assert [await node.agent(Crosser, name).ask(Crosser.value) for name in "ab"] == before
        assert sorted(outcome for outcome, _ in answers) == [OK, ERROR]
