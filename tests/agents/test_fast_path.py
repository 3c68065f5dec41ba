"""What takes the fast path ends as it would by the general way: same answers, same record. And what
may not take it does not."""

from __future__ import annotations

import asyncio
import decimal
import gc
import math
import random
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.agents.kinds import Gate, serving

from holdfast import Agent, BadState, Node, State, handler, reader
from holdfast.agents.calls import Sink
from holdfast.records import agent_record
from holdfast.records.agent_record import AgentRecord
from holdfast.records.messages import WAITS, Call
from holdfast.serving import fast_path
from holdfast.serving.turns.activation import Activation


class Pad(State):
    n: int = 0
    text: str = ""


word: ContextVar[str] = ContextVar("word", default="")


class Marked(msgspec.Struct):
    """Its code sets what each entry into code of users' has for itself."""

    n: int = 0

    def __post_init__(self) -> None:
        if self.n:  # none is made where the classes are defined
            word.set(f"{word.get()}{self.n}")
            decimal.getcontext().prec += 1


class Marks(State):
    one: Marked = msgspec.field(default_factory=Marked)
    seen: list[str] = msgspec.field(default_factory=list)


class Marking(Agent[Marks], kind="Fast"):
    """What its handlers see of the context in which the code of arguments, states and replies
    ran."""

    def _see(self) -> None:
        self.state.seen = [*self.state.seen[-20:], f"{word.get()} {decimal.getcontext().prec}"]

    @handler
    async def add(self, by: int) -> int:
        self._see()
        self.state.one = Marked(by)
        return len(self.state.seen)

    @handler
    async def mark(self, one: Marked) -> Marked:
        self._see()
        self.state.one = one
        return Marked(7)

    @handler
    async def all(self) -> list[str]:
        self._see()
        word.set("left behind")
        decimal.getcontext().prec = 5
        return self.state.seen


class Fast(Agent[Pad]):
    def _call(self) -> int:
        """A name of the author's own, as `_context` and `_host` may be."""
        return 1

    _message = _context = _host = _call

    @handler
    async def add(self, by: int) -> int:
        self.state.n += by
        return self.state.n

    @handler
    async def nothing(self) -> None:
        self.state.n += 1

    @handler
    async def all(self) -> Pad:
        return self.state

    @handler
    async def replace(self, text: str) -> str:
        self.state = Pad(n=self.state.n, text=text)
        return text

    @handler
    async def fail(self, by: int) -> int:
        self.state.n += by
        raise ValueError("failed")

    @handler
    async def lie(self) -> int:
        self.state.n += 1
        return "text"  # type: ignore[return-value]

    @handler
    async def overflow(self) -> int:
        return 1 << 70

    @handler
    async def spoil(self) -> int:
        self.state.n = "text"  # type: ignore[assignment]
        return 1

    @handler
    async def lose(self) -> int:
        del self.state
        return 1

    @handler
    async def wait(self) -> int:
        await asyncio.sleep(0)
        self.state.n += 1
        return self.state.n

    @handler
    async def named(self, *, by: int) -> int:
        self.state.n += by
        return self.state.n

    @handler
    async def to_itself(self) -> int:
        self.agent(Fast, self.name).tell(Fast.add, 100)
        return self.state.n

    @handler
    async def ring_later(self) -> int:
        self.set_timer("later", 1000.0, Fast.nothing)
        return 1

    @handler
    async def pass_on(self) -> int:
        await self.agent(Fast, "other").send(Fast.add, 1)
        return 1

    @handler
    async def who(self) -> tuple[str, str, float]:
        return self.context.name, self.context.message_id, self.context.deadline

    @reader
    async def value(self) -> int:
        return self.state.n


PLAIN = {
    "add": [1],
    "nothing": [],
    "all": [],
    "replace": ["x"],
    "fail": [2],
    "lie": [],
    "overflow": [],
    "spoil": [],
}
PLAIN |= {"lose": [], "to_itself": [], "ring_later": [], "who": []}
GENERAL = {"wait": [], "named": [3], "pass_on": [], "value": []}


