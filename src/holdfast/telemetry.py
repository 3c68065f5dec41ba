"""What happens inside a process, for whoever measures it: metrics, traces, a dashboard.

Holdfast tells of its work at two seams: where a turn runs, and where an engine is asked. Each
report has a name of `EVENTS`, a duration and facts. While nobody listens, nothing is told, and the
only cost is a look at `listeners`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, NamedTuple, TypeVar

_logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

Listener = Callable[[str, float, Mapping[str, Any]], None]
"""Takes the name of an event, its duration in seconds, and its facts."""


class Event(NamedTuple):
    """One row of `EVENTS`. ``facts``: the names of the facts that come with it, all of them."""

    meaning: str
    facts: tuple[str, ...]


EVENTS: Final[Mapping[str, Event]] = {
    "turn": Event(
        "the code of a handler or a reader ran, from its first step to its last; whether a turn is "
        "durable is known later",
        ("agent", "handler", "outcome"),
    ),
    "engine": Event(
        "an engine was asked, from the question to the answer",
        ("operation", "key", "outcome"),
    ),
}
"""Everything that is told. `docs/telemetry.md` prints this table, and a test holds the two
together.

``agent`` is ``Kind/name``. ``operation`` is ``append``, ``read``, ``read_sequence``, ``purge``,
``put`` or ``get``; ``key`` is the cell, or a blob's key. ``outcome`` is ``ok``, or the name of the
error's class.
"""

COUNTERS: Final[Mapping[str, str]] = {
    "shards": "shards that this node serves",
    "agents": "agents of these shards that have a record",
    "resident": "agents in memory",
    "timers": "timers that wait",
    "stalls": "times that the event loop stood still",
    "batches": "batches written",
    "records": "records in these batches",
    "turns": "turns committed",
    "open_calls": "calls that wait for an answer",
    "retries": "attempts after the first",
    "frames": "frames sent to other nodes",
    "takeovers": "shards claimed from owners that did not let go of them",
    "registered": "agents registered in the cluster",
    "malformed": "messages dropped, as they made no sense",
}
"""The numbers of `Node.statistics`: counts since the start, and how many there are now."""

listeners: Final[list[Listener]] = []
"""Those who listen now. Change it with `listen` only."""


def listen(listener: Listener) -> Callable[[], None]:
    """Have every event of this process told to a listener; return what ends that.

    The listener is called on the event loop, within the work that it hears of: it returns at once,
    and does no I/O. If it raises, the error is logged, and the work goes on.
    """
    listeners.append(listener)

    def end() -> None:
        if listener in listeners:
            listeners.remove(listener)

    return end


def tell(name: str, seconds: float, facts: Mapping[str, Any]) -> None:
    """Tell all listeners of an event."""
    for listener in tuple(listeners):
        try:
            listener(name, seconds, facts)
        except Exception:
            _logger.exception("a listener of telemetry failed at an event %r", name)


async def engine(operation: str, key: str, work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Await what an engine is asked, and tell of it."""
    began, outcome = time.perf_counter(), "ok"
    try:
        return await work
    except BaseException as error:
        outcome = type(error).__name__
        raise
    finally:
        facts = {"operation": operation, "key": key, "outcome": outcome}
        tell("engine", time.perf_counter() - began, facts)
