"""Carry what turns sent from a shard's outbox into another cell, each message once and in order.

A batch is atomic within one cell only, so a send to another cell is first committed in the sender's
own (the outbox). One relay per (shard, target cell) then appends the messages there, together with
a cursor record that is compared and set on its last sequence: two relays of one shard (an owner
that does not know yet that it was replaced, and the next) cannot both succeed, and a batch whose
outcome is unknown is settled by reading the cursor.

The cursor names the sequence, in the source cell, of the last outbox record carried over. The
outbox is purged behind it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from holdfast import chance, codec, limits
from holdfast.core import backoff
from holdfast.engines.base import Expect, Record
from holdfast.errors import Closed, Conflict, NotDone, Unknown
from holdfast.records import subjects

if TYPE_CHECKING:
    from holdfast.serving.runtime import Runtime
    from holdfast.serving.shards.shard import Shard

_Item = tuple[int, str, bytes]
_decode = msgspec.msgpack.Decoder(tuple[str, bytes]).decode
_decode_cursor = msgspec.msgpack.Decoder(int).decode


class OutboxRelay:
    """See the module. It runs while it has something to carry, and its shard is active."""

    def __init__(self, runtime: Runtime, shard: Shard, target: str) -> None:
        self._runtime = runtime
        self._shard = shard
        self._target = target
        self._subject = subjects.relay(target, shard.cell, shard.number)
        self._waiting: list[_Item] = []
        self._cursor: tuple[int, int] | None = None
        """(sequence of the cursor record, outbox sequence that it names); None: not known."""
        self._task: asyncio.Task[None] | None = None
        self._random = chance.random()
        self.carried = 0

    def add(self, sequence: int, payload: bytes) -> None:
        """Take the next outbox record."""
        self._waiting.append((sequence, self._shard.prefix, payload))
        if self._task is None or self._task.done():
            self._task = self._runtime.spawn(self._run())

    async def _run(self) -> None:
        attempt = 0
        while self._waiting and self._shard.active:
            try:
                if self._cursor is None:
                    await self._read_cursor()
                await self._carry()
                attempt = 0
            except (Conflict, Unknown):
                # Somebody else moved it, or a batch of ours may have: what is carried is what the
                # cursor says.
                self._cursor = None
                attempt += 1
            except Closed:
                return
            except NotDone:
                attempt += 1
            if attempt:
                await asyncio.sleep(backoff.delay_seconds(attempt, self._random))

    async def _read_cursor(self) -> None:
        stored = await self._runtime.engine.log.read(self._target, self._subject)
        if stored is None:
            self._cursor = (0, 0)
        else:
            self._cursor = (
                stored.sequence,
                _decode_cursor(codec.unseal(stored.payload, self._subject)),
            )

    async def _carry(self) -> None:
        assert self._cursor is not None
        expected, done = self._cursor
        self._waiting = [item for item in self._waiting if item[0] > done]
        batch: list[_Item] = []
        size = 0
        for item in self._waiting:
            size += len(item[2]) + 512
            if batch and (
                size > limits.BATCH_BYTES_MAX - 4096 or len(batch) >= limits.BATCH_RECORDS_MAX - 1
            ):
                break
            batch.append(item)
        if not batch:
            return
        last = batch[-1][0]
        cursor = codec.seal(codec.encode_raw(last))
        records = [Record(self._subject, cursor, Expect(self._subject, expected))]
        for sequence, where, payload in batch:
            subject, message = _decode(codec.unseal(payload, f"{where} {sequence}"))
            records.append(Record(subject, message))
        sequences = await self._runtime.gate.append(self._target, records)
        self._cursor = (sequences[0], last)
        self.carried += len(batch)
        del self._waiting[: len(batch)]
        outbox = subjects.outbox(self._shard.prefix, self._target, ">")
        self._runtime.spawn(self._runtime.purge(self._shard.cell, outbox, last + 1))
