"""A node of which a part has ended does not limp: it ends as a whole, and tells whoever calls why."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from tests.agents.kinds import Counter, on, until

from holdfast import Agent, Closed, Node, NotDone, State, Unknown, handler

BEGAN: list[str] = []


class Waiter(Agent[State]):
    @handler
    async def wait(self) -> None:
        BEGAN.append(self.name)
        await asyncio.Event().wait()


def parts(before: set[asyncio.Task[None]]) -> dict[str, asyncio.Task[None]]:
    """The tasks of a node, by what they run; those of its engine are the engine's own."""
    found = {}
    for task in asyncio.all_tasks() - before:
        code = getattr(task.get_coro(), "cr_code", None)
        if code is not None and "/holdfast/" in code.co_filename and "/engines/" not in code.co_filename:
            found[getattr(code, "co_qualname", code.co_name)] = task
    return found


@asynccontextmanager
async def joined(url: list[str]) -> AsyncIterator[tuple[Node, dict[str, asyncio.Task[None]]]]:
    before = asyncio.all_tasks()
    async with on(url, Counter, Waiter) as node:
        assert await node.agent(Counter, "a").ask(Counter.add, 1)
        yield node, parts(before)


async def test_a_part_that_is_cancelled_ends_its_node(url: list[str], caplog: pytest.LogCaptureFixture) -> None:
    async with joined(url) as (_, there):
        names = sorted(there)
    assert len(names) >= 7, names
    for name in names if url[0].startswith("local") else ["Life._keep_proving", "Ownership._run", "Membership._run"]:
        caplog.clear()
        async with joined(url) as (node, there):
            there[name].cancel()

            async def refused(node: Node = node) -> bool:
                try:
                    await node.agent(Counter, "a").options(timeout_seconds=5).ask(Counter.add, 1)
                except Closed as error:
                    return "has failed" in str(error) and "was cancelled" in str(error)
                except (NotDone, Unknown):
                    return False
                return False

            await until(refused)
            with pytest.raises(Closed, match="has failed"):
                await node.agent(Counter, "a").send(Counter.add, 1)
            assert f"the node {node.name} ends" in caplog.text, name
    async with joined(url) as (_, there):
        assert sorted(there) == names, "nothing is left of the others"


async def test_what_is_open_when_a_part_ends_is_answered(url: list[str]) -> None:
    BEGAN.clear()
    async with joined(url) as (node, there):
        agents = [node.agent(Waiter, f"{n}").options(timeout_seconds=600) for n in range(3)]
        asked = [asyncio.create_task(agent.ask(Waiter.wait)) for agent in agents]
        async with asyncio.timeout(60):
            while len(BEGAN) < len(asked):
                await asyncio.sleep(0.01)
        there["Ownership._run"].cancel()
        for one in asked:
            with pytest.raises((Closed, Unknown), match="has failed"):
                async with asyncio.timeout(60):
                    await one


async def test_a_node_that_is_closed_in_order_says_nothing(url: list[str], caplog: pytest.LogCaptureFixture) -> None:
    async with joined(url) as (_, there):
        assert there
    assert not caplog.records
