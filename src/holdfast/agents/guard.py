"""The one door into code of users: handlers, readers, and what makes, loads, encodes and decodes
their states and messages.

Such code may raise anything. A `CancelledError` or a `SystemExit` that passes an ``except
Exception`` ends what called it: an inbox's follower, the timers of all agents, the whole program.
An error whose ``__str__`` raises ends whoever tells of it. So every entry goes through here. What
the code raises comes out as one of our own errors, with a safe text that names the class, the file
and the line. One thing passes: an interruption of the whole process, which a signal raised in the
midst of the code.

Each entry runs in a context of its own (`contextvars`), an empty one. What a turn sets there,
`decimal` and the like included, reaches no other turn, and not the program that happened to run it.
"""

from __future__ import annotations

import asyncio
import dis
import signal
import types
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from holdfast import errors, limits
from holdfast.agents import places
from holdfast.errors import HandlerFailed, HoldfastError, NotDone

if TYPE_CHECKING:
    from holdfast.cluster.members.liveness import Liveness

T = TypeVar("T")

_RAISE: Final = dis.opmap["RAISE_VARARGS"]
INTERRUPTIONS: Final = (KeyboardInterrupt, SystemExit)
fresh: Final = Context
"""Makes the context of one entry."""


class Raised(NamedTuple):
    """What came out of user code, in the place of a value."""

    error: BaseException


def interrupts(error: BaseException) -> bool:
    """Whether a signal raised the error in the midst of the code, as Ctrl-C does: then the whole
    process is meant."""
    if not isinstance(error, INTERRUPTIONS):
        return False
    handlers = {_code(signal.getsignal(number)) for number in signal.valid_signals()} - {None}
    found = error.__traceback__
    last = found
    while found is not None:
        if found.tb_frame.f_code in handlers:
            return True
        found, last = found.tb_next, found
    # Python's own handler leaves no frame: the error stands where the code did anything but raise.
    return isinstance(error, KeyboardInterrupt) and last is not None and not _raises(last)


def _code(handler: Any) -> types.CodeType | None:
    code = getattr(getattr(handler, "func", handler), "__code__", None)
    return code if isinstance(code, types.CodeType) else None


def _raises(place: types.TracebackType) -> bool:
    return place.tb_lasti >= 0 and place.tb_frame.f_code.co_code[place.tb_lasti] == _RAISE


def call(failure: type[HoldfastError], what: str, function: Callable[..., T], *args: Any) -> T:
    """Call what may lead into user code. What it raises is one of our errors, else a ``failure``
    that begins with ``what``."""
    try:
        return fresh().run(function, *args)
    except HoldfastError:
        raise
    except BaseException as error:
        if interrupts(error):
            raise
        raise named(failure, what, error) from None


def begun(make: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> Coroutine[Any, Any, Any]:
    """The coroutine that ``make`` gives; where it raises instead, one that raises the same."""
    try:
        return make(*args)
    except BaseException as error:
        return _raises_it(error)


async def _raises_it(error: BaseException) -> None:
    raise error


def at_once(make: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> Any:
    """Run a coroutine that waits for nothing to its end; return its value, or `Raised`."""
    context = fresh()
    try:
        work = make(*args)
    except BaseException as error:
        return Raised(error)
    try:
        context.run(work.send, None)
    except StopIteration as end:
        return end.value
    except BaseException as error:
        return Raised(error)
    try:
        context.run(work.close)
    except BaseException as error:
        return Raised(error)
    return Raised(RuntimeError("it waited for something that it does not await in its own code"))


@types.coroutine
def until_done(work: Coroutine[Any, Any, Any], life: Liveness) -> Generator[Any, Any, Any]:
    """Await a coroutine; return its value, or `Raised`. What is thrown at the awaiting task is
    thrown into it.

    It is cancelled where it would go on after a wait in which this node ceased to be live: a node
    that was frozen finds timers and messages that are due before it finds out that it was replaced.
    """
    error: BaseException | None = None
    while True:
        try:
            waits_for = work.send(None) if error is None else work.throw(error)
        except StopIteration as end:
            return end.value
        except BaseException as found:
            if isinstance(error, GeneratorExit):  # see `exited`
                raise
            return Raised(found)
        error = None
        try:
            yield waits_for
        except BaseException as found:
            error = found
        if error is None and not life.live():
            life.look()
            error = asyncio.CancelledError()


def exited(error: GeneratorExit) -> Raised:
    """A `GeneratorExit` that came out of `until_done`: of what the code awaited; else the loop is
    gone, and it goes on."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise error from None
    return Raised(error)


# What it raised, for people -----------------------------------------------------------------------


def named(failure: type[HoldfastError], what: str, error: BaseException) -> HoldfastError:
    """An error of ours for what user code raised: with its class, text, file and line, and its
    traceback as a note."""
    place = places.of(error)
    title = errors.class_of(error)
    text = errors.plain(errors.text_of(error), limits.ERROR_TEXT_MAX // 2)  # the rest is for where
    about = f"{what}: {title}: {text}" if text else f"{what}: {title}"
    about = f"{about} ({place})" if place else about
    details = places.traceback_of(error)
    if issubclass(failure, HandlerFailed):
        return failure(about, title, details)
    made = failure(about)
    errors.tell_where(made, details)
    return made


def shown(what: str, error: BaseException) -> HoldfastError:
    """An error from inside a handler, as its caller sees it: one of ours as it is, a user's as
    `HandlerFailed`."""
    if isinstance(error, HoldfastError) and not isinstance(error, NotDone):
        return error
    return named(HandlerFailed, what, error)
