"""Long work on a loop leaves turns for what else it has to do."""

from __future__ import annotations

import asyncio

from holdfast import loops


async def test_others_get_their_turn_while_many_items_are_gone_through() -> None:
    turns_at: list[int] = []
    done: list[int] = []

    async def other() -> None:
        while True:
            await asyncio.sleep(0)
            turns_at.append(len(done))

    beside = asyncio.create_task(other())
    async for item in loops.by_and_by(range(3_000)):
        done.append(item)
    beside.cancel()
    assert done == list(range(3_000))
    assert len(turns_at) >= 5
    assert max(after - before for before, after in zip([0, *turns_at], [*turns_at, 3_000], strict=True)) <= 1_000
