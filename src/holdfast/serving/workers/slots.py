"""Places for the jobs that run off the loop: so many at a time, shared between the kinds of agents.

A job may never end, and none is ended for the sake of another. So a kind that has no job always
gets a place, beyond the number if need be: the jobs of others delay its own, and never keep it from
all of them. Who waits longest in the kind with the fewest jobs is next. A job that goes on for long
is told of in the log, as it may have a deadline or none.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque

from holdfast import ids, limits

_logger = logging.getLogger(__name__)


class Slots:
    """See the module. ``what`` names one: a thread, or a process."""

    def __init__(self, count: int, what: str) -> None:
        self._count = count
        self._what = what
        self._held = Counter[str]()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    async def take(self, kind: str) -> None:
        """Wait for a place for a job of a kind, and hold it until `release`."""
        if not self._held[kind] or self._held.total() < self._count:
            self._held[kind] += 1
            return
        place = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(kind, deque())
        waiting.append(place)
        try:
            await place
        except BaseException:
            if place.done() and not place.cancelled():
                self.release(kind)
            elif place in waiting:
                waiting.remove(place)
            raise

    def release(self, kind: str) -> None:
        """Give a place back, to who is next."""
        self._held[kind] -= 1
        while kinds := [kind for kind, places in self._waiting.items() if places]:
            least = min(kinds, key=self._held.__getitem__)
            if self._held[least] and self._held.total() >= self._count:
                break
            place = self._waiting[least].popleft()
            if not place.done():
                self._held[least] += 1
                place.set_result(None)
            if not self._waiting[least]:
                del self._waiting[least]

    def watch(self, token: str, handler: str) -> Watch:
        """Tell of a job that goes on for long, until the watch is ended."""
        return Watch(f"{'/'.join(ids.from_agent_token(token))}: {handler}", self._what, self._count)


class Watch:
    """Tells in the log of a job that has gone on for a minute, for two, for four and so on."""

    def __init__(self, title: str, what: str, count: int) -> None:
        self._title = title
        self._what = what
        self._count = count
        self._seconds = limits.LONG_JOB_SECONDS
        self._loop = asyncio.get_running_loop()
        self._handle = self._loop.call_later(self._seconds, self._tell)

    def _tell(self) -> None:
        _logger.warning(
            "%s has run in a %s for %.0f s, and %d of them run at a time: if it waits for "
            "something that does not come, give that a time limit",
            self._title,
            self._what,
            self._seconds,
            self._count,
        )
        self._handle = self._loop.call_later(self._seconds, self._tell)
        self._seconds *= 2

    def end(self) -> None:
        """The job has ended."""
        self._handle.cancel()
