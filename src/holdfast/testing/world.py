"""The simulated world: one virtual clock, processes on hosts, and a network between the hosts that can be cut.

Everything that happens is an event on one heap, or a turn of a process's loop; which of several ready processes goes
first is drawn from the seed. So a run explores an interleaving, and the same seed explores the same one.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from contextlib import ExitStack
from random import Random
from typing import Any

from holdfast import chance
from holdfast.testing.loop import SimLoop

START = 1_700_000_000.0
"""What the wall clocks show at the beginning, in seconds since 1970."""


class SimClock:
    """A process's clocks: ahead of the world's by ``offset`` seconds, and running at ``rate`` times its speed."""

    def __init__(self, world: World, offset: float = 0.0, rate: float = 1.0) -> None:
        self._world = world
        self.offset = offset
        self.rate = rate

    def now(self) -> float:
        return START + self.offset + self._world.now * self.rate

    def monotonic(self) -> float:
        return 1000.0 + self._world.now * self.rate


class World:
    """See the module. ``seed`` decides everything; ``now`` is in seconds since the beginning."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.now = 0.0
        self.random = Random(seed)
        self.story: list[str] = []
        """What happened, in words, for whoever has to understand a run."""
        self._events: list[tuple[float, int, Callable[[], Any]]] = []
        self._count = 0
        self._loops: list[tuple[SimLoop, SimClock]] = []
        self._dead: list[SimLoop] = []
        self._cut: set[tuple[str, str]] = set()
        # What is begun before the first run draws from the seed, too.
        self._drawing = ExitStack()
        self._drawing.enter_context(chance.drawn_from(self.random))

    def tell(self, text: str) -> None:
        """Add a line to the story."""
        self.story.append(f"{self.now:9.3f}  {text}")

    # Processes -----------------------------------------------------------------------------------------------------

    def process(self, name: str, clock: SimClock | None = None) -> tuple[SimLoop, SimClock]:
        """A new process: its loop and its clocks."""
        clock = clock or SimClock(self)
        loop = SimLoop(name, clock.monotonic)  # type: ignore[abstract]  # no sockets, no subprocesses
        self._loops.append((loop, clock))
        return loop, clock

    # Time ----------------------------------------------------------------------------------------------------------

    def later(self, seconds: float, event: Callable[[], Any]) -> None:
        """Have something happen in a while, in the world's time."""
        self._count += 1
        heapq.heappush(self._events, (self.now + seconds, self._count, event))

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> bool:
        """Let time pass; return whether ``until`` came true before it was over (True where there is none)."""
        end = self.now + seconds
        with chance.drawn_from(self.random):  # of several worlds, this one's
            while True:
                if until is not None and until():
                    return True
                if not self._step(end):
                    self.now = end
                    return until is None

    def _step(self, end: float) -> bool:
        """The next event, or the next turns of a process; False where there is none before the end."""
        soonest = self._events[0][0] if self._events else float("inf")
        ready: list[SimLoop] = []
        for loop, clock in self._loops:
            due = loop.due() if loop.turns() else None
            if due is None:
                continue
            at = max(self.now, (due - 1000.0) / clock.rate)
            if at < soonest - 1e-9:
                soonest, ready = at, [loop]
            elif at <= soonest + 1e-9:
                ready.append(loop)
        if soonest > end:
            return False
        self.now = max(self.now, soonest)
        if self._events and self._events[0][0] <= self.now:
            heapq.heappop(self._events)[2]()
        elif ready:
            self.random.choice(ready).turn()
        if any(loop.dead for loop, _ in self._loops):
            self._dead += [loop for loop, _ in self._loops if loop.dead]
            self._loops = [pair for pair in self._loops if not pair[0].dead]
        return True

    def close(self) -> None:
        """End all that is under way, in dead processes too, so that nothing is left for Python to find half done."""
        with chance.drawn_from(self.random):
            loops = [*(loop for loop, _ in self._loops), *self._dead]
            for _ in range(1000):
                tasks = [task for loop in loops for task in asyncio.all_tasks(loop)]
                if not tasks:
                    break
                for task in tasks:
                    task.cancel()
                for loop in loops:
                    loop.dead = loop.frozen = False
                    loop.turn()
        self._drawing.close()

    # The network ---------------------------------------------------------------------------------------------------

    def cut(self, source: str, target: str) -> None:
        """What one host sends does not reach the other any more; the other way is another matter."""
        self._cut.add((source, target))

    def mend(self) -> None:
        """Every host reaches every other."""
        self._cut.clear()

    def reaches(self, source: str, target: str) -> bool:
        """Whether what one host sends reaches the other."""
        return source == target or (source, target) not in self._cut

    def connected(self, one: str, other: str) -> bool:
        """Whether two hosts reach each other."""
        return self.reaches(one, other) and self.reaches(other, one)
