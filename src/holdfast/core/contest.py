"""Shards that two nodes take from each other: each waits longer before it takes one again, so that
a quarrel dies down.

Whoever takes over a shard believes that its owner is dead. If the owner lives, one of the two is
mistaken, and learns of it within a few beats. Until then neither should fill the log with claims.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdfast import limits

if TYPE_CHECKING:
    from random import Random

_FORGIVEN_SECONDS = 3 * limits.CONTEST_SECONDS_MAX


class Contest:
    """What was taken from one node while it lived. Times are monotonic seconds."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._losses: dict[int, tuple[int, float, float]] = {}
        """Per shard how often, when last, and until when to wait."""

    def lost(self, shard: int, now: float) -> int:
        """Note that a shard was taken; return how often that happened lately."""
        count, at, _ = self._losses.get(shard, (0, now, now))
        count = count + 1 if now - at < _FORGIVEN_SECONDS else 1
        most = min(limits.CONTEST_SECONDS_MIN * 2 ** min(count, 16), limits.CONTEST_SECONDS_MAX)
        self._losses[shard] = (
            count,
            now,
            now + self._random.uniform(limits.CONTEST_SECONDS_MIN, most),
        )
        return count

    def may_take(self, shard: int, now: float) -> bool:
        """Whether it may be taken over now from an owner that is called dead."""
        loss = self._losses.get(shard)
        return loss is None or now >= loss[2]
