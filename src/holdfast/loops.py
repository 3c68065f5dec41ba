"""The event loop that Holdfast runs on (uvloop where there is one), and the tasks that live as long
as it."""

from __future__ import annotations

import asyncio
import ctypes
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextvars import ContextVar
from typing import Any, Final, TypeVar
from weakref import WeakSet

from holdfast import limits

try:
    import uvloop
except ModuleNotFoundError:  # Windows
    uvloop = None  # type: ignore[assignment]

T = TypeVar("T")
_logger = logging.getLogger(__name__)

_AT_ONCE: Final = 500
"""Items of `in_slices` between two turns of the loop: some 10 ms of what is done for a record of a
recovery."""


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a program's main coroutine, as `asyncio.run` does, on the fastest loop there is.

    Tasks that are left when it has ended are cancelled. `asyncio.run` waits for their end for ever,
    also where one swallows each cancellation; this waits for a bounded time, and says in the log
    what goes on.
    """
    runner = asyncio.Runner(loop_factory=None if uvloop is None else uvloop.new_event_loop)
    loop = runner.get_loop()
    _ours.add(loop)
    try:
        return runner.run(main)
    finally:
        _end(runner)


def _end(runner: asyncio.Runner) -> None:
    """End what is left on a loop, and close it. A Ctrl-C meanwhile ends it at once, and is what
    comes out of it."""
    loop = runner.get_loop()
    try:
        try:
            loop.run_until_complete(_end_all())
        finally:
            for task in asyncio.all_tasks(loop):
                _leave(task)
            runner.close()
    except (RuntimeError, asyncio.CancelledError) as error:
        # It may have come in the midst of a step of the loop, which then cannot be closed.
        before = error.__context__
        while before is not None and not isinstance(before, KeyboardInterrupt):
            before = before.__context__
        if before is None:
            raise
        raise KeyboardInterrupt from None


async def _end_all() -> None:
    """Cancel all tasks that there are, those too that others begin as they end, and then end all
    generators."""
    loop, cancelled = asyncio.get_running_loop(), set[asyncio.Task[Any]]()
    _ending.add(loop)
    until = loop.time() + limits.LEFT_SECONDS
    while (left := asyncio.all_tasks() - {asyncio.current_task()}) and loop.time() < until:
        for task in left - cancelled:
            task.cancel()
        cancelled |= left
        # Not until all have ended: what they begin meanwhile is cancelled as well.
        await asyncio.wait(left, timeout=until - loop.time(), return_when=asyncio.FIRST_COMPLETED)
    # It knows no generator any more when it is called again, as the runner does.
    await asyncio.wait({loop.create_task(loop.shutdown_asyncgens())}, timeout=limits.LEFT_SECONDS)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        _logger.warning(
            "%s goes on though it was cancelled, and is left to itself", task.get_name()
        )


_ending: Final[WeakSet[asyncio.AbstractEventLoop]] = WeakSet()
_ours: Final[WeakSet[asyncio.AbstractEventLoop]] = WeakSet()


def is_ours() -> bool:
    """Whether `run` made the running loop: another one belongs to whoever made it, and is left as
    it is."""
    return asyncio.get_running_loop() in _ours


def is_over() -> bool:
    """Whether the running loop's program has ended: at the end of `run`, or of `asyncio.run`, every
    task is cancelled."""
    return asyncio.get_running_loop() in _ending or all(
        task.cancelling() for task in asyncio.all_tasks()
    )


def _leave(task: asyncio.Task[Any]) -> None:
    """Have nobody wait for a task any more, and never destroy it, not even as the interpreter ends.

    What is destroyed is given one more error: code that swallows every error would then go round
    for ever, with no loop.
    """
    asyncio._unregister_task(task)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(task))


def report(what: str, error: BaseException | None) -> None:
    """Tell the running loop's exception handler that a part of a node has come to its end.
    ``what``: in a sentence."""
    context: dict[str, Any] = {"message": what, PART: True}
    if error is not None:
        context["exception"] = error
    asyncio.get_running_loop().call_exception_handler(context)


PART: Final = "holdfast_part"
"""A key of what an exception handler is given, where a part of a node came to its end."""

hears: Final[ContextVar[Callable[[str, BaseException | None], None]]] = ContextVar(
    "hears", default=report
)
"""Who hears of the end of parts that are started here: their node, which cannot go on."""

_stopped: Final[WeakSet[asyncio.Task[Any]]] = WeakSet()


def start(work: Coroutine[Any, Any, T], what: str, may_return: bool = False) -> asyncio.Task[T]:
    """Run a part of a node that nothing else can do without. If it ends, its node hears of it,
    unless `stop` ended it.

    A task may end without an error, as when code of a user's cancels all tasks that there are: that
    is a failure as well. ``may_return``: it is done when it returns.
    """
    told = hears.get()
    task = asyncio.get_running_loop().create_task(work)

    def ended(task: asyncio.Task[T]) -> None:
        if task in _stopped:
            if not task.cancelled():
                task.exception()  # it was seen
        elif (why := end_of(task, may_return)) is not None:
            told(f"{what} {why[0]}", why[1])

    task.add_done_callback(ended)
    return task


def end_of(task: asyncio.Task[Any], may_return: bool) -> tuple[str, BaseException | None] | None:
    """How a task ended, and its error, where it was not to end so."""
    if task.cancelled():
        return "was cancelled", None
    if (error := task.exception()) is not None:
        return f"failed: {type(error).__name__}: {error}", error
    return None if may_return else ("ended", None)


async def stop(*tasks: asyncio.Task[Any] | None) -> None:
    """End parts that were begun with `start`, and wait until they have ended."""
    there = [task for task in tasks if task is not None]
    _stopped.update(there)
    for task in there:
        task.cancel()
    await asyncio.gather(*there, return_exceptions=True)


async def together(*works: Coroutine[Any, Any, object]) -> None:
    """Run all at once. The first error ends the others, and is raised when they have ended."""
    tasks = [asyncio.get_running_loop().create_task(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        await stop(*tasks)


async def in_thread(function: Callable[[], T]) -> T:
    """Call in a thread. Whoever is cancelled meanwhile waits for its end, so that nothing happens
    behind its back."""
    task = asyncio.get_running_loop().create_task(asyncio.to_thread(function))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise


async def in_slices(items: Iterable[T]) -> AsyncIterator[T]:
    """The items, with a turn for all else that the loop has to do after every few hundred.

    For work on as many items as there are agents: while a loop stands still its node proves no
    life, and its agents do nothing.
    """
    for count, item in enumerate(items, 1):
        yield item
        if count % _AT_ONCE == 0:
            await asyncio.sleep(0)
