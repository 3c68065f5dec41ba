"""The simulated world: one virtual clock, processes on hosts, and a network between the hosts that
can be cut.

Everything that happens is an event on one heap, or a turn of a process's loop; which of several
ready processes goes first is drawn from the seed. So a run explores an interleaving, and the same
seed explores the same one.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from contextlib import ExitStack
from random import Random
from typing import Any

from holdfast import chance
from holdfast.testing.simulation.loop import SimLoop

START = 1_700_000_000.0
"""What the wall clocks show at the beginning, in seconds since 1970."""
_BEGINNING = 1000.0
"""What the monotonic clocks show then."""


class SimClock:
    """A process's clocks: ahead of the world's by ``offset`` seconds, and running at ``rate`` times
    its speed."""

    def __init__(self, world: World, offset: float = 0.0, rate: float = 1.0) -> None:
        self._world = world
        self.offset = offset
        self.rate = rate

    def now(self) -> float:
        return START + self.offset + self._world.now * self.rate

    def monotonic(self) -> float:
        return _BEGINNING + self._world.now * self.rate


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
        self._loops: list[SimLoop] = []
        self._queue: list[SimLoop] = []
        """The loops that have something to do now."""
        self._cut: dict[tuple[str, str], int] = {}
        # What is begun before the first run draws from the seed, too.
        self._drawing = ExitStack()
        self._drawing.enter_context(chance.drawn_from(self.random))

    def tell(self, text: str) -> None:
        """Add a line to the story."""
        self.story.append(f"{self.now:9.3f}  {text}")

    # Processes ------------------------------------------------------------------------------------

    def process(self, name: str, clock: SimClock | None = None) -> tuple[SimLoop, SimClock]:
        """A new process: its loop and its clocks."""
        clock = clock or SimClock(self)
        rate = clock.rate

        def wake(loop: SimLoop, when: float | None) -> None:
            if when is None:
                loop.queued = True
                self._queue.append(loop)
            else:
                self.later((when - _BEGINNING) / rate - self.now, loop.ring)

        # no sockets, no subprocesses
        loop = SimLoop(name, clock.monotonic, wake)  # type: ignore[abstract]
        self._loops.append(loop)
        return loop, clock

    # Time -----------------------------------------------------------------------------------------

    def later(self, seconds: float, event: Callable[[], Any]) -> None:
        """Have something happen in a while, in the world's time."""
        self._count += 1
        heapq.heappush(self._events, (self.now + seconds, self._count, event))

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> bool:
        """Let time pass; return whether ``until`` came true before it was over (True where there is
        none)."""
        end = self.now + seconds
        with chance.drawn_from(self.random):  # of several worlds, this one's
            while True:
                if until is not None and until():
                    return True
                if not self._step(end):
                    self.now = end
                    return until is None

    def _step(self, end: float) -> bool:
        """The next event, or the next turn of a process; False where there is none before the
        end."""
        if self._queue:
            if self._events and self._events[0][0] <= self.now:
                heapq.heappop(self._events)[2]()
                return True
            place = int(self.random.random() * len(self._queue))
            loop = self._queue[place]
            self._queue[place] = self._queue[-1]
            self._queue.pop()
            loop.queued = False
            if loop.turns():  # else it is roused when it is thawed
                loop.turn()
            return True
        if not self._events or self._events[0][0] > end:
            return False
        self.now = max(self.now, self._events[0][0])
        heapq.heappop(self._events)[2]()
        return True

    def close(self) -> None:
        """End all that is under way, in dead processes too, so that nothing is left for Python to
        find half done."""
        with chance.drawn_from(self.random):
            for _ in range(1000):
                tasks = [task for loop in self._loops for task in asyncio.all_tasks(loop)]
                if not tasks:
                    break
                for task in tasks:
                    task.cancel()
                for loop in self._loops:
                    loop.dead = loop.frozen = False
                    loop.turn()
        self._drawing.close()

    # The network ----------------------------------------------------------------------------------

    def cut(self, source: str, target: str) -> None:
        """What one host sends does not reach the other, until as many cuts were mended; the other
        way is another matter."""
        self._cut[source, target] = self._cut.get((source, target), 0) + 1

    def mend(self, source: str, target: str) -> None:
        """End one cut."""
        self._cut[source, target] -= 1

    def reaches(self, source: str, target: str) -> bool:
        """Whether what one host sends reaches the other."""
        return source == target or not self._cut.get((source, target))

    def connected(self, one: str, other: str) -> bool:
        """Whether two hosts reach each other."""
        return self.reaches(one, other) and self.reaches(other, one)
