"""Code that outlives its turn cannot write with it, nor with any other; what belongs to a turn
does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from msgspec import field
from tests.agents.kinds import on, serving, until

from holdfast import Agent, State, TurnOver, handler, reader


class Page(State):
    n: int = 0
    lines: list[str] = field(default_factory=list)


class Left:
    """What turns left behind, and what became of it."""

    gate: ClassVar[asyncio.Event]
    done: ClassVar[list[str]] = []
    kept: ClassVar[list[Any]] = []
    tasks: ClassVar[list[asyncio.Task[None]]] = []

    @classmethod
    def behind(cls, name: str, work: Callable[[], Awaitable[None]]) -> None:
        async def later() -> None:
            await cls.gate.wait()
            try:
                await work()
            except TurnOver as error:
                assert "this turn is over" in str(error)
                cls.done.append(f"{name} refused")
            else:
                cls.done.append(f"{name} done")

        cls.tasks.append(asyncio.create_task(later()))


class Leaving:
    """The ways in which code that is left behind would write, for agents of two kinds."""

    state: Any
    send_to_me: Any

    def leave(self: Any) -> None:
        state, lines = self.state, self.state.lines
        Left.kept.append(state)

        async def change() -> None:
            self.state.n += 100

        async def append() -> None:
            self.state.lines.append("late")

        async def replace() -> None:
            self.state = Page(n=100)

        async def send() -> None:
            await self.agent(type(self), self.name).send(type(self).add, 100)

        async def sooner() -> None:
            await early.send(type(self).add, 100)

        async def timer() -> None:
            self.set_timer("late", 0.0, type(self).add, 100)

        async def cancel() -> None:
            self.cancel_timer("early")

        async def own() -> None:
            state.n += 100
            lines.append("late")

        async def ask() -> None:
            assert await self.agent(type(self), "other").ask(type(self).add, 1) >= 1
            assert await self.agent(type(self), self.name).ask(type(self).look) >= 0

        early = self.agent(type(self), self.name)
        for work in (change, append, send, sooner, timer, cancel, own, ask, replace):
            Left.behind(work.__name__, work)


class AtOnce(Agent[Page], Leaving):
    """Its handlers wait for nothing."""

    @handler
    async def go(self) -> None:
        self.state.n += 1
        self.leave()

    @handler
    async def add(self, by: int) -> int:
        self.state.n += by
        return self.state.n

    @handler
    async def look(self) -> int:
        return self.state.n

    @reader
    async def all(self) -> tuple[int, list[str]]:
        return self.state.n, self.state.lines


class Waiting(Agent[Page], Leaving):
    """Beside its turns others' code runs."""

    @handler
    async def go(self) -> None:
        self.state.n += 1
        self.leave()

    @handler
    async def go_and_wait(self) -> None:
        await asyncio.sleep(0)
        self.state.n += 1
        self.leave()

    @handler
    async def go_and_fail(self) -> None:
        await asyncio.sleep(0)
        self.state.n += 1000
        self.leave()
        raise ValueError("after leaving")

    @handler
    async def beside(self) -> int:
        """A turn in the midst of which what others left runs."""
        before = self.state.n
        Left.gate.set()
        while len({*Left.done}) < len(EXPECTED) - 1:  # one of them asks this very agent
            await asyncio.sleep(0.001)
        self.state.n += 1
        assert self.state.n == before + 1
        return self.state.n

    @handler
    async def add(self, by: int) -> int:
        self.state.n += by
        return self.state.n

    @handler
    async def look(self) -> int:
        return self.state.n

    @reader
    async def all(self) -> tuple[int, list[str]]:
        return self.state.n, self.state.lines


EXPECTED = sorted(
    ["ask done", "own done"]
    + [
        f"{name} refused"
        for name in ("change", "append", "replace", "send", "sooner", "timer", "cancel")
    ]
)


@pytest.fixture(autouse=True)
def nothing_left() -> None:
    Left.gate = asyncio.Event()
    Left.done, Left.kept, Left.tasks = [], [], []


