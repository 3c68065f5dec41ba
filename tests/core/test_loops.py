"""What all loops need: turns for others in long work, and an end for what was begun."""

from __future__ import annotations

import asyncio
import threading

import pytest

from holdfast import loops


async def test_others_get_their_turn_while_many_items_are_gone_through() -> None:
    turns_at: list[int] = []
    done: list[int] = []

    async def other() -> None:
        while True:
            await asyncio.sleep(0)
            turns_at.append(len(done))

    beside = asyncio.create_task(other())
    async for item in loops.in_slices(range(3_000)):
        done.append(item)
    beside.cancel()
    assert done == list(range(3_000))
    assert len(turns_at) >= 5
    assert (
        max(
            after - before for before, after in zip([0, *turns_at], [*turns_at, 3_000], strict=True)
        )
        <= 1_000
    )


async def test_the_first_error_ends_what_runs_beside_it() -> None:
    ended: list[str] = []

    async def long(name: str) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            ended.append(name)

    async def failing() -> None:
        await asyncio.sleep(0)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await loops.together(long("a"), failing(), long("b"))
    assert ended == ["a", "b"]


async def test_who_is_cancelled_waits_for_the_end_of_its_thread() -> None:
    may_end, ended = threading.Event(), threading.Event()

    def work() -> None:
        may_end.wait(30)
        ended.set()
        raise ValueError("nobody hears this")

    waits = asyncio.create_task(loops.in_thread(work))
    await asyncio.sleep(0)
    waits.cancel()
    await asyncio.wait([waits], timeout=0.05)
    assert not waits.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await waits
    assert ended.is_set()
    assert await loops.in_thread(lambda: 7) == 7
