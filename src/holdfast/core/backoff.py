"""How long to wait before trying again: exponential, with full jitter (Brooker, "Exponential
Backoff And Jitter")."""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdfast import limits

if TYPE_CHECKING:
    from random import Random


def delay_seconds(attempt: int, random: Random, most: float = limits.BACKOFF_SECONDS_MAX) -> float:
    """Seconds to wait before attempt 1, 2, …: at least the shortest backoff, at most ``most``."""
    ceiling = min(most, limits.BACKOFF_SECONDS_MIN * 2 ** min(attempt, 16))
    return random.uniform(limits.BACKOFF_SECONDS_MIN, max(ceiling, limits.BACKOFF_SECONDS_MIN))
