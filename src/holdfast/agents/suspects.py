"""Messages that were in the hands of a process that died: one of them may have ended it, and may end the next."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from typing import TYPE_CHECKING

from holdfast import limits
from holdfast.agents import mailbox, turn
from holdfast.agents.mailbox import Delivery
from holdfast.errors import HandlerFailed

if TYPE_CHECKING:
    from holdfast.agents.activation import Activation


def start(activation: Activation, message: Delivery) -> None:
    """Run a message that was in the hands of a process that died, so that it ends three processes at most.

    First behind a committed mark on the agent; where that process ended too, one message of the node at a time, each
    behind a mark that names it; a message that bears such a mark is given up. Marks of this very process do not count
    when it claims the agent's shard anew (`Activation.load`): it has not ended.
    """
    attempts = activation.attempts = activation.attempts or {}
    alone = turn.ANY_MESSAGE in attempts
    if message.key in attempts:
        turn.bury(activation, message, HandlerFailed(f"this message ended {limits.UNCLEAN_ENDS_MAX} processes"))
    elif activation.probation and alone:
        turn.start(activation, message)
    else:
        activation.running = message
        # Others' marks stay: two deadly messages would else take turns at wiping out each other's.
        name = message.key if alone else turn.ANY_MESSAGE
        attempts[name] = limits.UNCLEAN_ENDS_MAX - 1 if alone else 1
        marks = activation.shard.runtime.marks
        if len(marks) >= limits.MARKS_MAX:
            marks.clear()  # then some count that need not
        marks.add((activation.token, name))
        while len(attempts) > limits.ATTEMPT_MARKS_MAX:
            del attempts[next(name for name in attempts if name != turn.ANY_MESSAGE)]
        activation.probation = not alone
        turn.spawn(activation, message, _behind_mark(activation, message, name))


async def _behind_mark(activation: Activation, message: Delivery, name: str) -> None:
    runtime = activation.shard.runtime
    try:
        async with nullcontext() if name == turn.ANY_MESSAGE else runtime.quarantine:
            await _marked(activation)
            if activation.running is message:
                turn.start(activation, message)
                task = activation.task
                if activation.running is message and task is not None and task is not asyncio.current_task():
                    await asyncio.wait([task])
                await _marked(activation)
        if name not in (activation.attempts or ()):  # until here the log may still show the mark
            runtime.marks.discard((activation.token, name))
    except asyncio.CancelledError:
        if not turn.cancelled(activation, message):
            raise
    else:
        activation.pump()


def _marked(activation: Activation) -> asyncio.Future[None]:
    """Commit the record as it is; the future is done when it is acknowledged, cancelled when the shard is lost."""
    future: asyncio.Future[None] = activation.shard.runtime.loop.create_future()
    activation.note(mailbox.mark(future))
    return future
