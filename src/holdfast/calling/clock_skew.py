"""When two clocks differ, say so: a deadline travels as a time of day, so a caller whose clock is
behind asks too late.

Every call of such a caller is refused at once, with nothing but "the deadline passed". The receiver
cannot know why. The caller can: by its own clock there was time left when the answer came.
"""

from __future__ import annotations

from typing import Final

from holdfast.errors import DeadlineExceeded, HoldfastError

_SURE_SECONDS: Final = 1.0


def explained(error: HoldfastError, seconds_left: float, alone: bool) -> HoldfastError:
    """The error as the caller gets it. ``seconds_left``: until its deadline, by its own clock.
    ``alone``: whether no other call with an earlier deadline can be meant."""
    if isinstance(error, DeadlineExceeded) and alone and seconds_left > _SURE_SECONDS:
        return DeadlineExceeded(
            f"{error}, but by the caller's clock {seconds_left:.1f} s are left: the receiver's "
            "clock is ahead of it by at least that. Synchronise the clocks of both machines "
            "(NTP); `holdfast doctor` compares those of the hosts"
        )
    return error
