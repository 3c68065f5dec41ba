"""The tasks of a node's agents: each runs in a context of its own, and none that matters ends
unheard."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from holdfast import limits, loops
from holdfast.agents import guard

_logger = logging.getLogger(__name__)


class Tasks:
    """See the module. ``on_failed`` takes what ended that must not end, and the error, if there is
    one."""

    def __init__(self, on_failed: Callable[[str, BaseException | None], None]) -> None:
        self.failures: list[BaseException] = []
        """Why tasks failed, oldest first."""
        self._on_failed = on_failed
        self._loop = asyncio.get_running_loop()
        self._running: set[asyncio.Task[Any]] = set()
        self._lasting: set[asyncio.Task[Any]] = set()
        """Those that last as long as the node: that one returns is a failure, too."""
        self._closing = False

    def spawn(
        self, work: Coroutine[Any, Any, Any], may_be_cancelled: bool = False
    ) -> asyncio.Task[Any]:
        """Run something next to everything else. Whoever cancels it fails the node, but for a
        turn's or reader's."""
        task = self._loop.create_task(work, context=guard.fresh())
        self._running.add(task)
        task.add_done_callback(partial(self._ended, may_be_cancelled))
        return task

    def keep(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run what lasts as long as the node."""
        self._lasting.add(self.spawn(work))

    def _ended(self, may_be_cancelled: bool, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        why = (
            None
            if may_be_cancelled and task.cancelled()
            else loops.end_of(task, task not in self._lasting)
        )
        if why is not None and not self._closing:
            self.failures.append(why[1] or RuntimeError(why[0]))
            name = getattr(task.get_coro(), "__qualname__", "a task")
            self._on_failed(f"{name} {why[0]}", why[1])

    def closing(self) -> None:
        """From now on tasks may end: whatever they need is taken away."""
        self._closing = True

    async def close(self) -> None:
        """Cancel all of them. A task that goes on all the same is left to itself, and logged."""
        self.closing()
        tasks = [task for task in self._running if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        _, left = (
            await asyncio.wait(tasks, timeout=limits.CANCELLED_SECONDS) if tasks else (set(), set())
        )
        for task in left:
            _logger.warning(
                "%s goes on though it was cancelled, and is left to itself", task.get_name()
            )
