"""Durable sends from outside a turn: each is appended to its receiver's inbox, once and in order.

Per receiver one append is under way. An append whose outcome is unknown is made again under the very same subject,
which expects to be the first there: if it is refused, the first one happened. Only if that first one was consumed and
purged meanwhile a second copy gets in, and the receiver's record, which holds the sender's last number, drops it.
"""

from __future__ import annotations

import asyncio
from random import Random
from typing import Protocol

from holdfast import codec, ids, limits
from holdfast.agents.messages import InboxMessage
from holdfast.clock import Clock
from holdfast.core import backoff
from holdfast.engines.base import Expect, Record
from holdfast.errors import Closed, Conflict, NoQuorum, OutcomeUnknown, Overloaded, Unknown


class Appender(Protocol):
    """What joins the records of many senders into batches."""

    async def append(self, record: Record) -> int: ...


class Sender:
    """The sends of one process. ``appenders``: one per cell, in the order of the cells."""

    def __init__(self, appenders: list[tuple[str, Appender]], clock: Clock, caller: str, shards: int) -> None:
        self._appenders = appenders
        self._clock = clock
        self._caller = caller
        self._shards = shards
        self._number = 0
        self._turns: dict[str, asyncio.Future[None]] = {}
        """Per receiver, the end of the newest send that waits or is under way."""
        self._random = Random()
        self.sent = 0

    async def send(self, token: str, handler: str, arguments: bytes, timeout_seconds: float, message_id: str) -> None:
        """Append, and return when it is durable. See `AgentRef.send` for what it raises."""
        self._number += 1
        number = self._number
        before = self._turns.get(token)
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._turns[token] = mine
        try:
            if before is not None:
                await asyncio.wait([before])
            await self._append(token, number, handler, arguments, timeout_seconds, message_id)
            self.sent += 1
        finally:
            mine.set_result(None)
            if self._turns.get(token) is mine:
                del self._turns[token]

    async def _append(
        self, token: str, number: int, handler: str, arguments: bytes, timeout_seconds: float, message_id: str
    ) -> None:
        shard = ids.shard_of(token, self._shards)
        cell, appender = self._appenders[shard % len(self._appenders)]
        subject = f"{cell}.{shard}.in.{token}.{self._caller}-{number}"
        message = InboxMessage(handler, arguments, self._caller, number, message_id, self._clock.now())
        record = Record(subject, codec.seal(codec.encode_raw(message)), Expect(subject, 0))
        deadline = self._clock.now() + timeout_seconds
        attempt = 0
        unknown = False
        while True:
            error: Exception
            try:
                await appender.append(record)
                return
            except Conflict:
                if unknown:
                    return  # the attempt whose outcome was unknown happened
                raise
            except Closed as closed:
                if unknown:
                    raise OutcomeUnknown(f"{token} {handler}: the node was closed before it was known") from None
                raise closed
            except Unknown as found:
                unknown = True
                error = found
            except (NoQuorum, Overloaded) as found:
                error = found
            attempt += 1
            if self._clock.now() >= deadline:
                if unknown:
                    raise OutcomeUnknown(f"{token} {handler}: not known to be in its inbox: {error}") from None
                raise error
            await asyncio.sleep(backoff.delay_seconds(attempt, self._random, limits.BACKOFF_SECONDS_MAX))
