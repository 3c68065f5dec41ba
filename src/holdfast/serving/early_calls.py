"""Calls that come early: for shards that this node is about to own.

While a shard changes hands there is a moment when nobody serves it. Turned away, a caller would try
again now and then, and find the new owner late. So the old owner names it, the new one keeps the
calls until it serves the shard, and the moment is as short as the change itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from holdfast import limits
from holdfast.agents.calls import Sink
from holdfast.records.messages import Call

HandOn = Callable[[int, Call, "Sink | None"], None]


class EarlyCalls:
    """See the module. ``hand_on`` takes (shard, call, sink) of a call that was kept, when its shard
    is served, or is not."""

    def __init__(self, loop: asyncio.AbstractEventLoop, hand_on: HandOn) -> None:
        self._loop = loop
        self._hand_on = hand_on
        self._expected: dict[int, float] = {}
        self._kept: dict[int, list[tuple[Call, Sink | None]]] = {}
        self._count = 0

    def expect(self, numbers: Iterable[int]) -> None:
        """Keep the calls for these shards, as long as an attempt of a caller lasts."""
        until = self._loop.time() + limits.ATTEMPT_SECONDS
        for number in numbers:
            self._expected[number] = until

    def keep(self, number: int, call: Call, sink: Sink | None) -> bool:
        """Keep a call, where its shard is expected and there is room."""
        if self._count >= limits.PARKED_MAX or self._expected.get(number, 0.0) < self._loop.time():
            return False
        kept = self._kept.get(number)
        if kept is None:
            kept = self._kept[number] = []
            self._loop.call_later(limits.ATTEMPT_SECONDS, self._give_up, number, kept)
        kept.append((call, sink))
        self._count += 1
        return True

    def _give_up(self, number: int, kept: list[tuple[Call, Sink | None]]) -> None:
        if self._kept.get(number) is kept:
            self.hand_on(number)

    def hand_on(self, number: int) -> None:
        """Hand on what was kept for a shard; it is expected no more."""
        self._expected.pop(number, None)
        kept = self._kept.pop(number, ())
        self._count -= len(kept)
        for call, sink in kept:
            self._hand_on(number, call, sink)
