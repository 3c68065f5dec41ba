"""Every error that Holdfast raises, in three families that a caller must tell apart.

    HoldfastError
    ├── NotDone                  nothing happened: safe to try again
    │   ├── NoQuorum             a majority of the cohort cannot be reached
    │   │   └── StorageFailed    … as the one disk of an embedded log takes no writes
    │   ├── NoResponders         nobody serves that subject at this moment
    │   ├── Overloaded           a bound was reached (a mailbox, a table of message ids)
    │   ├── DeadlineExceeded     the deadline passed before the message was started
    │   ├── Conflict             an expected sequence did not hold
    │   │   └── Fenced           … and it was a fence: somebody else owns the shard
    │   └── Closed               the node or the engine was closed
    ├── Unknown                  it may have happened, may happen later, or never
    │   └── OutcomeUnknown       … said of a message
    └── Never                    the same again gives the same answer: do not retry
        ├── HandlerFailed        the handler raised; the state is as it was before
        ├── BadMessage           the arguments or the reply do not fit the handler's types
        ├── BadState             the state does not fit its type, or could not be upgraded
        ├── TooLarge             a message, reply, state or batch is over its bound
        ├── UnknownKind          no node serves that kind, or the kind has no such handler
        ├── AlreadyExists        the name is taken
        ├── NotFound             there is no such agent, record, dead letter or cluster
        ├── WouldDeadlock        the agent asked is waiting for this very call
        ├── TurnOver             code that outlived its turn would write with it
        ├── ReplayMismatch       the message id was used before, with another message
        ├── DataLoss             a committed record cannot be read from any replica
        ├── InvalidName          a kind, name, capability or cell that cannot be used
        └── ConfigError          a setting is missing, unknown or dangerous

A few of them travel between processes; `to_wire` and `from_wire` keep the class and the text.
"""

from __future__ import annotations

from typing import Any, Final

from holdfast import limits


class HoldfastError(Exception):
    """The root of all errors that Holdfast raises."""


class NotDone(HoldfastError):
    """Nothing happened. It is safe to try again."""


class NoQuorum(NotDone):
    """A majority of the cohort cannot be reached, so nothing was written."""


class StorageFailed(NoQuorum):
    """The embedded log takes no writes: its disk is full, fails or cannot be written, or its files
    are gone. Also a host whose server's files are gone.

    The text names the file, and says what to do.
    """


class NoResponders(NotDone):
    """Nobody serves that subject at this moment."""


class Overloaded(NotDone):
    """A bound was reached: try again later, and more slowly."""


class DeadlineExceeded(NotDone):
    """The deadline passed before the message was started."""


class Conflict(NotDone):
    """A record's expectation did not hold; no record of the batch was written."""


class Fenced(Conflict):
    """A batch with a fence was refused: somebody else may own one of its shards.

    The log does not say which; read the epochs to find out.
    """


class Closed(NotDone):
    """The node, the engine or the subscription was closed."""


class Unknown(HoldfastError):
    """It may have happened, may still happen later, or never."""


class OutcomeUnknown(Unknown):
    """The message may have been applied. Nothing was applied twice."""


class Never(HoldfastError):
    """The same again gives the same answer: do not retry."""


class HandlerFailed(Never):
    """The handler raised. The agent's state is as it was before the message.

    ``kind_of_error`` is the name of the class raised in the handler, ``details`` its traceback.
    """

    def __init__(self, message: str, kind_of_error: str = "", details: str = "") -> None:
        super().__init__(message)
        self.kind_of_error = kind_of_error
        self.details = details
        if details:
            tell_where(self, details)


class BadMessage(Never):
    """The arguments or the reply do not fit the handler's types; the text names the field."""


class BadState(Never):
    """The state does not fit its type, or could not be upgraded; the text names the field."""


class TooLarge(Never):
    """A message, reply, state or batch is over its bound."""


class UnknownKind(Never):
    """No node serves that kind of agent, or the kind has no such handler."""


class AlreadyExists(Never):
    """The name is taken."""


class NotFound(Never):
    """There is no such agent, record, blob or dead letter; or no cluster was founded here yet."""


class WouldDeadlock(Never):
    """The agent asked is itself waiting, directly or not, for this call to end."""


class TurnOver(Never, RuntimeError):
    """The code runs on after the end of its turn, and would write with it: nothing was sent, set or
    changed."""


class ReplayMismatch(Never):
    """The message id was used before, with another message."""


class DataLoss(Never):
    """A committed record cannot be read from any replica, or a shard's digest does not agree."""


class InvalidName(Never, ValueError):
    """A kind, name, capability, cell or subject that cannot be used."""


class ConfigError(Never, ValueError):
    """A setting is missing, unknown or dangerous; the text says what to do."""


def _tree(root: type[HoldfastError]) -> dict[str, type[HoldfastError]]:
    found = {root.__name__: root}
    for child in root.__subclasses__():
        found.update(_tree(child))
    return found


_BY_NAME = _tree(HoldfastError)


# What may be said of an error, whoever made it ----------------------------------------------------

_WHERE: Final = "It was raised here:\n"


def plain(text: str, most: int = limits.ERROR_DETAILS_MAX) -> str:
    """Text that can be sent: no longer than ``most`` characters, and without halves of surrogate
    pairs."""
    if len(text) > most:
        text = f"{str.__getitem__(text, slice(0, most - 1))}…"
    return str.encode(text, "utf-8", "backslashreplace").decode()


def text_of(error: BaseException) -> str:
    """What an error says, whatever its ``__str__`` does; at most `limits.ERROR_TEXT_MAX`
    characters."""
    try:
        return plain(str(error), limits.ERROR_TEXT_MAX)
    except BaseException as found:
        return f"(its text cannot be had: __str__ raised {class_of(found)})"


def class_of(error: BaseException) -> str:
    """The name of an error's class."""
    name: Any = type.__dict__["__name__"].__get__(type(error))
    return plain(name, 200)


def tell_where(error: HoldfastError, details: str) -> None:
    """Have the error show, under its own traceback, that of the code that raised it in another
    place."""
    error.add_note(f"{_WHERE}{details}")


def where_of(error: BaseException) -> str:
    """The traceback that `tell_where` gave it, empty where there is none."""
    notes = getattr(error, "__notes__", None) or ()
    found = [note for note in notes if isinstance(note, str) and note.startswith(_WHERE)]
    return plain(found[0].removeprefix(_WHERE)) if found else ""


def to_wire(error: BaseException) -> tuple[str, str, str, str]:
    """``(class name, text, kind_of_error, details)``: what of an error travels to another
    process."""
    name = next(
        (base.__name__ for base in type(error).__mro__ if base is _BY_NAME.get(base.__name__)),
        "HoldfastError",
    )
    if isinstance(error, HandlerFailed):
        return name, text_of(error), plain(error.kind_of_error), plain(error.details)
    return name, text_of(error), "", where_of(error)


def from_wire(name: str, text: str, kind_of_error: str = "", details: str = "") -> HoldfastError:
    """The error that `to_wire` was given, or a plain `HoldfastError` where the class is not known
    here."""
    if name == HandlerFailed.__name__:
        return HandlerFailed(text, kind_of_error, details)
    error = _BY_NAME.get(name, HoldfastError)(text)
    if details:
        tell_where(error, details)
    return error
