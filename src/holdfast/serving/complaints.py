"""What failed in users' code, for the log of the node where it failed: the caller of an ask sees
it, nobody else does.

A message that was sent has nobody who waits for it, and a timer has no sender: without these lines
the first that one hears of a mistake is that something did not happen. A handler that always fails
must not fill the log, so what is the same (kind, handler, class and line) is said once a second,
with the number of the others.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from holdfast import errors, ids, limits

if TYPE_CHECKING:
    from holdfast.errors import HoldfastError
    from holdfast.serving.delivery import Delivery

_logger = logging.getLogger(__name__)


class Complaints:
    """See the module. ``time`` reads a clock that only goes forward, in seconds."""

    def __init__(self, time: Callable[[], float]) -> None:
        self._time = time
        self._again_at: dict[tuple[str, str, str], float] = {}
        self._untold: dict[tuple[str, str, str], int] = {}

    def failed(
        self, token: str, message: Delivery, error: HoldfastError, buried: bool = False
    ) -> None:
        """Say that a message failed; ``buried``: for good, as a dead letter.

        Handlers of the log are the program's: where one raises, that is printed, and the node goes
        on.
        """
        try:
            self._say(token, message, error, buried)
        except Exception:
            with suppress(Exception):
                traceback.print_exc()

    def _say(self, token: str, message: Delivery, error: HoldfastError, buried: bool) -> None:
        kind, name = ids.from_agent_token(token)
        text, where = errors.text_of(error), errors.where_of(error)
        key = (kind, message.handler, f"{buried}{where[-limits.ERROR_TEXT_MAX :] or text}")
        now = self._time()
        if now < self._again_at.get(key, now):
            self._untold[key] = self._untold.get(key, 0) + 1
            return
        if len(self._again_at) >= limits.COMPLAINTS_MAX:
            self._again_at.clear()
            self._untold.clear()
        self._again_at[key] = now + limits.COMPLAINT_SECONDS
        others = self._untold.pop(key, 0)
        way = (
            "asked"
            if message.call is not None
            else "sent"
            if message.timer is None
            else "set as a timer"
        )
        if buried:
            what = f"is a dead letter now, after {max(message.attempts, 1)} attempts"
        elif message.call is not None:
            what = "failed"
        else:
            what = f"failed, attempt {message.attempts} of {limits.ATTEMPTS_MAX}"
        _logger.warning(
            "%s/%s: %s, %s, %s: %s%s%s",
            kind,
            name,
            message.handler[:200],
            way,
            what,
            text,
            f" (and {others} like it since the last line)" if others else "",
            f"\n{where}" if where else "",
        )
