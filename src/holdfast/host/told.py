"""What a host writes into the cluster's own events, so that `holdfast events` tells it later and
from anywhere.

Nodes see that a host is silent; only the host knows that its server was frozen, or that a copy was
thrown away. What it cannot write, because no majority takes it, waits for a while; a host that ends
takes it along.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from holdfast.clock import SYSTEM_CLOCK
from holdfast.cluster.facts.events import Events
from holdfast.cluster.facts.manifest import generations, registry_cell
from holdfast.engines.nats.engine import NatsEngine
from holdfast.errors import HoldfastError

EVENTS: Final = frozenset(
    {
        "server-ended",
        "server-failed",
        "server-stores-nothing",
        "server-frozen",
        "server-back",
        "store-gone",
        "store-unchanged",
        "copy-discarded",
        "copy-whole",
        "copy-not-whole",
    }
)
_WAITING_MAX: Final = 100
_AGAIN_SECONDS: Final = 1.0
_TEXT_CHARACTERS_MAX: Final = 500

Report = Callable[[str, dict[str, Any]], None]


class Told:
    """See the module; for one host. Call it in place of ``report``."""

    def __init__(self, host: str, report: Report) -> None:
        self._host = host
        self._report = report
        self._waiting: deque[tuple[str, Mapping[str, Any]]] = deque(maxlen=_WAITING_MAX)
        self._wake = asyncio.Event()

    def __call__(self, event: str, facts: dict[str, Any]) -> None:
        """Report an event, and have it written where it is one for all."""
        self._report(event, facts)
        if event in EVENTS:
            self._waiting.append((event, facts))
            self._wake.set()

    async def run(self, engine: NatsEngine) -> None:
        """Write what was told, for ever."""
        events, cell = None, ""
        try:
            while True:
                await self._wake.wait()
                try:
                    newest = max(generations(await engine.cells()), default=0)
                except HoldfastError:
                    newest = 0
                if not newest:
                    await asyncio.sleep(_AGAIN_SECONDS)  # no majority, or nothing was founded yet
                    continue
                if events is None or cell != registry_cell(newest):
                    if events is not None:
                        await events.close()
                    cell = registry_cell(newest)
                    events = Events(engine, cell, SYSTEM_CLOCK, self._host)
                    await events.start(lambda: False)
                self._wake.clear()
                while self._waiting:
                    event, facts = self._waiting.popleft()
                    events.say(event, self._host, "", **_plain(facts))
        finally:
            if events is not None:
                with suppress(HoldfastError):
                    await events.close()


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    found = {
        key: value for key, value in facts.items() if isinstance(value, (str, int, float, bool))
    }
    return {
        key: value[:_TEXT_CHARACTERS_MAX] if isinstance(value, str) else value
        for key, value in found.items()
    }
