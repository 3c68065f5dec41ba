"""The event loop that Holdfast runs on (uvloop where there is one), and the tasks that live as long as it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from typing import Any, Final, TypeVar

try:
    import uvloop
except ModuleNotFoundError:  # Windows
    uvloop = None  # type: ignore[assignment]

T = TypeVar("T")

_AT_ONCE: Final = 500
"""Items of `by_and_by` between two turns of the loop: some 10 ms of what is done for a record of a recovery."""


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a program's main coroutine, as `asyncio.run` does, on the fastest loop there is."""
    with asyncio.Runner(loop_factory=None if uvloop is None else uvloop.new_event_loop) as runner:
        return runner.run(main)


def start(work: Coroutine[Any, Any, T], what: str) -> asyncio.Task[T]:
    """Run a part of a node that nothing else can do without: if it fails, the loop's exception handler hears of it."""
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)

    def ended(task: asyncio.Task[T]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            loop.call_exception_handler({"message": f"{what} failed", "exception": error, "task": task})

    task.add_done_callback(ended)
    return task


async def by_and_by(items: Iterable[T]) -> AsyncIterator[T]:
    """The items, with a turn for all else that the loop has to do after every few hundred.

    For work on as many items as there are agents: while a loop stands still its node proves no life, and its agents do
    nothing.
    """
    for count, item in enumerate(items, 1):
        yield item
        if count % _AT_ONCE == 0:
            await asyncio.sleep(0)
