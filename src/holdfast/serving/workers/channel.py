"""What a node and a worker process say to each other: frames on a socket of their own. Nothing is
pickled.

A frame is four bytes of its length and a msgpack value of a declared type. The standard output of a
worker is not part of it: whatever a job prints, or a program that it starts, is text.
"""

from __future__ import annotations

from typing import Final

import msgspec

from holdfast.records.messages import Outgoing, Timer

LENGTH_BYTES: Final = 4


class Told(msgspec.Struct, array_like=True):
    """What a worker is told at its start. ``path``: where its node imports from; ``level``: from
    which on it logs."""

    parent: int
    path: list[str]
    level: int


class Job(msgspec.Struct, array_like=True):
    """A turn, or what a reader does, on its way to where it runs. Its class is found again by its
    module, file and name."""

    module: str
    file: str
    qualname: str
    token: str
    handler: str
    arguments: bytes
    state: bytes
    message_key: str
    deadline: float
    keep_until: float
    path: tuple[str, ...]
    reads_only: bool
    epoch: int
    timers: dict[str, Timer]
    generation: int


class Done(msgspec.Struct, array_like=True, tag=True):
    """What came of it; of a reader the reply alone. ``generation``: the newest of the agent's
    timers."""

    reply: bytes
    state: bytes = b""
    outgoing: list[Outgoing] = []
    timers: dict[str, Timer | None] = {}
    generation: int = 0


class Failed(msgspec.Struct, array_like=True, tag=True):
    """The error that it raised, as it travels. ``cause``: its class and text alone, the same for
    the same error; empty for one of ours."""

    error: tuple[str, str, str, str]
    cause: str = ""


class Begun(msgspec.Struct, array_like=True, tag=True):
    """The worker has found the job's class, and runs its code from now on."""


class Answer(msgspec.Struct, array_like=True, tag=True):
    """What came of a job. ``ends``: why the process does no further one, empty where it goes on."""

    result: Done | Failed
    ends: str = ""


def framed(data: bytes) -> bytes:
    """A frame."""
    return len(data).to_bytes(LENGTH_BYTES, "big") + data