def call(
    number: int,
    low: int,
    name: str = "add",
    args: Any = (1,),
    caller: str = "p-elsewhere",
    **more: Any,
) -> Call:
    data = msgspec.msgpack.encode(args)
    return Call(
        "Fast/a",
        name,
        data,
        number << 16 | 1,
        caller,
        **{"number": number, "low": low, "deadline": DEADLINE, **more},
    )


DEADLINE = time.time() + 100_000.0


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What the fast path said of each call that it was shown."""
    said: list[bool] = []
    take = fast_path.take

    def watched(activation: Activation, call: Call, sink: Sink) -> bool:
        said.append(take(activation, call, sink))
        return said[-1]

    monkeypatch.setattr(fast_path, "take", watched)
    return said


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(240):
        while not condition():
            await asyncio.sleep(0.005)


async def give(node: Node, calls: Sequence[Call]) -> list[Any]:
    """Give calls to the node at once, as a frame does; return their answers."""
    answers: dict[int, asyncio.Future[Any]] = {}
    for place, one in enumerate(calls):
        future = answers[place] = asyncio.get_running_loop().create_future()

        def sink(
            _reference: int, outcome: int, payload: bytes, future: asyncio.Future[Any] = future
        ) -> None:
            if outcome == WAITS:  # only a hint
                return
            value = msgspec.msgpack.decode(payload) if payload else None
            future.set_result((outcome, value[:2] if outcome == 1 else value))

        node._runtime.intake.take(one, sink)
    async with asyncio.timeout(240):
        return [await answers[place] for place in answers]


async def record_of(node: Node, token: str = "Fast/a") -> AgentRecord:
    runtime = node._runtime
    shard = runtime.shard_of(token)
    stored = await node.engine.log.read(
        runtime.cell_of(shard), f"{runtime.cell_of(shard)}.{shard}.st.{token}"
    )
    assert stored is not None
    return agent_record.decode(stored.payload, token)


def rounds(seed: int, kinds: Sequence[tuple[str, Any]]) -> Iterator[list[Call]]:
    """Calls of three callers, some of them out of order, again, or past their lowest open
    number."""
    draw = random.Random(seed)
    number = dict.fromkeys(("p-1", "p-2", "p-3"), 0)
    sent: list[Call] = []
    for _ in range(60):
        calls = []
        for _ in range(draw.randint(1, 6)):
            if sent and draw.random() < 0.25:
                calls.append(msgspec.structs.replace(draw.choice(sent)))
                continue
            caller = draw.choice(sorted(number))
            number[caller] += draw.randint(1, 2)
            name, args = (
                draw.choice(kinds) if draw.random() < 0.7 else ("add", [draw.randint(1, 9)])
            )
            low = max(1, number[caller] - draw.choice((0, 0, 1, 3)))
            bad = draw.random() < 0.05
            calls.append(
                call(number[caller], low, name, ["no number", 2, 3] if bad else args, caller)
            )
        # Of attempts of one call that are under way at once, one is answered.
        calls = list({(one.caller, one.number): one for one in calls}.values())
        draw.shuffle(calls)
        sent += calls
        yield calls


OWN_CODE = {"mark": [{"n": 3}], "all": []}


@pytest.mark.parametrize(
    ("cls", "seed"), [*((Fast, seed) for seed in range(6)), (Marking, 6), (Marking, 7)]
)
async def test_it_ends_as_by_the_general_way(
    cls: type[Agent[Any]],
    seed: int,
    tmp_path: Path,
    taken: list[bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    kinds = [*PLAIN.items(), *GENERAL.items()] if cls is Fast else [*OWN_CODE.items()]
    word.set("of the program")
    precision = decimal.getcontext().prec
    for way in ("fast", "general"):
        if way == "general":
            assert taken.count(True) > 25
            monkeypatch.setattr(fast_path, "take", lambda *_: False)
        async with serving(tmp_path / way, cls) as node:
            answers = {
                number: await give(node, calls) for number, calls in enumerate(rounds(seed, kinds))
            }
            await give(node, [call(1, 1, caller="p-last")])  # behind what it told itself
            record = await record_of(node)
            callers = {
                name: (one.low, one.answers, one.deadline) for name, one in record.callers.items()
            }
            timers = [timer.name for timer in record.timers]
            found.append((answers, record.state, callers, record.ids, timers, record.generation))
    for fast, general in zip(*found, strict=True):
        assert fast == general
    assert (word.get(), decimal.getcontext().prec) == ("of the program", precision)


async def test_a_late_ask_does_not_forget_the_answer_to_a_later_one(
    tmp_path: Path, taken: list[bool]
) -> None:
    async with serving(tmp_path / "log", Fast) as node:
        assert await give(node, [call(1, 1)]) == [(0, 1)]
        taken.clear()
        assert await give(node, [call(8, 7)]) == [(0, 2)]
        assert await give(node, [call(7, 7)]) == [(0, 3)]
        assert taken == [True, True]
        assert await give(node, [call(8, 7), call(7, 7)]) == [(0, 2), (0, 3)]
        assert (await record_of(node)).callers["p-elsewhere"].low == 7


async def test_what_takes_it(tmp_path: Path, taken: list[bool]) -> None:
    asks = [
        *((call(2, 2, name, args), True) for name, args in PLAIN.items()),
        *((call(2, 2, name, args), False) for name, args in GENERAL.items()),
        (call(2, 2, "add", {"by": 1}), False),
        (call(2, 2, "add", ["text"]), False),
        (call(2, 2, "unknown"), False),
        (call(2, 2, message_id="an-id"), False),
        (call(0, 0), False),
        (call(2, 2, interrupted=True), False),
        (call(2, 2, deadline=1.0), False),
        (call(2, 3), False),
        (call(1, 1), False),
    ]
    async with serving(tmp_path / "log", Fast) as node:
        for place, (ask, fast) in enumerate(asks):
            await give(node, [call(1, 1, caller=f"p-{place}")])  # what went the general way is over
            taken.clear()
            await give(node, [msgspec.structs.replace(ask, caller=f"p-{place}")])
            assert (ask, taken[0]) == (ask, fast)


async def test_the_context_is_that_of_the_call_and_is_not_kept(
    tmp_path: Path, taken: list[bool]
) -> None:
    async with serving(tmp_path / "log", Fast) as node:
        await give(node, [call(1, 1)])
        agent = node._runtime.resident["Fast/a"].agent
        taken.clear()
        assert await give(node, [call(2, 2, "who", [])]) == [(0, ["a", "p-elsewhere:2", DEADLINE])]
        assert await give(node, [call(3, 3)]) == [(0, 2)]
        assert taken == [True, True]
        # A task that a handler started and that goes on has a context of its own: its calls are
        # nobody else's.
        first = agent.context.next_call_id()
        assert agent.name == "a"
        assert await give(node, [call(4, 4)]) == [(0, 3)]
        assert agent.context.next_call_id() != first


async def test_there_is_no_context_before_the_first_message(tmp_path: Path) -> None:
    class Early(Agent[Pad]):
        def __init__(self) -> None:
            self.title = self.name

        @handler
        async def add(self, by: int) -> int:
            return by

    async with serving(tmp_path / "log", Early) as node:
        with pytest.raises(BadState, match="Early has no context before its first message"):
            await node.agent(Early, "e").ask(Early.add, 1)


async def test_an_agent_that_is_busy_takes_no_call_by_it(tmp_path: Path, taken: list[bool]) -> None:
    async with serving(tmp_path / "log", Fast) as node:
        await give(node, [call(1, 1)])
        taken.clear()
        answers = await give(node, [call(2, 2, "wait", []), call(3, 2), call(4, 2)])
        assert answers == [(0, 2), (0, 3), (0, 4)]
        assert taken == [False, False, False]
        assert await give(node, [call(5, 5), call(6, 5)]) == [(0, 5), (0, 6)]
        assert taken[3:] == [True, True]


async def test_another_attempt_joins_what_waits_for_its_batch(
    tmp_path: Path, taken: list[bool]
) -> None:
    class Narrow(Fast, mailbox_max=4, kind="Fast"):
        """The same agent, with a small mailbox."""

    async with serving(tmp_path / "log", Narrow) as node:
        await give(node, [call(1, 1)])
        gate = Gate(node)
        taken.clear()
        asks = [call(2, 2), call(3, 2), call(4, 2), call(5, 2, "fail")]
        first = asyncio.ensure_future(give(node, asks))
        await until(lambda: gate.waiting == 1)
        again = asyncio.ensure_future(
            give(node, [msgspec.structs.replace(one, interrupted=True) for one in asks])
        )
        await until(lambda: len(taken) == 8)
        # all are in the batch, none of them twice
        assert node._runtime.committers[node.manifest.cells[0]].waiting == 0
        gate.open.set()
        answers = await again
        assert answers[:3] == [(0, 2), (0, 3), (0, 4)]
        assert answers[3][1][0] == "HandlerFailed"
        assert taken == [True] * 4 + [False] * 4
        first.cancel()
        assert node._runtime.resident["Fast/a"].in_hand is None


async def test_it_holds_to_the_bound_of_the_mailbox(tmp_path: Path, taken: list[bool]) -> None:
    class Narrow(Fast, mailbox_max=3, kind="Fast"):
        """The same agent, with a small mailbox."""

    async with serving(tmp_path / "log", Narrow) as node:
        await give(node, [call(1, 1)])
        gate = Gate(node)
        taken.clear()
        giving = asyncio.ensure_future(give(node, [call(number, 2) for number in range(2, 7)]))
        await until(lambda: len(taken) == 5)
        gate.open.set()
        answers = await giving
        assert answers[:3] == [(0, 2), (0, 3), (0, 4)]
        assert [answer[1][0] for answer in answers[3:]] == ["Overloaded"] * 2
        assert taken == [True, True, True, False, False]


async def test_a_node_that_is_not_live_takes_no_call_by_it(
    tmp_path: Path, taken: list[bool]
) -> None:
    async with serving(tmp_path / "log", Fast) as node:
        await give(node, [call(1, 1)])
        taken.clear()
        node.life.live_until = 0.0
        giving = asyncio.ensure_future(give(node, [call(2, 2)]))
        await asyncio.sleep(0.05)
        assert taken == [False]
        assert not giving.done()
        node.life.live_until = math.inf
        await give(node, [call(3, 2)])
        assert await giving == [(0, 2)]


async def test_the_agents_in_memory_are_those_of_the_shards_and_go_at_once(tmp_path: Path) -> None:
    class Brief(Agent[Pad], idle_seconds=0.1):
        @handler
        async def add(self, by: int) -> int:
            self.state.n += by
            return self.state.n

    async with serving(tmp_path / "log", Brief, Fast) as node:
        runtime = node._runtime
        Brief.__kind__.idle_seconds = 1000.0  # until they are counted, however long that takes
        await asyncio.gather(*(node.agent(Brief, f"b{n}").ask(Brief.add, 1) for n in range(20)))
        await asyncio.gather(*(node.agent(Fast, f"f{n}").ask(Fast.add, 1) for n in range(20)))
        assert len(runtime.resident) == 40
        agents = [
            weakref.ref(one.agent) for one in runtime.resident.values() if one.kind.cls is Brief
        ]
        gc.disable()
        try:
            Brief.__kind__.idle_seconds = 0.1
            await until(lambda: len(runtime.resident) == 20)
            assert [one for one in agents if one() is not None] == []
        finally:
            gc.enable()
        assert {
            token: one
            for shard in runtime.shards.values()
            for token, one in shard.activations.items()
        } == (runtime.resident)
        assert await node.agent(Brief, "b1").ask(Brief.add, 1) == 2
        runtime.drop_shards(list(runtime.shards))
        assert runtime.resident == {}