@pytest.mark.parametrize(
    ("kind", "way"),
    [(AtOnce, "go"), (Waiting, "go"), (Waiting, "go_and_wait"), (Waiting, "go_and_fail")],
)
async def test_what_a_turn_left_behind_writes_nothing(url: list[str], kind: Any, way: str) -> None:
    async with on(url, kind) as node:
        agent = node.agent(kind, f"a-{way}")
        n = await agent.ask(kind.add, 1)
        if way == "go_and_fail":
            with pytest.raises(Exception, match="after leaving"):
                await agent.ask(getattr(kind, way))
        else:
            n += 1
            await agent.ask(getattr(kind, way))
        for state in Left.kept:
            state.n = 5000
            state.lines.append("from outside")
        if kind is Waiting:
            n += 1
            assert await agent.ask(Waiting.beside) == n
        Left.gate.set()
        await asyncio.gather(*Left.tasks)
        assert sorted({*Left.done}) == EXPECTED  # a turn that ran again leaves everything twice
        assert await agent.ask(kind.add, 1) == n + 1
        assert await agent.options(fresh=True).ask(kind.all) == (n + 1, [])
    async with on(url, kind) as node:
        assert await node.agent(kind, f"a-{way}").ask(kind.all) == (n + 1, [])


class Helper:
    def __init__(self, agent: Helped) -> None:
        self.agent = agent

    def bump(self) -> int:
        self.agent.state.n += 1
        return self.agent.state.n

    def total(self) -> int:
        return self.agent.state.n

    def remind(self) -> str:
        self.agent.set_timer("later", 1000.0, Helped.bump_at_once)
        return self.agent.name


class Helped(Agent[Page]):
    """What belongs to a turn writes with it, whatever way it goes."""

    def __init__(self) -> None:
        self.helper = Helper(self)

    @handler
    async def bump_at_once(self) -> int:
        return self.helper.bump()

    @handler
    async def bump_and_wait(self) -> int:
        await asyncio.sleep(0)
        return self.helper.bump()

    @handler
    async def replace(self) -> int:
        await asyncio.sleep(0)
        self.state = Page(n=self.state.n + 1)
        return self.helper.bump()

    @handler
    async def together(self) -> int:
        async def part() -> None:
            await asyncio.sleep(0.001)
            self.state.n += 1

        await asyncio.gather(*(part() for _ in range(5)))
        async with asyncio.TaskGroup() as group:
            group.create_task(part())
        await asyncio.wait_for(part(), 5)  # noqa: TID251 - as users write it
        await asyncio.get_running_loop().run_in_executor(None, self.helper.bump)
        await asyncio.to_thread(self.helper.bump)
        asyncio.get_running_loop().call_soon(self.helper.bump)
        await asyncio.sleep(0.001)
        assert await asyncio.to_thread(self.helper.remind) == self.name
        return self.state.n

    @reader
    async def read_at_once(self) -> int:
        return self.helper.total()

    @reader
    async def read_and_wait(self) -> int:
        await asyncio.sleep(0)
        return self.helper.total()


async def test_what_belongs_to_a_turn_writes_with_it(tmp_path: Path) -> None:
    async with serving(tmp_path / "log.db", Helped) as node:
        agent = node.agent(Helped, "a")
        assert await agent.ask(Helped.bump_at_once) == 1
        assert await agent.ask(Helped.bump_and_wait) == 2
        assert await agent.ask(Helped.replace) == 4
        assert await agent.ask(Helped.together) == 14
        for way in (Helped.read_at_once, Helped.read_and_wait):
            assert await agent.ask(way) == 14
        assert [timer.name for timer in (await node.inspect("Helped/a")).timers] == ["later"]
        assert await agent.ask(Helped.bump_at_once) == 15


async def test_a_state_that_was_kept_is_of_its_own_turn(tmp_path: Path) -> None:
    async with serving(tmp_path / "log.db", AtOnce) as node:
        agent = node.agent(AtOnce, "a")
        for _ in range(3):
            await agent.ask(AtOnce.go)
            for state in Left.kept:
                state.n, state.lines = 99, ["from outside"]

        async def there() -> bool:
            return await agent.ask(AtOnce.all) == (3, [])

        await until(there)
        Left.gate.set()
        await asyncio.gather(*Left.tasks)
