"""What agents and clients do in a run. Everything has a label, and an agent's state is a tape of
what it did.

One kind of agent is enough: its tape holds every effect in the agent's own order, so a checker that
reads the tapes and what the clients were told knows what was lost, done twice, or done out of
order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any

import msgspec

from holdfast import limits
from holdfast.agents.agent import Agent, State
from holdfast.agents.handler import handler, reader
from holdfast.errors import Never, NotDone, Unknown
from holdfast.testing import rogues
from holdfast.testing.history import Fate, Recorder, Witness

if TYPE_CHECKING:
    from random import Random

    from holdfast.node.node import Node

_current: list[Witness] = []
"""The last one is told what handlers do."""


class Tape(State):
    """Everything that an agent did."""

    done: list[str] = msgspec.field(default_factory=list)
    sent: int = 0
    ballast: bytes = b""


class Actor(Agent[Tape], capabilities={"simulated"}, idle_seconds=1.0):
    """See the module."""

    def _mark(self) -> None:
        _current[-1].mark(self.name, self.context.fence)

    def _note(self, text: str) -> int:
        self.state.done.append(text)
        return len(self.state.done)

    @handler
    async def add(self, label: str) -> int:
        """The plain turn."""
        self._mark()
        return self._note(label)

    @handler
    async def slow(self, label: str, steps: int) -> int:
        """A turn that waits, and does something outside after each wait."""
        for _ in range(steps):
            self._mark()
            await asyncio.sleep(0.1)
        self._mark()
        return self._note(label)

    @handler
    async def spread(self, label: str, receivers: list[str]) -> int:
        """A turn that sends to others."""
        for name in receivers:
            await self.agent(Actor, name).send(Actor.take, self.name, self.state.sent)
        number, self.state.sent = self.state.sent, self.state.sent + 1
        return self._note(f"spread {number} {','.join(receivers)} {label}")

    @handler
    async def take(self, sender: str, number: int) -> None:
        """What is sent."""
        self._mark()
        self._note(f"take {sender} {number}")

    @handler
    async def take_slowly(self, sender: str, number: int) -> None:
        """What is sent, and takes a while."""
        self._mark()
        await asyncio.sleep(0.3)
        self._note(f"take {sender} {number}")

    @handler
    async def peek(self) -> int:
        """A turn that changes nothing: its reply shows what it saw."""
        return len(self.state.done)

    @handler
    async def swell(self, label: str, size: int) -> int:
        """A state that is too large for a record, or is not any more."""
        self.state.ballast = bytes(size)
        return self._note(label)

    @handler
    async def nested(self, label: str, other: str) -> int:
        """A turn that asks another agent."""
        await self.agent(Actor, other).options(timeout_seconds=20).ask(Actor.add, f"{label} within")
        return self._note(label)

    @handler
    async def remind(self, label: str, name: str, seconds: float) -> int:
        """Set a timer, in the place of one of the same name."""
        self.set_timer(name, seconds, Actor.ring, name, label)
        return self._note(f"set {name} {label}")

    @handler
    async def forget(self, label: str, name: str) -> int:
        """Cancel a timer."""
        self.cancel_timer(name)
        return self._note(f"cancel {name} {label}")

    @handler
    async def ring(self, name: str, label: str) -> None:
        """A timer is due."""
        self._note(f"ring {name} {label}")

    @handler
    async def bad(self, label: str, how: str) -> str:
        """A turn that must fail, alone."""
        self._note(label)
        if how == "raise":
            raise ValueError(label)
        if how == "sends":
            for number in range(limits.TURN_RECORDS_MAX + 1):
                await self.agent(Actor, "nobody").send(Actor.take, self.name, number)
        return "x" * (limits.REPLY_BYTES_MAX + 1)

    @handler
    async def rogue(self, label: str, how: str) -> None:
        """A turn that must fail, alone, whatever it raises."""
        self._note(label)
        rogues.throw(how)

    @handler
    async def rogue_later(self, label: str, how: str) -> None:
        """The same, after it waited."""
        self._note(label)
        await asyncio.sleep(0.01)
        rogues.throw(how)

    @handler
    async def take_badly(self, sender: str, number: int) -> None:
        """What is sent, and always fails."""
        self._note(f"take {sender} {number}")
        rogues.throw(rogues.HOWS[number % len(rogues.HOWS)])

    @handler
    async def ring_badly(self, name: str, label: str) -> None:
        """A timer is due, and always fails."""
        self._note(f"ring {name} {label}")
        rogues.throw(rogues.HOWS[len(label) % len(rogues.HOWS)])

    @handler
    async def remind_badly(self, label: str, name: str, seconds: float) -> int:
        """Set a timer that will fail."""
        self.set_timer(name, seconds, Actor.ring_badly, name, label)
        return self._note(f"set {name} {label}")

    @handler
    async def deadly(self, label: str) -> None:
        """A message that ends the process."""
        await _current[-1].die(label)

    @handler
    async def still(self, label: str) -> None:
        """A message in which its node stands still."""
        await _current[-1].stand_still(label)

    @reader
    async def length(self) -> int:
        """How long the tape is."""
        return len(self.state.done)

    @reader
    async def tape(self) -> list[str]:
        """The whole of it."""
        return self.state.done


class Clerk:
    """One client's tasks. ``agents`` and ``pause`` are the scenario's. ``era``: what the names of
    its agents end in."""

    era = ""

    def __init__(
        self,
        recorder: Recorder,
        node: Node,
        name: str,
        agents: int,
        pause: tuple[float, float],
        random: Random,
    ) -> None:
        self.running = 0
        self._recorder = recorder
        self._node = node
        self._name = name
        self._agents = agents
        self._pause = pause
        self._random = random
        self._number = 0
        self._sent: dict[str, int] = {}

    def begin(self, kind: str) -> Coroutine[Any, Any, None]:
        """A task that does one kind of thing again and again, until the run stops."""
        self.running += 1
        return self._repeat(getattr(self, f"_{kind}"))

    async def _repeat(self, once: Callable[[], Awaitable[None]]) -> None:
        while not self._recorder.stopping:
            await once()
            await asyncio.sleep(self._random.uniform(*self._pause))
        self.running -= 1

    def _agent(self, letter: str = "a") -> str:
        return f"{letter}{self._random.randrange(self._agents)}{self.era}"

    def _label(self) -> str:
        self._number += 1
        return f"{self._name}-{self._number}"

    async def _do(
        self, kind: str, agent: str, label: str, work: Callable[[], Awaitable[Any]]
    ) -> Fate:
        recorder = self._recorder
        operation = recorder.history.begin(kind, agent, label, recorder.now)
        fate: Fate
        try:
            operation.result = await work()
            fate = "done"
        except NotDone as error:
            fate, operation.result = "not done", error
        except Unknown as error:
            fate, operation.result = "unknown", error
        except Never as error:
            fate, operation.result = "refused", error
        operation.fate = fate
        operation.ended = recorder.now
        return fate

    async def _ask(self, kind: str, agent: str, handler: Any, *args: Any) -> None:
        label = self._label()
        ref = self._node.agent(Actor, agent).options(timeout_seconds=30)
        await self._do(kind, agent, label, lambda: ref.ask(handler, label, *args))

    async def _adds(self) -> None:
        await self._ask("add", self._agent(), Actor.add)

    async def _retries(self) -> None:
        """The same message again and again, until its fate is known."""
        agent, label = self._agent(), self._label()
        ref = self._node.agent(Actor, agent).options(timeout_seconds=3, message_id=label)
        for _ in range(20):
            if await self._do("retry", agent, label, lambda: ref.ask(Actor.add, label)) == "done":
                return
            await asyncio.sleep(0.2)

    async def _slows(self) -> None:
        steps = self._random.choice([self._random.randint(1, 30), 100])
        await self._ask("slow", self._agent(), Actor.slow, steps)

    async def _spreads(self) -> None:
        receivers = sorted({self._agent() for _ in range(3)})
        await self._ask("spread", self._agent("s"), Actor.spread, receivers)

    async def _nests(self) -> None:
        await self._ask("nested", self._agent("n"), Actor.nested, self._agent())

    async def _timers(self) -> None:
        agent, name = self._agent("t"), f"t{self._random.randrange(2)}"
        if self._random.random() < 0.3:
            await self._ask("forget", agent, Actor.forget, name)
        else:
            await self._ask(
                "remind", agent, Actor.remind, name, self._random.choice([0.01, 0.3, 2.0])
            )

    async def _bads(self) -> None:
        await self._ask(
            "bad", self._agent(), Actor.bad, self._random.choice(["raise", "reply", "sends"])
        )

    async def _deadlies(self) -> None:
        await self._ask("deadly", f"d{self._number}", Actor.deadly)
        await asyncio.sleep(5)

    async def _rogues(self) -> None:
        """Code that raises anything, beside what others ask and send."""
        way = self._random.choice(["ask", "ask", "ask later", "send", "set"])
        if way == "send":
            await self._send(self._agent(), Actor.take_badly)
        elif way == "set":
            await self._ask(
                "remind", self._agent("t"), Actor.remind_badly, f"t{self._random.randrange(2)}", 0.3
            )
        else:
            handler = Actor.rogue if way == "ask" else Actor.rogue_later
            await self._ask("bad", self._agent(), handler, self._random.choice(rogues.HOWS))

    async def _longs(self) -> None:
        """A turn that takes longer than a stop in order waits for it."""
        agent, label = self._agent("l"), self._label()
        ref = self._node.agent(Actor, agent).options(timeout_seconds=120)
        await self._do("slow", agent, label, lambda: ref.ask(Actor.slow, label, 250))

    async def _stills(self) -> None:
        agent, label = f"x{self._name}{self._number}", self._label()
        ref = self._node.agent(Actor, agent).options(timeout_seconds=60)
        if self._random.random() < 0.5:
            await self._do("still", agent, label, lambda: ref.ask(Actor.still, label))
        else:
            await self._do("send", agent, f"still {label}", lambda: ref.send(Actor.still, label))
        await asyncio.sleep(8)

    async def _send(self, agent: str, handler: Any) -> None:
        sender = f"{self._name}.{agent}"
        number = self._sent[sender] = self._sent.get(sender, -1) + 1
        ref = self._node.agent(Actor, agent).options(timeout_seconds=100)
        await self._do(
            "send", agent, f"take {sender} {number}", lambda: ref.send(handler, sender, number)
        )

    async def _sends(self) -> None:
        await self._send(self._agent(), Actor.take)

    async def _bursts(self) -> None:
        """A slow agent in the midst of neighbours that get far ahead of it."""
        await self._send("a0", Actor.take_slowly)
        agent = self._agent()
        await asyncio.gather(*(self._send(agent, Actor.take) for _ in range(20)))

    async def _edges(self) -> None:
        """A timer that is set anew, or cancelled, just when it is due."""
        agent, seconds = self._agent("e"), self._random.choice([0.05, 0.3, 1.0])
        await self._ask("remind", agent, Actor.remind, "edge", seconds)
        await asyncio.sleep(max(seconds + self._random.uniform(-0.01, 0.005), 0))
        if self._random.random() < 0.5:
            await self._ask("forget", agent, Actor.forget, "edge")
        else:
            await self._ask("remind", agent, Actor.remind, "edge", seconds)

    async def _swells(self) -> None:
        size = self._random.choice([0, limits.BLOB_THRESHOLD_BYTES])
        await self._ask("swell", self._agent("b"), Actor.swell, size)

    async def _peeks(self) -> None:
        agent = self._agent()
        ref = self._node.agent(Actor, agent).options(timeout_seconds=30)
        await self._do("peek", agent, self._label(), lambda: ref.ask(Actor.peek))

    async def _reads(self) -> None:
        agent = self._agent()
        ref = self._node.agent(Actor, agent).options(
            timeout_seconds=30, fresh=self._random.random() < 0.1
        )
        await self._do("read", agent, self._label(), lambda: ref.ask(Actor.length))


KINDS = (
    "adds",
    "retries",
    "slows",
    "spreads",
    "nests",
    "timers",
    "edges",
    "bads",
    "deadlies",
    "stills",
    "longs",
    "swells",
    "sends",
    "bursts",
    "peeks",
    "reads",
    "rogues",
)
"""What a scenario may ask for."""
