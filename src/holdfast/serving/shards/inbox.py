"""The inboxes of agents, as the log has them: followed for all shards that were claimed together,
and read on where an agent has more messages than are held in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

import msgspec

from holdfast import codec
from holdfast.engines.base import Stored
from holdfast.errors import DataLoss, NoQuorum, Unknown
from holdfast.records import subjects
from holdfast.records.messages import InboxMessage
from holdfast.serving import delivery
from holdfast.serving.delivery import Delivery

if TYPE_CHECKING:
    from holdfast.serving.runtime import Runtime
    from holdfast.serving.shards.shard import Shard
    from holdfast.serving.turns.activation import Activation

_READ_AT_ONCE: Final = 64
_decode = msgspec.msgpack.Decoder(InboxMessage).decode


def message_of(stored: Stored, interrupted_before: int) -> Delivery:
    """The message of a record. ``interrupted_before``: earlier ones may have been in the hands of a
    process that died."""
    try:
        message = _decode(codec.unseal(stored.payload, stored.subject))
    except (msgspec.MsgspecError, UnicodeDecodeError, DataLoss) as error:
        message = InboxMessage(f"<unreadable: {error}>", bytes(stored.payload))
    return delivery.from_inbox(stored.sequence, message, stored.sequence < interrupted_before)


async def follow(runtime: Runtime, cell: str, epochs: Mapping[int, int]) -> None:
    """Hand on what comes into the inboxes of shards that were claimed together, as long as one of
    them is still served. ``epochs``: of these claims."""
    filters = [subjects.all_of(subjects.shard(cell, number), subjects.INBOX) for number in epochs]
    tail = runtime.engine.log.tail(cell, filters, min(epochs.values()) + 1)
    try:
        async for chunk in tail:
            if not any(_serves(runtime, number, epoch) for number, epoch in epochs.items()):
                return
            receive(runtime, chunk.records, epochs)
    finally:
        await tail.aclose()  # type: ignore[attr-defined]  # tails are async generators


def _serves(runtime: Runtime, number: int, epoch: int) -> bool:
    """Whether a shard is served here, since this very claim of it."""
    shard = runtime.shards.get(number)
    return shard is not None and shard.epoch == epoch


def receive(runtime: Runtime, records: Iterable[Stored], epochs: Mapping[int, int]) -> None:
    """Give records that a tail brought to their shards. ``epochs``: those that it was begun for.

    A shard that was claimed again has a tail of its own: what an older one brings may have a gap
    before it.
    """
    for stored in records:
        number = subjects.shard_of(stored.subject)
        if number in epochs and _serves(runtime, number, epochs[number]):
            runtime.shards[number].receive(stored)


async def refill(shard: Shard, activation: Activation) -> None:
    """Read on in the inbox of an agent that has more messages than are held in memory."""
    waiting = activation.inbox
    assert waiting is not None
    ready: list[Delivery] = []
    # What an owner before consumed may be purged by now: it is not to be read again.
    while waiting and isinstance(old := waiting[0], int) and old <= activation.consumed:
        waiting.popleft()
        shard.consumed(old)
    while (
        shard.active
        and activation.inbox is waiting
        and isinstance(head := next(iter(waiting), None), int)
    ):
        # Only the first that are still to be read: behind them may stand messages that came when
        # there was room.
        some: list[int] = []
        for item in waiting:
            if not isinstance(item, int) or len(some) == _READ_AT_ONCE:
                break
            some.append(item)
        try:
            found = await asyncio.gather(
                *(shard.runtime.engine.log.read_sequence(shard.cell, s) for s in some)
            )
        except (NoQuorum, Unknown):
            found = [None]
        if activation.inbox is not waiting:
            return
        if waiting[0] != head:
            # a message that failed was put in front of them meanwhile, to be tried again first
            break
        for stored in found:
            if stored is None:  # no replica that answers has it yet: go on from here in a moment
                break
            waiting.popleft()
            ready.append(message_of(stored, shard.interrupted_before))
        if ready:
            waiting.extendleft(reversed(ready))
            break
        await asyncio.sleep(0.1)
    activation.reading = False
    activation.pump()
