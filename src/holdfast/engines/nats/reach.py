"""A connection to whichever of several servers answers first.

A connection tries its servers one after the other, and gives each a second: with two frozen hosts
at the front of the list the third one is tried when an operator has long given up. So, for
commands, each server is tried by a connection of its own, a little after the one before; the first
that is open is kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from holdfast.engines.nats.engine import NatsEngine
from holdfast.errors import HoldfastError, NoQuorum

_STAGGER_SECONDS: Final = 0.2


async def reach(urls: Sequence[str], make: Callable[[list[str]], NatsEngine]) -> NatsEngine:
    """An engine that is open. ``make``: makes one for some servers, the nearest first.

    Raises `NoQuorum` where none answers, `ConfigError` where one refuses, at once.
    """
    opening = [
        asyncio.create_task(_open(make([*urls[n:], *urls[:n]]), n * _STAGGER_SECONDS))
        for n in range(len(urls))
    ]
    first: NatsEngine | None = None
    trouble: list[HoldfastError] = []
    try:
        for one in asyncio.as_completed(opening):
            try:
                first = await one
                return first
            except NoQuorum as error:
                trouble.append(error)
        raise trouble[0]
    finally:
        for task in opening:
            task.cancel()
        for late in await asyncio.gather(*opening, return_exceptions=True):
            if isinstance(late, NatsEngine) and late is not first:
                await late.close()


async def _open(engine: NatsEngine, after_seconds: float) -> NatsEngine:
    await asyncio.sleep(after_seconds)
    await engine.open()
    return engine
