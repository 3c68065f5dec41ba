"""A caller whose clock is behind is told so; one with another reason for a passed deadline is
not."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from holdfast import Agent, DeadlineExceeded, Node, State, handler, reader
from holdfast.calling.clock_skew import explained


class Nothing(State):
    n: int = 0


class Calm(Agent[Nothing]):
    @handler
    async def turn(self) -> int:
        self.state.n += 1
        return self.state.n

    @reader
    async def look(self) -> int:
        return self.state.n


class Behind:
    """A clock that shows an earlier time than it is."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def now(self) -> float:
        return time.time() - self._seconds

    monotonic = staticmethod(time.monotonic)


async def test_a_caller_whose_clock_is_behind_is_told(tmp_path: Path) -> None:
    async with Node.join(f"local:{tmp_path}/log.db", serve=[Calm]) as node:
        calm = node.agent(Calm, "a")
        assert await calm.ask(Calm.turn) == 1
        kept, node._router._clock = node._router._clock, Behind(3600)
        for message in (Calm.turn, Calm.look):
            with pytest.raises(DeadlineExceeded, match="clock is ahead of it by at least"):
                await calm.ask(message)
        node._router._clock = kept
        assert await calm.ask(Calm.turn) == 2


def test_a_passed_deadline_alone_says_nothing_of_clocks() -> None:
    error = DeadlineExceeded("the deadline passed")
    assert explained(error, -0.1, True) is error
    assert explained(error, 20.0, False) is error
    assert explained(ValueError(), 20.0, True).args == ()  # type: ignore[arg-type]
