"""A reader that takes the fast path gives what it would give by the general way, and what may not
take it does not."""

from __future__ import annotations

import asyncio
import gc
import weakref
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import msgspec
import pytest
from tests.agents.kinds import serving
from tests.agents.test_fast_path import call, give, taken, until, word

from holdfast import Agent, Node, State, TurnOver, handler, reader
from holdfast.records.messages import NOT_OWNER
from holdfast.serving import fast_path

__all__ = ["taken"]  # a fixture


class Note(State):
    n: int = 0
    text: str = ""


class Helper:
    """Made by the agent's ``__init__``, which gave it the agent itself."""

    def __init__(self, agent: Fast) -> None:
        self.agent = agent

    def look(self) -> tuple[int, str]:
        return self.agent.state.n, self.agent.context.message_id


class Fast(Agent[Note]):
    def __init__(self) -> None:
        self.helper = Helper(self)
        self.runs = 0

    @handler
    async def add(self, by: int) -> int:
        self.state.n += by
        return self.state.n

    @handler
    async def keep(self) -> None:
        self.kept = self.helper

    @reader
    async def value(self) -> int:
        self.runs += 1
        return self.state.n

    @reader
    async def plus(self, by: int, again: int = 0) -> int:
        return self.state.n + by + again

    @reader
    async def title(self) -> str:
        return f"{self.name} {self.context.message_id} {self.context.deadline} {self.context.fence}"

    @reader
    async def by_helper(self) -> tuple[int, str]:
        return self.helper.look()

    @reader
    async def whole(self) -> Note:
        return self.state

    @reader
    async def write(self) -> int:
        self.state.n += 1
        return self.state.n

    @reader
    async def ring(self) -> int:
        self.set_timer("later", 1000.0, Fast.keep)
        return 1

    @reader
    async def fail(self) -> int:
        raise ValueError("failed")

    @reader
    async def leave(self) -> int:
        raise SystemExit(3)

    @reader
    async def lie(self) -> int:
        return "text"  # type: ignore[return-value]

    @reader
    async def truth(self) -> int:
        return self.state.n > 0

    @reader
    async def overflow(self) -> int:
        return 1 << 70

    @reader
    async def half(self) -> str:
        return "\ud800"

    @reader
    async def long(self) -> str:
        return "x" * (fast_path.SMALL_BYTES + 10)

    @reader
    async def mark(self) -> str:
        before = word.get()
        word.set("of a reader")
        return before

    @reader
    async def named(self, *, by: int) -> int:
        return self.state.n + by

    @reader(runs_in="thread")
    async def apart(self) -> int:
        return self.state.n


class Slow(Agent[Note], kind="Fast"):
    gate = asyncio.Event()
    began = False

    @handler
    async def add(self, by: int) -> int:
        self.state.n += by
        return self.state.n

    @handler
    async def wait(self) -> int:
        self.state.n += 1
        Slow.began = True
        await Slow.gate.wait()
        self.state.n += 10
        return self.state.n

    @reader
    async def value(self) -> int:
        return self.state.n


FAST: dict[str, Any] = {
    "value": [],
    "plus": [3],
    "title": [],
    "by_helper": [],
    "whole": [],
    "write": [],
    "ring": [],
    "fail": [],
    "leave": [],
    "lie": [],
    "truth": [],
    "overflow": [],
    "half": [],
    "long": [],
    "mark": [],
}
GENERAL: dict[str, Any] = {"plus": {"by": 3}, "named": [3], "apart": [], "unknown": []}


