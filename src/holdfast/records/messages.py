"""What travels between processes and what lies in an inbox: plain structs, one array each on the
wire.

A frame joins all that one process has for another at the end of a tick. Fields are only ever added
at the end, with a default, so that a process of the version before can read them.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from holdfast import ids

# What comes from other processes is checked as it is decoded: nothing behind has to expect a NaN
# for a deadline.
Number = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
Moment = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
Short = Annotated[str, msgspec.Meta(max_length=2048)]

ATTEMPT_BITS = 16
"""A reference is the number of an ask, unique in its process, and in its lowest bits the number of
the attempt."""

ERROR_PREFIX = b"\xc1"
"""In front of an answer that is an error: a byte that no msgpack value starts with."""

UNRECORDED = "unrecorded"
"""In an error's place for a class of users': the call left nothing in the record, so another
attempt may be done."""


class Call(msgspec.Struct, array_like=True, gc=False):
    """An ask or a tell. ``number`` and ``low`` count the caller's messages to this agent; 0 is a
    message without them."""

    token: Short
    handler: Short
    arguments: bytes
    reference: Number
    caller: Short = ""
    number: Number = 0
    low: Number = 0
    deadline: Moment = 0.0
    message_id: Short = ""
    keep_until: Moment = 0.0
    path: tuple[str, ...] = ()
    """The agents that wait for its answer, the first asker first."""
    fresh: bool = False
    interrupted: bool = False
    """It was in the hands of a process that died."""


class Probe(msgspec.Struct, array_like=True, gc=False):
    """Finds turns that wait for one another; see `circles`. It names a call by its receiver and its
    key.

    ``origin`` and ``origin_key``: of the call that it set out from; ``path``: the agents that it
    came through.
    """

    token: str
    key: str
    origin: str
    origin_key: str
    path: tuple[str, ...] = ()


class Frame(msgspec.Struct, array_like=True, gc=False):
    """Calls for one node. Replies go to the ``reply`` subject; no reply is wanted for a call whose
    reference is 0."""

    reply: str
    calls: list[Call]
    cancelled: list[Call] = []
    """Calls that their caller gave up, without their arguments."""
    probes: list[Probe] = []


OK = 0
ERROR = 1
NOT_OWNER = 2
BUSY = 3
BEGUN = 4
WAITS = 5
"""No answer: the payload says what the call waits for. A caller of an older version ignores it."""


class Reply(msgspec.Struct, array_like=True, gc=False):
    """The answer to a call: `OK` with the reply, `ERROR` with an error, or a reason to try
    again."""

    reference: int
    outcome: int
    payload: bytes = b""


class Replies(msgspec.Struct, array_like=True, gc=False):
    """Replies of one node, and where to send further calls for its shards."""

    incarnation: str
    replies: list[Reply]

    def __post_init__(self) -> None:
        if not ids.is_incarnation(self.incarnation):
            raise ValueError("further calls cannot be sent to it")


class InboxMessage(msgspec.Struct, array_like=True):
    """A durable message in an agent's inbox. A sender outside a turn numbers its messages per
    receiver."""

    handler: str
    arguments: bytes
    sender: str = ""
    number: int = 0
    message_id: str = ""
    sent_at: float = 0.0
    attempts: int = 0
    key: str = ""
    """Its key, where that is not made from its place in the inbox: it had another place before a
    restore."""


def inbox_key(sequence: int, message: InboxMessage) -> str:
    """What makes an inbox message the same message again, also when its turn runs again
    elsewhere."""
    return message.message_id or message.key or f"in:{sequence}"


class DeadRecord(msgspec.Struct, array_like=True):
    """A message that kept failing, with its error. ``done``: it was replayed or dropped."""

    message: InboxMessage
    error: tuple[str, str, str, str]
    attempts: int
    at: float
    done: bool = False


class Timer(msgspec.Struct, array_like=True):
    """A timer of an agent: due at a time (s since 1970), for one of its handlers."""

    name: str
    generation: int
    due: float
    handler: str
    arguments: bytes


class Outgoing(msgspec.Struct):
    """A message that a turn sends: it is written with the turn's own batch."""

    token: str
    message: InboxMessage
