"""What is said of mistakes in the use of agents: at once, in the words of who made them, and with
what to do."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import time
import types
from collections import deque
from pathlib import Path
from typing import Any

import msgspec
import pydantic
import pytest
from tests.agents.kinds import Counter, serving

from holdfast import (
    Agent,
    AgentRef,
    BadMessage,
    DeadlineExceeded,
    HandlerFailed,
    InvalidName,
    OutcomeUnknown,
    State,
    UnknownKind,
    handler,
    reader,
)
from holdfast.records.messages import Call
from holdfast.serving.delivery import too_late


def define(name: str, base: Any, names: dict[str, Any]) -> None:
    types.new_class(name, (base,), {}, lambda space: space.update(names))


class Clock(State):
    rings: int = 0


class Bell(Agent[Clock]):
    @handler
    async def start(self, how: str) -> None:
        mistakes: dict[str, tuple[Any, ...]] = {
            "bound": ("t", 1.0, self.ring),
            "plain": ("t", 1.0, len),
            "reader": ("t", 1.0, Bell.rings),
            "of another": ("t", 1.0, Counter.add),
            "text": ("t", "soon", Bell.ring),
            "name": (7, 1.0, Bell.ring),
            "more": ("t", 1.0, Bell.ring, 1),
        }
        self.set_timer(*mistakes[how])

    @handler
    async def ring(self) -> None:
        self.state.rings += 1

    @handler
    async def both(self, first: int, second: str = "") -> None: ...

    @reader
    async def rings(self) -> int:
        return self.state.rings


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("bound", "write Bell.ring"),
        ("plain", "write the class and its method"),
        ("reader", "is a reader: it can be asked, not set as a timer"),
        ("of another", "is not a handler of Bell"),
        ("text", "a number of seconds, not 'soon'"),
        ("name", "a timer's name is a str, not 7"),
        ("more", r"Bell.ring\(\): "),
    ],
)
async def test_timers(tmp_path: Path, how: str, text: str) -> None:
    async with serving(tmp_path / "log.db", Bell) as node:
        with pytest.raises((BadMessage, HandlerFailed), match=text):
            await node.agent(Bell, "a").ask(Bell.start, how)


async def test_addresses_and_verbs(tmp_path: Path) -> None:
    async with serving(tmp_path / "log.db", Bell) as node:
        bell: Any = node.agent(Bell, "a")
        agent = object.__new__(Bell)
        for wrong, text in (
            (agent.ring, "write Bell.ring"),
            (print, "write the class"),
            ("ring", "write the class"),
        ):
            with pytest.raises(BadMessage, match=text):
                await bell.ask(wrong)
            with pytest.raises(BadMessage, match=text):
                await bell.send(wrong)
            with pytest.raises(BadMessage, match=text):
                bell.tell(wrong)
        with pytest.raises(BadMessage, match="it can be asked, not sent"):
            await bell.send(Bell.rings)
        with pytest.raises(BadMessage, match="it can be asked, not told"):
            bell.tell(Bell.rings)
        for options, text in (
            ({"message_id": 1}, "a message_id is a str, not 1: write '1'"),
            ({"timeout_seconds": "5"}, "a number of seconds, not '5'"),
        ):
            with pytest.raises(TypeError, match=text):
                bell.options(**options)
        for kind in ("Bell", Agent, int, None, Clock):
            with pytest.raises(
                (TypeError, Exception), match=r"not the class of an agent|is no kind"
            ):
                node.agent(kind, "a")  # type: ignore[type-var]
            with pytest.raises(
                (TypeError, Exception), match=r"not the class of an agent|is no kind"
            ):
                await node.register(kind, "a")  # type: ignore[type-var]
        for wanted in ("gpu", 7):
            with pytest.raises(BadMessage, match="capabilities are a set of words"):
                await node.register(Bell, "a", capabilities=wanted)  # type: ignore[arg-type]
        assert node.count() == 0
        await node.register(Bell, "a", capabilities=["gpu"])
        with pytest.raises(BadMessage, match="capabilities are a set of words"):
            await node.update(Bell, "a", capabilities="gpu")
        assert node.count(capability="gpu") == 1


@pytest.mark.parametrize(
    ("method", "arguments", "text"),
    [
        ("rings", [1], r"too many arguments \(1\): it takes no arguments"),
        ("both", [1, "a", 2], r"too many arguments \(3\): it takes \(first, second\)"),
        ("both", [], r"too few arguments \(0\): it takes \(first, second\)"),
        (
            "both",
            {"first": 1, "third": 2},
            r"there is no argument named `third`: it takes \(first, second\)",
        ),
        ("both", {"second": "a"}, r"the argument `first` is missing: it takes \(first, second\)"),
        ("both", ["a"], r"Expected `int`, got `str` - at `\$.first`"),
    ],
)
async def test_arguments_by_name(tmp_path: Path, method: str, arguments: Any, text: str) -> None:
    async with serving(tmp_path / "log.db", Bell) as node:
        with pytest.raises(BadMessage, match=f"Bell.{method}: {text}"):
            await node.ask_by_name("Bell/a", method, arguments)


async def test_names_that_are_none(tmp_path: Path) -> None:
    async with serving(tmp_path / "log.db", Bell) as node:
        with pytest.raises(
            UnknownKind, match=r"Bell has no handler or reader 'sing': it has .*ring, rings, start"
        ):
            await node.ask_by_name("Bell/a", "sing")
        for wrong in (5, None, "Bell", ("Bell", "a")):
            with pytest.raises(InvalidName, match=r"KIND/NAME"):
                await node.ask_by_name(wrong, "ring")  # type: ignore[arg-type]
        with pytest.raises(BadMessage, match="a capability to find is a word, or several, not 5"):
            node.find(capability=5)  # type: ignore[arg-type]
        with pytest.raises(BadMessage, match="a limit is a number, 0 or more, not '3'"):
            node.find(limit="3")  # type: ignore[arg-type]


async def test_arguments_in_a_program(tmp_path: Path) -> None:
    async with serving(tmp_path / "log.db", Bell) as node:
        bell: Any = node.agent(Bell, "a")
        with pytest.raises(BadMessage, match=r"Bell.both\(first, second\): .*third"):
            await bell.ask(Bell.both, 1, third=2)
        with pytest.raises(BadMessage, match=r"Bell.both: \$.first.value: values of type object"):
            await bell.ask(Bell.both, msgspec.defstruct("S", ["value"])(object()))


@pytest.mark.parametrize(
    "name", ["name", "context", "agent", "outcome", "set_timer", "cancel_timer", "state"]
)
def test_a_handler_may_not_hide_what_every_agent_has(name: str) -> None:
    async def method(self: Any) -> None: ...

    method.__name__ = name
    for value in (handler(method), reader(method), 5):
        with pytest.raises(TypeError, match=f"Hides.{name} would hide"):
            define("Hides", Agent[Clock], {name: value})


class Plain:
    """A class that nobody knows how to store."""


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Plain, "Plain .*use a dataclass"),
        (list[Plain], "Plain .*use a dataclass"),
        (deque[int], "deque"),
        (complex, "complex"),
        (AgentRef[Counter], r"AgentRef .*pass its agent_id"),
        (dict[str, AgentRef[Any]], r"AgentRef .*pass its agent_id"),
    ],
)
def test_a_type_that_cannot_travel_is_refused_where_it_is_declared(kind: Any, text: str) -> None:
    async def takes(self: Any, value: kind) -> None: ...

    async def gives(self: Any) -> kind: ...

    for method in (takes, gives):
        method.__annotations__ = {"value": kind} if method is takes else {"return": kind}
        with pytest.raises(TypeError, match=text):
            define("Wrong", Agent[Clock], {"method": handler(method)})
    state = msgspec.defstruct("Holds", [("value", kind | None, None)], bases=(State,))
    with pytest.raises(TypeError, match=text):
        define("Wrong", Agent[state], {})  # type: ignore[valid-type]


def test_a_dataclass_field_in_a_struct_is_named() -> None:
    class Wrong(State):
        items: list[int] = dataclasses.field(default_factory=list)

    with pytest.raises(
        TypeError, match=r"Wrong.items has a dataclasses.field.* write msgspec.field"
    ):
        define("Holder", Agent[Wrong], {})


async def test_an_address_under_any_is_named(tmp_path: Path) -> None:
    class Boxed(State):
        value: Any = None

    class Box(Agent[Boxed]):
        @handler
        async def put(self, value: Any) -> None:
            self.state.value = {"a": [self.agent(Box, "b")]}

    async with serving(tmp_path / "log.db", Box) as node:
        box = node.agent(Box, "a")
        with pytest.raises(
            BadMessage, match=r"Box.put: \$.value: values of type AgentRef .*pass its agent_id"
        ):
            await box.ask(Box.put, box)
        with pytest.raises(Exception, match=r"\$.value\['a'\]\[0\]: values of type AgentRef"):
            await box.ask(Box.put, 1)


class Money(pydantic.BaseModel):
    amount: int = pydantic.Field(ge=0)
    words: set[str] = set()


class Purse(pydantic.BaseModel):
    coins: list[Money] = []
    by_name: dict[str, Money] = {}


class Keeper(Agent[Purse]):
    @handler
    async def put(self, name: str, money: Money) -> Purse:
        self.state.coins.append(money)
        self.state.by_name[name] = money
        return self.state

    @reader
    async def all(self) -> list[Money]:
        return self.state.coins


async def test_models_in_arguments_replies_and_states(tmp_path: Path) -> None:
    async with serving(tmp_path / "log.db", Keeper) as node:
        keeper = node.agent(Keeper, "a")
        money = Money(amount=3, words={"a", "b"})
        assert await keeper.ask(Keeper.put, "x", money) == Purse(
            coins=[money], by_name={"x": money}
        )
        once = keeper.options(message_id="m")
        first = await once.ask(Keeper.put, "y", Money(amount=1, words={"b", "a"}))
        assert await once.ask(Keeper.put, "y", Money(amount=1, words={"a", "b"})) == first
        assert await node.ask_by_name("Keeper/a", "put", ["z", {"amount": 2}]) is not None
        with pytest.raises(BadMessage, match="greater than or equal to 0"):
            await node.ask_by_name("Keeper/a", "put", ["z", {"amount": -2}])
        with pytest.raises(BadMessage, match=r"\$.money.*would not come back as it is"):
            await keeper.ask(Keeper.put, "x", Money.model_construct(amount=-1))
    async with serving(tmp_path / "log.db", Keeper) as node:
        all_of_them = await node.agent(Keeper, "a").ask(Keeper.all)
        assert [type(one) for one in all_of_them] == [Money, Money, Money]
        assert all_of_them[0] == money


@pytest.mark.skipif(
    sys.version_info < (3, 12), reason="inspect.markcoroutinefunction is there from 3.12 on"
)
async def test_a_function_that_is_marked_as_a_coroutine_function(tmp_path: Path) -> None:
    import asyncio

    def marked(function: Any) -> Any:
        def wrapper(self: Any, by: int) -> Any:
            return function(self, by)

        wrapper.__name__ = function.__name__
        return inspect.markcoroutinefunction(wrapper)  # type: ignore[attr-defined]

    class Marked(Agent[Clock]):
        @handler
        @marked
        async def add(self, by: int) -> int:
            await asyncio.sleep(0)
            self.state.rings += by
            return self.state.rings

    async with serving(tmp_path / "log.db", Marked) as node:
        assert await node.agent(Marked, "a").ask(Marked.add, 2) == 2


async def test_what_is_said_at_a_deadline(tmp_path: Path) -> None:
    async with serving(tmp_path / "log.db") as node:
        counter = node.agent(Counter, "a")
        await counter.ask(Counter.add, 1)
        slow = counter.options(timeout_seconds=0.2)
        with pytest.raises(
            OutcomeUnknown,
            match=r"deadline \(timeout_seconds.*got no answer, so it may have been done",
        ):
            await slow.ask(Counter.slow, 5.0)
    late = time.time() - 5
    text = (
        "was over for 5.* s when its turn came, so it was not started: the agent was busy, or two "
        "hosts' clocks differ"
    )
    with pytest.raises(DeadlineExceeded, match=text):
        raise too_late(Call("Counter/a", "add", b"", 0, deadline=late), late + 5)
