"""How long a command may take, and whether it waits for a cluster: the same two options on every
command that has a place.

A command has one deadline, for connecting, joining, waiting and its work together: three phases
with a bound each would add up. So the options are no matter of the single commands: they are added
to all that take ``--at``, and `common` holds to them. A command of its own length (a backup, a
restart host by host) has no deadline unless one is given.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable
from typing import Annotated, Any, Final, TypeVar, get_type_hints

import msgspec
import typer

F = TypeVar("F", bound=Callable[..., Any])

COMMAND_SECONDS: Final = 30.0
"""What a command may take where nothing else is said."""

CONNECT_SECONDS: Final = 2.0
"""How long a command looks for a server that takes a connection."""

_PER_STEP: Final = frozenset({"restart", "upgrade"})
"""Commands whose own ``--timeout`` is that of each step."""

_OWN_LENGTH: Final = frozenset(
    {"run", "create", "restore", "scrub", "set", "add", "replace", "remove", "bench", "events"}
)
"""Commands that last as long as they last."""


class Bounds(msgspec.Struct):
    """What this command was told. ``timeout`` is None for a command without a deadline, such as
    `up`."""

    timeout: float | None = None
    wait: bool = False
    started: float = 0.0
    begun: bool = False
    """Whether the cluster was joined, and the work itself began."""
    reads: bool = False
    """Whether that work changes nothing."""

    def left(self, at_most: float | None = None) -> float | None:
        """How many seconds are left, a little more than none; None without a deadline."""
        ends = (
            []
            if self.timeout is None
            else [max(self.started + self.timeout - time.monotonic(), 0.001)]
        )
        return min([*ends, *([] if at_most is None else [at_most])], default=None)


bounds = Bounds()
"""Of the command that this process is."""


def _begin(timeout: float | None, wait: bool) -> None:
    bounds.timeout, bounds.wait, bounds.started = timeout, wait, time.monotonic()


class Commands(typer.Typer):
    """A group of commands, each of which that takes ``--at`` has ``--timeout`` and ``--wait``; a
    ``--timeout`` of its own stays, and is the deadline as well."""

    def command(self, name: str | None = None, **more: Any) -> Callable[[F], F]:
        """As typer's."""
        register = super().command(name, **more)

        def take(function: F) -> F:
            taken = inspect.signature(function).parameters
            register(_bounded(function, name or function.__name__) if "at" in taken else function)
            return function

        return take


def _bounded(function: Callable[..., None], name: str) -> Callable[..., None]:
    signature = inspect.signature(function)
    has_timeout = "timeout" in signature.parameters

    @functools.wraps(function)
    def run(**given: Any) -> None:
        wait = given.pop("wait")
        timeout = given["timeout"] if has_timeout else given.pop("timeout", None)
        _begin(None if name in _PER_STEP else timeout, wait)
        function(**given)

    own_length = name in _OWN_LENGTH
    serves = name == "run"
    default = None if own_length else COMMAND_SECONDS
    text = "Give up after this long" + (" (default: never)." if own_length else ".")
    timeout = Annotated[
        float | None, typer.Option("--timeout", metavar="SECONDS", min=0.001, help=text)
    ]
    waiting = Annotated[
        bool, typer.Option("--wait", help="Wait for what is not founded, or not up, yet.")
    ]
    more = {} if has_timeout or serves else {"timeout": (timeout, default)}
    parameters = [
        inspect.Parameter(one, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=kind)
        for one, (kind, value) in {**more, "wait": (waiting, False)}.items()
    ]
    hints = get_type_hints(function, include_extras=True)
    known = [
        one.replace(annotation=hints[one.name], kind=inspect.Parameter.KEYWORD_ONLY)
        for one in signature.parameters.values()
    ]
    run.__signature__ = signature.replace(parameters=[*known, *parameters])  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in (*known, *parameters)} | {
        "return": None
    }
    del run.__wrapped__  # what is there to be seen is the new signature
    return run
