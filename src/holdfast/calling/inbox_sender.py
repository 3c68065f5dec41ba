"""Durable sends from outside a turn: each is appended to its receiver's inbox, once and in order.

Per receiver one append is under way; what is sent to it meanwhile goes with the next one, as a
whole, and is given up with the first of its deadlines. An append whose outcome is unknown is made
again under the very same subjects, each of which expects to be the first there: if it is refused,
the first one happened. Only if that first one was consumed and purged meanwhile a second copy gets
in, and the receiver's record, which holds the sender's last number, drops it.

A caller that is cancelled takes its message back only while it waits for its turn.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Protocol

from holdfast import chance, codec, limits
from holdfast.clock import Clock
from holdfast.core import backoff
from holdfast.core.pools import Space
from holdfast.engines.base import Expect, Record
from holdfast.errors import (
    Closed,
    Conflict,
    HoldfastError,
    NotDone,
    OutcomeUnknown,
    Overloaded,
    StorageFailed,
    Unknown,
)
from holdfast.records import subjects
from holdfast.records.messages import InboxMessage

_AT_ONCE_MAX = 64
_AT_ONCE_BYTES_MAX = 512 * 1024


class Appender(Protocol):
    """What joins the records of many senders into batches."""

    async def append(self, *records: Record) -> int: ...


class _Letter:
    __slots__ = ("deadline", "future", "record", "title")

    def __init__(
        self, record: Record, deadline: float, future: asyncio.Future[None], title: str
    ) -> None:
        self.record = record
        self.deadline = deadline
        self.future = future
        self.title = title


class InboxSender:
    """The sends of one process. ``appenders``: one per cell, in the order of the cells."""

    def __init__(
        self, appenders: Sequence[tuple[str, Appender]], clock: Clock, caller: str, space: Space
    ) -> None:
        self._appenders = appenders
        self._clock = clock
        self._caller = caller
        self._space = space
        self._number = 0
        self._lanes: dict[str, deque[_Letter]] = {}
        """Per receiver the letters that wait; there is one as long as an append to it is under
        way."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting = 0
        self._random = chance.random()
        self.sent = 0

    async def send(
        self, token: str, handler: str, arguments: bytes, timeout_seconds: float, message_id: str
    ) -> None:
        """Append, and return when it is durable. See `AgentRef.send` for what it raises."""
        if self._waiting >= limits.SUBMISSIONS_MAX:
            raise Overloaded(
                f"{limits.SUBMISSIONS_MAX} sends of this process wait: send more slowly"
            )
        shard = self._space.shard_of(token)
        cell, appender = self._appenders[shard % len(self._appenders)]
        now = self._clock.now()
        self._number += 1
        subject = subjects.inbox(cell, shard, token, f"{self._caller}-{self._number}")
        message = InboxMessage(handler, arguments, self._caller, self._number, message_id, now)
        record = Record(subject, codec.seal(codec.encode_raw(message)), Expect(subject, 0))
        loop = asyncio.get_running_loop()
        letter = _Letter(record, now + timeout_seconds, loop.create_future(), f"{token} {handler}")
        lane = self._lanes.get(token)
        if lane is None:
            self._lanes[token] = lane = deque()
            task = loop.create_task(self._run(token, lane, appender))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        lane.append(letter)
        self._waiting += 1
        try:
            await letter.future
        finally:
            self._waiting -= 1

    async def _run(self, token: str, lane: deque[_Letter], appender: Appender) -> None:
        try:
            while letters := _take(lane):
                await self._append(lane, letters, appender)
        finally:
            del self._lanes[token]
            _fail(lane, Closed("the node was closed"))

    async def _append(
        self, lane: deque[_Letter], letters: list[_Letter], appender: Appender
    ) -> None:
        records = [letter.record for letter in letters]
        deadline = min(letter.deadline for letter in letters)
        attempt = 0
        unknown = False
        while True:
            error: HoldfastError
            try:
                await appender.append(*records)
                break
            except Conflict:
                break  # only these very letters can be in the way: an attempt before happened
            except (Closed, StorageFailed) as found:
                _fail(
                    letters,
                    OutcomeUnknown(f"not known to be written: {found}") if unknown else found,
                )
                return
            except Unknown as found:
                unknown = True
                error = found
            except NotDone as found:
                error = found
            except HoldfastError as found:
                _fail(letters, found)
                return
            except asyncio.CancelledError:
                _fail(letters, OutcomeUnknown("the node was closed before it was known"))
                raise
            attempt += 1
            if self._clock.now() >= deadline:
                if unknown:
                    _fail(letters, OutcomeUnknown(f"not known to be in the inbox: {error}"))
                    return
                # Nothing was written: those that may wait longer go on, in their order.
                _fail([letter for letter in letters if letter.deadline <= deadline], error)
                lane.extendleft(
                    reversed([letter for letter in letters if letter.deadline > deadline])
                )
                return
            await asyncio.sleep(
                backoff.delay_seconds(attempt, self._random, limits.BACKOFF_SECONDS_MAX)
            )
        self.sent += len(letters)
        for letter in letters:
            if not letter.future.done():
                letter.future.set_result(None)

    async def close(self) -> None:
        """End what is under way: its senders get `Closed`, or `OutcomeUnknown`."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _take(lane: deque[_Letter]) -> list[_Letter]:
    """The next letters, as many as go at once."""
    letters: list[_Letter] = []
    size = 0
    while lane and len(letters) < _AT_ONCE_MAX:
        size += len(lane[0].record.payload)
        if letters and size > _AT_ONCE_BYTES_MAX:
            break
        letter = lane.popleft()
        if not letter.future.done():
            letters.append(letter)
    return letters


def _fail(letters: Iterable[_Letter], error: HoldfastError) -> None:
    """Each sender gets an error of its own, that names its message."""
    for letter in letters:
        if not letter.future.done():
            letter.future.set_exception(type(error)(f"{letter.title}: {error}"))