async def test_it_reads_as_by_the_general_way(
    tmp_path: Path, taken: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for way in ("fast", "general"):
        if way == "general":
            monkeypatch.setattr(fast_path, "take", lambda *_: False)
        async with serving(tmp_path / way, Fast) as node:
            answers = []
            for number in (1, 2):
                await give(node, [call(number, number)])
                await give(node, [call(0, 0, "value", [])])  # the general way: it decodes the state
                for name, args in (*FAST.items(), *GENERAL.items()):
                    taken.clear()
                    answers.append((name, await give(node, [call(0, 0, name, args)])))
                    if way == "fast":
                        assert (name, args, taken) == (name, args, [args == FAST.get(name)])
            found.append(answers)
    assert found[0] == found[1]
    assert dict(found[0])["plus"] == [(0, 5)]
    assert word.get() == ""


@pytest.mark.parametrize(
    "more", [{"fresh": True}, {"interrupted": True}, {"deadline": 1.0}, {"deadline": 0.0}]
)
async def test_what_asks_for_more_goes_the_general_way(
    more: dict[str, Any], tmp_path: Path, taken: list[bool]
) -> None:
    async with serving(tmp_path / "log", Fast) as node:
        await give(node, [call(1, 1)])
        await give(node, [call(0, 0, "value", [])])
        taken.clear()
        outcome, value = (await give(node, [call(0, 0, "value", [], **more)]))[0]
        assert (taken[0], outcome, value if outcome == 0 else value[0]) == (
            (False, 1, "DeadlineExceeded") if more.get("deadline") else (False, 0, 1)
        )


async def test_it_sees_what_is_committed_and_leaves_a_turn_alone(
    tmp_path: Path, taken: list[bool]
) -> None:
    async with serving(tmp_path / "log", Fast) as node:
        await give(node, [call(1, 1), call(0, 0, "value", [])])
        runtime = node._runtime
        seen: list[Any] = []

        def keep(_reference: int, outcome: int, payload: bytes) -> None:
            seen.append((outcome, msgspec.msgpack.decode(payload) if payload else None))

        await give(node, [call(0, 0, "value", [])])
        runtime.intake.take(call(2, 2), lambda *_: None)  # ended, and not yet committed
        taken.clear()
        runtime.intake.take(call(0, 0, "value", []), keep)
        runtime.intake.take(call(0, 0, "by_helper", []), keep)
        assert taken == [True, True]
        assert [outcome for outcome, _ in seen] == [0, 0]
        assert (seen[0][1], seen[1][1][0]) == (1, 1)
        agent = runtime.resident["Fast/a"].agent
        with pytest.raises(TurnOver):
            agent.helper.look()  # nothing of a reader is left there
        assert await give(node, [call(3, 3)]) == [(0, 3)]
        assert (agent.runs, agent.helper.agent is agent) == (3, True)


async def test_who_may_not_answer_from_memory_does_not(
    tmp_path: Path, taken: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path / "log", Fast) as node:
        await give(node, [call(1, 1)])
        await give(node, [call(0, 0, "value", [])])
        with monkeypatch.context() as patch:
            patch.setattr(node._runtime.life, "live_until", 0.0)
            assert await _outcome(node, "value") == NOT_OWNER
        assert await _outcome(node, "value") == 0


async def test_nothing_is_left_of_a_reader_that_raised(tmp_path: Path, taken: list[bool]) -> None:
    class Brief(Fast, kind="Fast", idle_seconds=0.1):
        pass

    async with serving(tmp_path / "log", Brief) as node:
        await give(node, [call(1, 1)])
        await give(node, [call(0, 0, "value", [])])
        resident = node._runtime.resident
        agent = weakref.ref(resident["Fast/a"].agent)
        resident["Fast/a"].agent.helper.agent = None  # a cycle of its author's
        taken.clear()
        gc.disable()
        try:
            assert (await give(node, [call(0, 0, "fail", [])]))[0][0] == 1
            assert taken == [True]
            await until(lambda: not resident)
            assert agent() is None
        finally:
            gc.enable()


async def test_beside_a_turn_that_waits_it_reads_what_is_committed(
    tmp_path: Path, taken: list[bool]
) -> None:
    async with serving(tmp_path / "log", Slow) as node:
        await give(node, [call(1, 1)])
        await give(node, [call(0, 0, "value", [])])
        going = asyncio.ensure_future(give(node, [call(2, 2, "wait", [])]))
        await until(lambda: Slow.began)
        taken.clear()
        assert await give(node, [call(0, 0, "value", [])]) == [(0, 1)]
        assert taken == [True]
        Slow.gate.set()
        assert await going == [(0, 12)]
        assert await give(node, [call(0, 0, "value", [])]) == [(0, 12)]


async def test_attributes_that_users_code_sets_go_the_general_way(
    tmp_path: Path, taken: list[bool]
) -> None:
    class Watched(Fast, kind="Fast"):
        refuses = False

        def __setattr__(self, name: str, value: Any) -> None:
            if type(self).refuses:
                raise OSError(f"{name} is not to be set")
            super().__setattr__(name, value)

    async with serving(tmp_path / "log", Watched) as node:
        await give(node, [call(1, 1)])
        await give(node, [call(0, 0, "value", [])])
        taken.clear()
        Watched.refuses = True
        assert await give(node, [call(0, 0, "plus", [1])]) == [(1, ["BadState", ANY])]
        assert await give(node, [call(2, 2)]) == [(0, 2)]  # a handler's turn sets none by it
        assert await give(node, [call(3, 3, "keep", [])]) == [(1, ["HandlerFailed", ANY])]
        Watched.refuses = False
        assert await give(node, [call(0, 0, "plus", [1])]) == [(0, 3)]
        assert taken == [False] * 4


async def _outcome(node: Node, name: str) -> int:
    found: list[int] = []

    def sink(_reference: int, outcome: int, _payload: bytes) -> None:
        found.append(outcome)

    node._runtime.intake.take(call(0, 0, name, []), sink)
    return found[0]
