"""Which hosts a host heard, and how long ago: it says so to whoever asks, also while no majority
answers.

Hosts come and go, and anybody with the client password can beat under any name. So who was not
heard for long is forgotten, and there are never more than any cluster has: else one answer would
fit no message some day.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from holdfast import limits


class Heard:
    """See the module."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._at: dict[str, float] = {}
        """The one that was heard last comes last."""

    def note(self, host: str) -> None:
        """A host beat just now; one that is new where there is no room is not noted."""
        now = self._now()
        if self._at.pop(host, None) is None and len(self._at) >= limits.HOSTS_HEARD_MAX:
            self._forget(now)
            if len(self._at) >= limits.HOSTS_HEARD_MAX:
                return
        self._at[host] = now

    def _forget(self, now: float) -> None:
        for host, at in list(self._at.items()):
            if now - at <= limits.HOST_REMEMBERED_SECONDS:
                return
            del self._at[host]

    def ago(self) -> dict[str, float]:
        """How many seconds ago each host was heard."""
        now = self._now()
        self._forget(now)
        return {host: now - at for host, at in self._at.items()}
