"""What code of users may raise, by name: for simulated agents whose turns end so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final


class _Mute(Exception):
    """Whoever asks what it says gets another error."""

    def __str__(self) -> str:
        raise SystemExit("no text")

    __repr__ = __str__


_ERRORS: Final[dict[str, Callable[[], BaseException]]] = {
    "value": lambda: ValueError("as told"),
    "cancelled": asyncio.CancelledError,
    "exit": lambda: SystemExit(3),
    "interrupt": KeyboardInterrupt,
    "closed": GeneratorExit,
    "stopped": lambda: StopIteration(5),
    "mute": _Mute,
    "group": lambda: BaseExceptionGroup("several", [KeyboardInterrupt(), _Mute()]),
    "halves": lambda: ValueError("half a pair: \udc80"),
    "large": lambda: ValueError("x" * 100_000),
}
HOWS: Final = tuple(_ERRORS)


def throw(how: str) -> None:
    """Raise it."""
    raise _ERRORS[how]()
