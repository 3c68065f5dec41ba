"""An agent's life: timers, idling, cancellation, deadlines, schema versions, and the types it may
have."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from tests.agents.kinds import Counter, Fault, Later, serving, until

from holdfast import (
    Agent,
    BadMessage,
    BadState,
    Closed,
    HandlerFailed,
    State,
    TooLarge,
    handler,
    limits,
    reader,
)
from holdfast.serving import fast_path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


# Timers -------------------------------------------------------------------------------------------


class Rings(State):
    rung: list[str] = msgspec.field(default_factory=list)


class Bell(Agent[Rings]):
    @handler
    async def arm(self, name: str, seconds: float, text: str, fail: bool = False) -> None:
        self.set_timer(name, seconds, Bell.ring, text)
        if fail:
            raise RuntimeError

    @handler
    async def disarm(self, name: str) -> bool:
        return self.cancel_timer(name)

    @handler
    async def ring(self, text: str) -> None:
        if text == "bad":
            raise ValueError("cannot ring")
        self.state.rung.append(text)

    @handler
    async def every(self, seconds: float) -> None:
        self.state.rung.append("tick")
        if len(self.state.rung) < 5:
            self.set_timer("every", seconds, Bell.every, seconds)

    @reader
    async def rung(self) -> list[str]:
        return self.state.rung


async def rung(bell: Any, count: int) -> bool:
    return len(await bell.ask(Bell.rung)) >= count


class Failing(Agent[Rings], idle_seconds=0.1):
    runs = 0

    @handler
    async def arm(self) -> None:
        self.set_timer("t", 0.0, Failing.ring)

    @handler
    async def ring(self) -> None:
        Failing.runs += 1
        raise ValueError("cannot ring")


async def test_a_timer_that_fails_has_its_attempts_however_soon_its_agent_is_idle(
    path: Path,
) -> None:
    Failing.runs = 0
    async with serving(path, Failing) as node:
        await node.agent(Failing, "f").ask(Failing.arm)

        async def buried() -> bool:
            return bool(await node.dead_letters.all())

        await until(buried)

        async def gone() -> bool:
            return not node._runtime.resident

        await until(gone)
        assert Failing.runs == limits.ATTEMPTS_MAX
        assert len(node._runtime.timers) == 0
        assert len(await node.dead_letters.all()) == 1


async def test_a_timer_fires_once(path: Path) -> None:
    async with serving(path, Bell) as node:
        bell = node.agent(Bell, "b")
        await bell.ask(Bell.arm, "t", 0.05, "one")
        await until(lambda: rung(bell, 1))
        await asyncio.sleep(0.2)
        assert await bell.ask(Bell.rung) == ["one"]
        assert (await node.inspect("Bell/b")).timers == []


async def test_a_timer_survives_a_restart_and_fires_late_rather_than_never(path: Path) -> None:
    async with serving(path, Bell) as node:
        await node.agent(Bell, "b").ask(Bell.arm, "past", 0.1, "past")
        await node.agent(Bell, "c").ask(Bell.arm, "future", 3.0, "future")
        await node.agent(Bell, "d").ask(Bell.arm, "far", 1000.0, "far")
        (timer,) = (await node.inspect("Bell/d")).timers
        assert (timer.name, timer.handler) == ("far", "ring")
        Fault(node, ".st.Bell/b", _hang)
    await asyncio.sleep(0.2)
    async with serving(path, Bell) as node:
        await until(lambda: rung(node.agent(Bell, "b"), 1))
        await until(lambda: rung(node.agent(Bell, "c"), 1))
        await asyncio.sleep(0.2)
        assert await node.agent(Bell, "b").ask(Bell.rung) == ["past"]
        assert await node.agent(Bell, "c").ask(Bell.rung) == ["future"]


async def _hang(*_: Any) -> range:
    from holdfast.errors import NoQuorum

    raise NoQuorum("not now")


async def test_a_timer_set_anew_replaces_the_old_one(path: Path) -> None:
    clock = Later()
    async with serving(path, Bell, clock=clock) as node:
        bell = node.agent(Bell, "b")
        await bell.ask(Bell.arm, "t", 1000.0, "old")
        await bell.ask(Bell.arm, "t", 0.1, "new")
        await until(lambda: rung(bell, 1))
        await bell.ask(Bell.arm, "last", 1001.0, "last")
        clock.seconds = 2000.0
        await until(lambda: rung(bell, 2))
        assert await bell.ask(Bell.rung) == ["new", "last"]


async def test_a_cancelled_timer_never_fires(path: Path) -> None:
    clock = Later()
    async with serving(path, Bell, clock=clock) as node:
        bell = node.agent(Bell, "b")
        await bell.ask(Bell.arm, "t", 1000.0, "never")
        assert await bell.ask(Bell.disarm, "t") is True
        assert await bell.ask(Bell.disarm, "t") is False
        with pytest.raises(HandlerFailed):
            await bell.ask(Bell.arm, "u", 0.0, "undone", fail=True)
        await bell.ask(Bell.arm, "last", 1001.0, "last")  # due behind the one that was cancelled
        clock.seconds = 2000.0
        await until(lambda: rung(bell, 1))
        assert await bell.ask(Bell.rung) == ["last"]


async def test_a_timer_that_arms_itself(path: Path) -> None:
    async with serving(path, Bell) as node:
        bell = node.agent(Bell, "b")
        await bell.ask(Bell.every, 0.02)
        await until(lambda: rung(bell, 5))
        await asyncio.sleep(0.1)
        assert await bell.ask(Bell.rung) == ["tick"] * 5


async def test_a_timer_that_keeps_failing_becomes_a_dead_letter(path: Path) -> None:
    async with serving(path, Bell) as node:
        await node.agent(Bell, "b").ask(Bell.arm, "t", 0.0, "bad")

        async def dead() -> bool:
            return bool(await node.dead_letters.all())

        await until(dead)
        (letter,) = await node.dead_letters.all()
        assert (letter.handler, letter.arguments, letter.kind_of_error) == (
            "ring",
            ["bad"],
            "ValueError",
        )
        await node.agent(Bell, "b").ask(Bell.ring, "fine")
        assert (await node.inspect("Bell/b")).timers == []


# Idling, cancellation -----------------------------------------------------------------------------


async def test_an_idle_agent_leaves_memory_and_comes_back(path: Path) -> None:
    class Idle(Agent[Rings], idle_seconds=0.5):
        @handler
        async def add(self, text: str) -> int:
            self.state.rung.append(text)
            return len(self.state.rung)

    async with serving(path, Idle) as node:
        for n in range(20):
            await node.agent(Idle, f"a{n}").ask(Idle.add, "x")
        assert node.statistics()["resident"] > 0

        async def empty() -> bool:
            return bool(node.statistics()["resident"] == 0)

        await until(empty)
        assert node.statistics()["agents"] == 20
        assert [await node.agent(Idle, f"a{n}").ask(Idle.add, "y") for n in range(20)] == [2] * 20


async def test_what_was_kept_since_a_claim_goes_when_nobody_wanted_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(path) as node:
        for n in range(20):
            await node.agent(Counter, f"a{n}").ask(Counter.add, n)
    async with serving(path) as node:
        runtime = node._runtime
        assert runtime.warm_bytes > 0
        monkeypatch.setattr(limits, "IDLE_SECONDS", 0.0)
        for shard in runtime.shards.values():
            await shard.passivate(runtime.loop.time() + 1.0)
        assert runtime.warm_bytes == 0
        assert [await node.agent(Counter, f"a{n}").ask(Counter.value) for n in range(20)] == list(
            range(20)
        )


async def test_a_cancelled_ask_cancels_its_handler(path: Path) -> None:
    async with serving(path) as node:
        agent = node.agent(Counter, "a")
        asking = asyncio.create_task(agent.ask(Counter.slow, 900.0))
        queued = asyncio.create_task(agent.ask(Counter.add, 100))
        for _ in range(3):  # one runs, one waits
            await asyncio.sleep(0)
        queued.cancel()
        asking.cancel()
        await asyncio.gather(asking, queued, return_exceptions=True)
        async with asyncio.timeout(450):
            assert await agent.ask(Counter.add, 1) == 1


async def test_a_handler_that_swallows_its_cancellation_does_no_harm(path: Path) -> None:
    class Stubborn(Agent[Rings]):
        @handler
        async def hold(self) -> str:
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                self.state.rung.append("cancelled")
            return "done"

        @reader
        async def rung(self) -> list[str]:
            return self.state.rung

    async with serving(path, Stubborn) as node:
        agent = node.agent(Stubborn, "s")
        asking = asyncio.create_task(agent.ask(Stubborn.hold))
        await asyncio.sleep(0.05)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

        async def done() -> bool:
            return await agent.ask(Stubborn.rung) == ["cancelled"]

        await until(done)


async def test_a_handler_that_blocks_for_seconds_is_run_once(path: Path) -> None:
    class Heavy(Agent[Rings]):
        @handler
        async def compute(self) -> int:
            time.sleep(limits.ISOLATE_SECONDS + 0.5)
            self.state.rung.append("done")
            return len(self.state.rung)

        @reader
        async def rung(self) -> list[str]:
            return self.state.rung

    async with serving(path, Heavy) as node:
        agent = node.agent(Heavy, "h")
        assert await agent.ask(Heavy.compute) == 1
        assert await agent.ask(Heavy.rung) == ["done"]


async def test_a_closed_node_says_so(path: Path) -> None:
    async with serving(path) as node:
        agent = node.agent(Counter, "a")
        await agent.ask(Counter.add, 1)
    async with asyncio.timeout(240):
        for call in (
            agent.ask(Counter.add, 1),
            agent.ask(Counter.value),
            agent.send(Counter.add, 1),
        ):
            with pytest.raises(Closed):
                await call
        with pytest.raises(Closed):
            await node.register(Counter, "b")
        with pytest.raises(Closed):
            await node.inspect("Counter/a")
    assert node.lookup(Counter, "b") is None
    agent.tell(Counter.add, 1)
    await node.close()


async def test_fresh_reads_are_as_new_as_any_acknowledgement(path: Path) -> None:
    async with serving(path) as node:
        agent = node.agent(Counter, "a")
        await agent.ask(Counter.add, 1)
        assert await agent.options(fresh=True).ask(Counter.value) == 1


# Schema versions ----------------------------------------------------------------------------------


class V1(State):
    name: str = "x"
    count: int = 0


class V2(State):
    title: str = ""
    counts: dict[str, int] = msgspec.field(default_factory=dict)


def version_1() -> Any:
    class Doc(Agent[V1], kind="Doc"):
        @handler
        async def add(self) -> int:
            self.state.count += 1
            return self.state.count

    return Doc


async def test_an_older_state_is_upgraded(path: Path) -> None:
    doc = version_1()
    async with serving(path, doc) as node:
        assert await node.agent(doc, "d").ask(doc.add) == 1

    class Doc2(Agent[V2], kind="Doc", state_version=2):
        @classmethod
        def upgrade_state(cls, version: int, state: Any) -> Any:
            assert version == 1
            return V2(title=state["name"], counts={"old": state["count"]})

        @handler
        async def add(self, key: str) -> dict[str, int]:
            self.state.counts[key] = self.state.counts.get(key, 0) + 1
            return self.state.counts

        @reader
        async def title(self) -> str:
            return self.state.title

    for _ in range(2):
        async with serving(path, Doc2) as node:
            assert await node.agent(Doc2, "d").ask(Doc2.title) == "x"
    async with serving(path, Doc2) as node:
        assert await node.agent(Doc2, "d").ask(Doc2.add, "new") == {"old": 1, "new": 1}
        assert (await node.inspect("Doc/d")).state_version == 2
    async with serving(path, doc) as node:
        with pytest.raises(BadState, match="upgrade this node's code"):
            await node.agent(doc, "d").ask(doc.add)
    async with serving(path, Doc2) as node:
        assert await node.agent(Doc2, "d").ask(Doc2.add, "new") == {"old": 1, "new": 2}


async def test_an_upgrade_that_fails_says_so_and_harms_nothing(path: Path) -> None:
    doc = version_1()
    async with serving(path, doc) as node:
        await node.agent(doc, "d").ask(doc.add)

    class Broken(Agent[V2], kind="Doc", state_version=2):
        @classmethod
        def upgrade_state(cls, version: int, state: Any) -> Any:
            raise KeyError("missing")

        @handler
        async def look(self) -> str:
            return self.state.title

    class Forgotten(Agent[V2], kind="Doc"):
        @handler
        async def look(self) -> str:
            return self.state.title

    async with serving(path, Broken) as node:
        for _ in range(2):
            with pytest.raises(
                BadState, match="upgrade_state from version 1 to 2 failed: KeyError"
            ):
                await node.agent(Broken, "d").ask(Broken.look)
        assert await node.agent(Broken, "other").ask(Broken.look) == ""
    async with serving(path, doc) as node:
        assert await node.agent(doc, "d").ask(doc.add) == 2


# Types --------------------------------------------------------------------------------------------


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Point:
    x: float
    y: float = 0.0


class Everything(State):
    points: list[Point] = msgspec.field(default_factory=list)
    colour: Colour = Colour.RED
    matrix: NDArray[np.float32] = msgspec.field(
        default_factory=lambda: np.zeros((2, 2), np.float32)
    )
    maybe: int | None = None
    tags: set[str] = msgspec.field(default_factory=set)
    raw: bytes = b""


class Typed(Agent[Everything]):
    @handler
    async def put(
        self,
        points: list[Point],
        *,
        colour: Colour = Colour.BLUE,
        matrix: NDArray[np.float32] | None = None,
        tags: set[str] | None = None,
    ) -> Point:
        self.state.points += points
        self.state.colour = colour
        if matrix is not None:
            self.state.matrix += matrix
        self.state.tags |= tags or set()
        return self.state.points[-1]

    @reader
    async def look(self) -> Everything:
        return self.state

    @reader
    async def scribble(self) -> None:
        self.state.matrix[0, 0] = 7


async def test_types_that_a_python_person_would_try(path: Path) -> None:
    async with serving(path, Typed) as node:
        agent = node.agent(Typed, "t")
        ones = np.ones((2, 2), np.float32)
        assert await agent.ask(Typed.put, [Point(1, 2)], matrix=ones, tags={"a", "b"}) == Point(
            1.0, 2.0
        )
        await agent.ask(Typed.put, [Point(3)], matrix=ones)
        assert np.array_equal(
            (await node.agent(Typed, "other").ask(Typed.look)).matrix, np.zeros((2, 2))
        )
    async with serving(path, Typed) as node:
        agent = node.agent(Typed, "t")
        state = await agent.ask(Typed.look)
        assert state.points == [Point(1, 2), Point(3)]
        assert (state.colour, state.tags, state.maybe) == (Colour.BLUE, {"a", "b"}, None)
        assert state.matrix.dtype == np.float32
        assert np.array_equal(state.matrix, np.full((2, 2), 2.0))
        with pytest.raises(HandlerFailed, match="read-only"):
            await agent.ask(Typed.scribble)
        with pytest.raises(BadMessage, match=r"points\[0\]\.x|\$\.points"):
            await agent.ask(Typed.put, [{"x": "far"}])  # type: ignore[list-item]
        with pytest.raises(BadMessage, match="colour"):
            await agent.ask(Typed.put, [], colour="green")  # type: ignore[arg-type]
        with pytest.raises(BadMessage):
            await agent.ask(Typed.put, [], matrix=np.array([object()]))


async def test_a_large_state_lives_in_a_blob_and_the_old_one_goes(path: Path) -> None:
    class Big(State):
        data: bytes = b""
        n: int = 0

    class Keeper(Agent[Big]):
        @handler
        async def fill(self, size: int, byte: int) -> int:
            self.state.data = bytes([byte]) * size
            self.state.n += 1
            return self.state.n

        @handler
        async def touch(self) -> int:
            return self.state.n

        @reader
        async def look(self) -> tuple[int, int]:
            return len(self.state.data), self.state.data[-1]

    async with serving(path, Keeper) as node:
        agent = node.agent(Keeper, "k")
        for byte in range(1, 6):
            assert await agent.ask(Keeper.fill, 3_000_000, byte) == byte
        assert await agent.ask(Keeper.look) == (3_000_000, 5)
        info = node.describe("Keeper/k")

        async def keeps_one() -> bool:
            return len(await node.engine.blobs.keys(f"{info.cell}.{info.shard}")) == 1

        await until(keeps_one)
    async with serving(path, Keeper) as node:
        agent = node.agent(Keeper, "k")
        assert await agent.ask(Keeper.look) == (3_000_000, 5)
        assert await agent.ask(Keeper.touch) == 5
        assert await agent.ask(Keeper.fill, 10, 9) == 6
        assert await agent.ask(Keeper.look) == (10, 9)

        async def keeps_none() -> bool:
            return await node.engine.blobs.keys(f"{info.cell}.{info.shard}") == []

        await until(keeps_none)


async def test_a_state_over_its_bound_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "STATE_BYTES_MAX", 1000)
    monkeypatch.setattr(fast_path, "SMALL_BYTES", 1000)
    async with serving(path) as node:
        agent = node.agent(Counter, "a")
        await agent.ask(Counter.note, "x")
        with pytest.raises((BadState, TooLarge), match="1000"):
            await agent.ask(Counter.note, "y" * 2000)
        assert await agent.ask(Counter.texts) == ["x"]


class Opaque: ...


class HoldsOpaque(State):
    value: Opaque = msgspec.field(default_factory=Opaque)


# Mistakes in a class are told when it is defined --------------------------------------------------


def test_mistakes_are_told_at_the_definition() -> None:
    class NeedsArguments(State):
        required: int

    with pytest.raises(TypeError, match="without arguments"):

        class One(Agent[NeedsArguments]): ...

    with pytest.raises(TypeError, match="async def"):

        class Two(Agent[State]):
            @handler  # type: ignore[type-var,arg-type]
            def plain(self) -> int:
                return 1

    with pytest.raises(TypeError, match=r"\*args"):

        class Three(Agent[State]):
            @handler
            async def many(self, *args: int) -> None: ...

    with pytest.raises(TypeError, match="Agent\\[MyState\\]"):

        class Four(Agent): ...  # type: ignore[type-arg]

    with pytest.raises(TypeError):

        class Five(Agent[State], unknown_option=1): ...  # type: ignore[call-arg]

    with pytest.raises(TypeError, match="positive"):

        class Six(Agent[State], mailbox_max=0): ...

    with pytest.raises(TypeError, match="one str"):

        class Seven(Agent[State], capabilities="review"): ...

    with pytest.raises(TypeError, match="cannot be stored"):

        class Eight(Agent[HoldsOpaque]): ...

    with pytest.raises(TypeError, match=r"Nine.either cannot be a message: .*union"):

        class Nine(Agent[State]):
            @handler
            async def either(self) -> State | NeedsArguments:
                return State()


async def test_what_raises_in_making_an_agent_is_told(path: Path) -> None:
    class Angry(Agent[State]):
        def __init__(self) -> None:
            raise RuntimeError("no")

        @handler
        async def hit(self) -> None: ...

    broken = False

    def fails() -> int:
        if broken:
            raise RuntimeError("no default today")
        return 1

    class Moody(State):
        n: int = msgspec.field(default_factory=fails)

    class Sulks(Agent[Moody]):
        @handler
        async def hit(self) -> int:
            return self.state.n

    async with serving(path, Angry, Sulks) as node:
        with pytest.raises(BadState, match="RuntimeError: no"):
            await node.agent(Angry, "a").ask(Angry.hit)
        broken = True
        with pytest.raises(BadState, match="no default today"):
            await node.agent(Sulks, "a").ask(Sulks.hit)
        broken = False
        assert await node.agent(Sulks, "a").ask(Sulks.hit) == 1


# What readers share -------------------------------------------------------------------------------


async def test_what_a_reader_does_to_its_copy_stays_with_it(path: Path) -> None:
    class Careless(Agent[Rings]):
        @handler
        async def add(self, text: str) -> None:
            self.state.rung.append(text)

        @reader
        async def look(self) -> list[str]:
            self.state.rung.append("scribbled")
            return self.state.rung

    async with serving(path, Careless) as node:
        agent = node.agent(Careless, "c")
        await agent.ask(Careless.add, "one")
        for _ in range(3):
            assert await agent.ask(Careless.look) == ["one", "scribbled"]
        await agent.ask(Careless.add, "two")
        assert await agent.ask(Careless.look) == ["one", "two", "scribbled"]


class Flat(State):
    n: int = 0
    text: str | None = None
    point: tuple[float, ...] = ()
    matrix: NDArray[np.float64] = msgspec.field(default_factory=lambda: np.zeros(2))


class Listed(State):
    items: list[int] = msgspec.field(default_factory=list)


class Nested(State):
    inner: Flat = msgspec.field(default_factory=Flat)


class Boxed(State):
    anything: Any = None


def test_which_states_readers_may_share() -> None:
    assert shares_view(Flat)
    assert not shares_view(Listed)
    assert not shares_view(Nested)  # the inner struct is not frozen
    assert not shares_view(Boxed)


def shares_view(state: Any) -> bool:
    class Probe(Agent[state]):  # type: ignore[valid-type]
        pass

    return Probe.__kind__.shares_view


async def test_a_handler_asked_fresh_runs_once(path: Path) -> None:
    async with serving(path) as node:
        agent = node.agent(Counter, "f").options(fresh=True)
        assert await agent.ask(Counter.add, 1) == 1
        assert await agent.ask(Counter.add, 1) == 2


async def test_a_fresh_read_of_an_agent_that_is_not_in_memory_commits_first(path: Path) -> None:
    async with serving(path) as node:
        await node.agent(Counter, "f").ask(Counter.add, 1)
    async with serving(path) as node:
        before = node.statistics()["records"]
        assert await node.agent(Counter, "f").options(fresh=True).ask(Counter.value) == 1
        assert node.statistics()["records"] == before + 1


async def test_each_tell_is_a_message_of_its_own(path: Path) -> None:
    class Total(State):
        keys: list[str] = msgspec.field(default_factory=list)

    class Keys(Agent[Total]):
        @handler
        async def hit(self) -> None:
            self.state.keys.append(self.context.idempotency_key)
            await self.agent(Counter, "told").ask(Counter.add, 1)

        @reader
        async def keys(self) -> list[str]:
            return self.state.keys

    async with serving(path, Keys, Counter) as node:
        agent = node.agent(Keys, "k")
        for _ in range(5):
            agent.tell(Keys.hit)

        async def done() -> bool:
            return len(await agent.ask(Keys.keys)) == 5

        await until(done)
        assert len(set(await agent.ask(Keys.keys))) == 5
        assert await node.agent(Counter, "told").ask(Counter.value) == 5


async def test_send_and_ask_under_one_id_without_a_reply(path: Path) -> None:
    async with serving(path, Bell) as node:
        agent = node.agent(Bell, "b").options(message_id="same")
        await agent.send(Bell.ring, "x")
        await until(lambda: rung(node.agent(Bell, "b"), 1))
        assert await agent.ask(Bell.ring, "x") is None
        assert await node.agent(Bell, "b").ask(Bell.rung) == ["x"]
