"""Tasks that turns begin, on a loop that is Holdfast's own: none of them ends its program.

asyncio lets a `SystemExit` or a `KeyboardInterrupt` of a task out of the loop as well as to whoever
awaits the task. So a ``sys.exit`` in a helper, run with ``asyncio.gather``, would end the node with
all its agents. A task that is begun within a turn is run in a coroutine that turns both into
`HandlerFailed`, which the handler gets where it awaits the task.

That takes a task factory, which a loop has only one of. So it is set on loops that `holdfast.run`
made, as those of all commands and nodes are; a loop that a program made itself is left as it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any

from holdfast import loops
from holdfast.agents import guard
from holdfast.agents.over import current
from holdfast.errors import HandlerFailed


def keep_in() -> None:
    """Have tasks of turns end no program on the running loop, if it is Holdfast's own and has no
    factory of a program's."""
    loop = asyncio.get_running_loop()
    if loops.is_ours() and loop.get_task_factory() is None:
        loop.set_task_factory(factory)


def factory(
    loop: asyncio.AbstractEventLoop,
    work: Coroutine[Any, Any, Any] | Generator[Any, None, Any],
    **options: Any,
) -> asyncio.Task[Any]:
    """A task for `asyncio.AbstractEventLoop.set_task_factory`."""
    if current.get() is not None and asyncio.iscoroutine(work):
        work = _harmless(work)
    return asyncio.Task(work, loop=loop, **options)


async def _harmless(work: Coroutine[Any, Any, Any]) -> Any:
    try:
        return await work
    except guard.INTERRUPTIONS as error:
        if guard.interrupts(error):
            raise
        raise guard.named(HandlerFailed, "a task of a turn", error) from None
