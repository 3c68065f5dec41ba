"""A message under an id whose arguments raise when they are made fails alone: what it means is
looked at behind the guard."""

from __future__ import annotations

import asyncio
import inspect
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tests.agents.kinds import Gate, serving, until
from tests.agents.rogues import NAMES, Rogue, Trap, throw

from holdfast import Agent, BadMessage, HandlerFailed, Node, ReplayMismatch, State, codec, handler


class Held(Agent[State]):
    @handler
    async def take(self, trap: Trap) -> int:
        return 1

    @handler
    async def other(self) -> int:
        return 2


def raw(how: str) -> bytes:
    return codec.encode_raw([{"how": how}])


async def ask(node: Node, data: bytes, message_id: str) -> bytes:
    ref = node.agent(Held, "a").options(message_id=message_id)
    return await ref._router.ask(ref._token, "take", data, ref._options, reads_only=False)


async def test_what_is_sent_under_an_id_is_a_dead_letter(tmp_path: Path) -> None:
    async with serving(tmp_path / "log.db", Rogue) as node:
        for name in NAMES:
            await node._router.send("Rogue/a", "take", raw(name), 5.0, f"id {name}")

        async def buried() -> bool:
            return len(await node.dead_letters.all()) == len(NAMES)

        await until(buried)
        assert await node.agent(Rogue, "a").ask(Rogue.add) == 1
        assert not node._runtime.tasks.failures


async def test_what_is_asked_under_an_id_is_answered(tmp_path: Path) -> None:
    async with serving(tmp_path / "log.db", Held) as node:
        for name in NAMES:
            with pytest.raises(BadMessage):
                await ask(node, raw(name), f"first {name}")
            assert await ask(node, raw(""), name) == codec.encode_raw(1)
            with pytest.raises(ReplayMismatch):
                await ask(node, raw(name), name)  # from the record
        gate = Gate(node)
        first = asyncio.create_task(ask(node, raw(""), "in hand"))

        async def held() -> bool:
            return gate.waiting > 0

        await until(held)
        with pytest.raises(ReplayMismatch):
            await ask(node, raw("Odd"), "in hand")
        gate.open.set()
        assert await first == codec.encode_raw(1)
        assert await node.agent(Held, "a").ask(Held.other) == 2
        assert not node._runtime.resident["Held/a"].in_hand and not node._runtime.tasks.failures


@pytest.mark.skipif(
    sys.version_info < (3, 12), reason="inspect.markcoroutinefunction is there from 3.12 on"
)
async def test_a_marked_function_that_raises_fails_its_own_message(tmp_path: Path) -> None:
    def marked(function: Any) -> Any:
        def take(self: Any, how: str) -> Any:
            throw(how)
            return function(self, how)

        return inspect.markcoroutinefunction(take)  # type: ignore[attr-defined]

    class Marked(Agent[State]):
        @handler
        @marked
        async def take(self, how: str) -> int:
            return 1

    async with serving(tmp_path / "log.db", Marked) as node:
        for name in NAMES:
            with pytest.raises(HandlerFailed):
                await node.agent(Marked, "a").ask(Marked.take, name)
        assert await node.agent(Marked, "a").ask(Marked.take, "") == 1
        assert not node._runtime.tasks.failures


class Once(State):
    """A reply that its agent's node can make, and its caller cannot."""

    made: ClassVar[int] = 0

    def __post_init__(self) -> None:
        Once.made += 1
        throw("TimeoutError" if Once.made == 3 else "")


class Giver(Agent[State]):
    @handler
    async def give(self) -> Once:
        return Once()


async def test_a_reply_whose_code_raises_is_a_bad_message(tmp_path: Path) -> None:
    async with serving(tmp_path / "log.db", Giver) as node:
        Once.made = 0
        with pytest.raises(
            BadMessage, match=r"the reply of Giver\.give: TimeoutError.*rogues\.py:"
        ):
            await node.agent(Giver, "a").ask(Giver.give)
        assert Once.made == 3
