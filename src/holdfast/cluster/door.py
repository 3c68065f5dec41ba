"""What comes over the bus from others, checked where it enters: one malformed message must not end
or cripple a node.

A type says everything about a field: its range, its length, its form. What does not fit it is
dropped, counted, and said once for each source. Nothing behind the door has to expect it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Annotated, Final, Generic, TypeVar

import msgspec

from holdfast import limits
from holdfast.engines import checks
from holdfast.engines.base import Message
from holdfast.errors import InvalidName

T = TypeVar("T")

_SOURCES_MAX: Final = 64
"""Sources that are told of; what comes from further ones is only counted."""

_logger = logging.getLogger(__name__)

Text = Annotated[str, msgspec.Meta(max_length=1024)]
Long = Annotated[str, msgspec.Meta(max_length=1 << 16)]
"""Errors, reasons and paths."""

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
"""Of a host or a node, for people."""

Incarnation = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,100}(~[1-9][0-9]{0,8})?\Z")]
"""One life of a process. It is a token of subjects, and what is behind the ``~`` is counted
with."""

Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
Small = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
Moment = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
"""Seconds since 1970. It is not a NaN."""

Span = Annotated[float, msgspec.Meta(ge=-1e12, le=1e12)]
"""A time or a number of seconds that may lie before the zero. It is not a NaN."""

Ago = Annotated[float, msgspec.Meta(ge=0, le=1e8)]
"""Seconds that passed while a process ran."""

Version = Annotated[str, msgspec.Meta(pattern=r"^[!-~]{0,100}\Z")]
Shards = Annotated[
    list[Annotated[int, msgspec.Meta(ge=0, lt=limits.POOL_SHARDS_MAX * 1024)]],
    msgspec.Meta(max_length=1 << 18),
]
Names = Annotated[list[Name], msgspec.Meta(max_length=4096)]
Incarnations = Annotated[list[Incarnation], msgspec.Meta(max_length=4096)]


class Door(Generic[T]):
    """One kind of message. ``what``: its name, for people; ``decode`` raises for what does not fit;
    ``answers``: whether something is sent to the message's reply subject."""

    def __init__(self, what: str, decode: Callable[[bytes], T], answers: bool = True) -> None:
        self.dropped = 0
        self._what = what
        self._decode = decode
        self._answers = answers
        self._said: set[str] = set()

    def read(self, message: Message) -> T | None:
        """What a message holds, None if it does not fit."""
        try:
            if self._answers and message.reply:
                checks.check_subject(message.reply)
            return self._decode(message.payload)
        except (
            msgspec.MsgspecError,
            UnicodeDecodeError,
            RecursionError,
            ValueError,
            InvalidName,
        ) as error:
            self.drop(message.payload, error)
            return None

    def drop(self, payload: bytes, error: Exception) -> None:
        """Count a message that does not fit, and say it if its source was not told of."""
        self.dropped += 1
        source = _source(payload)
        if source not in self._said and len(self._said) < _SOURCES_MAX:
            self._said.add(source)
            _logger.warning(
                "%s from %s is dropped, as are further ones: %s",
                self._what,
                source,
                str(error)[:200],
            )


def _source(payload: bytes) -> str:
    """Who sent it, as far as it says so: most messages begin with a name."""
    try:
        return repr(_first(payload[:65536]))[:60]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, StopIteration):
        return "somebody"


def _first(payload: bytes) -> str:
    fields = msgspec.msgpack.decode(payload, type=list[msgspec.Raw] | dict[str, msgspec.Raw])
    return msgspec.msgpack.decode(
        next(iter(fields.values() if isinstance(fields, dict) else fields)), type=str
    )
