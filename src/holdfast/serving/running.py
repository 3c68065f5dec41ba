"""Which agent's code runs in this thread at this moment: found when somebody wants to know, at no
cost to a turn.

Every entry into an agent's code is one of a few functions of ours, which has the activation or the
job at hand. To label a line that is printed, `agent_id` looks for such a function among those that
are being run. Tasks and threads that a turn began (`asyncio.gather`, `asyncio.to_thread`) are known
by the turn's context variable instead.
"""

from __future__ import annotations

import sys
from types import CodeType, FrameType
from typing import Final

from holdfast import ids
from holdfast.agents import over
from holdfast.serving import fast_path
from holdfast.serving.turns import reading, reviving, turn
from holdfast.serving.workers import workers

_ENTRIES: Final[dict[CodeType, str]] = {
    fast_path.take.__code__: "activation",
    fast_path._read.__code__: "activation",
    turn.start.__code__: "activation",
    turn._run.__code__: "activation",
    reading.read.__code__: "activation",
    reading._read_later.__code__: "activation",
    reviving.revive.__code__: "activation",
    workers.perform.__code__: "job",
}
"""The functions, and the name of what has the agent's token."""

_DEPTH_MAX: Final = 200


def agent_id() -> str:
    """``kind/name`` of the agent whose code runs in this thread, empty where none does."""
    frame: FrameType | None = sys._getframe(1)
    for _ in range(_DEPTH_MAX):
        if frame is None:
            break
        name = _ENTRIES.get(frame.f_code)
        if name is not None:
            return "/".join(ids.from_agent_token(frame.f_locals[name].token))
        frame = frame.f_back
    context = over.current.get()
    return context.agent_id if context is not None else ""
