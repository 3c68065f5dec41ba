"""What carries sends into another cell: each once and in order, whatever two owners of one shard do
at a time."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Coroutine, Sequence
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any, cast

from holdfast import Unknown, codec
from holdfast.engines.base import Engine, Record
from holdfast.serving.runtime import Runtime
from holdfast.serving.shards.outbox_relay import OutboxRelay
from holdfast.serving.shards.shard import Shard

_numbers = itertools.count()


class Owner:
    """The little that a relay needs of a node, with a log that can be held back."""

    def __init__(self, engine: Engine, source: str) -> None:
        self.real = engine.log
        self.engine = SimpleNamespace(log=self)
        self.open = asyncio.Event()
        self.open.set()
        self.lose_answers = 0
        self.gate = self
        self.shard = cast(
            Shard, SimpleNamespace(prefix=f"{source}.7", number=7, cell=source, active=True)
        )

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(work)

    async def purge(self, cell: str, subject: str, before: int) -> None: ...

    async def read(self, cell: str, subject: str) -> Any:
        return await self.real.read(cell, subject)

    async def append(self, cell: str, records: Sequence[Record]) -> range:
        await self.open.wait()
        result = await self.real.append(cell, records)
        if self.lose_answers:
            self.lose_answers -= 1
            raise Unknown("the answer was lost")
        return result

    def relay(self, target: str) -> OutboxRelay:
        return OutboxRelay(cast(Runtime, self), self.shard, target)


def give(relay: OutboxRelay, target: str, numbers: range) -> None:
    for number in numbers:
        payload = codec.seal(
            codec.encode_raw((f"{target}.3.in.A/b.{number}", codec.seal(str(number).encode())))
        )
        relay.add(number, payload)


async def arrived(engine: Engine, target: str, count: int) -> list[int]:
    """The numbers in the target's inbox, in the order in which they were written, twice where they
    were."""
    found: list[int] = []
    async with (
        asyncio.timeout(240),
        aclosing(engine.log.tail(target, [f"{target}.3.in.>"])) as tail,
    ):  # type: ignore[type-var]
        async for chunk in tail:
            found += [int(bytes(codec.unseal(stored.payload, ""))) for stored in chunk.records]
            if len(found) >= count and chunk.caught_up:
                return found
    raise AssertionError


async def cells(engine: Engine) -> tuple[str, str]:
    names = [f"rel{os.getpid()}-{next(_numbers)}" for _ in range(2)]
    await engine.ensure_cells(names, 3 if engine.name == "nats" else 1)
    return names[0], names[1]


async def test_two_owners_at_a_time_carry_each_message_once(engine: Engine) -> None:
    source, target = await cells(engine)
    old, new = Owner(engine, source), Owner(engine, source)
    first, second = old.relay(target), new.relay(target)
    give(first, target, range(1, 4))
    await arrived(engine, target, 3)
    sequence = await engine.log.last_sequence(target)
    old.open.clear()
    give(first, target, range(4, 8))  # held back, with the cursor as it was
    await asyncio.sleep(0.2)
    give(second, target, range(1, 10))  # the next owner found all of them in the outbox
    assert await arrived(engine, target, 9) == list(range(1, 10))
    last = await engine.log.last_sequence(target)
    assert last == sequence + 7
    old.open.set()
    await asyncio.sleep(0.5)
    assert await engine.log.last_sequence(target) == last, "the old owner wrote again"


async def test_an_unknown_outcome_is_settled_by_the_cursor(engine: Engine) -> None:
    source, target = await cells(engine)
    owner = Owner(engine, source)
    owner.lose_answers = 2
    relay = owner.relay(target)
    give(relay, target, range(1, 6))
    assert await arrived(engine, target, 5) == list(range(1, 6))
    await asyncio.sleep(0.3)
    give(relay, target, range(6, 11))
    assert await arrived(engine, target, 10) == list(range(1, 11))
    await asyncio.sleep(0.3)
    # Ten messages, and a cursor with each batch that was written.
    assert await engine.log.last_sequence(target) == 10 + 2
