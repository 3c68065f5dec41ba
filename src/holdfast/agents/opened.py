"""A call on its caller's side, from the first attempt until its answer."""

from __future__ import annotations

import asyncio

import msgspec

from holdfast.records.messages import Call


class Open(msgspec.Struct, eq=False):
    """A call without its answer yet."""

    number: int
    call: Call
    shard: int
    deadline: float
    future: asyncio.Future[tuple[int, bytes]]
    attempts: int = 0
    unanswered: int = 0
    """A bit for each attempt that may have done something, as far as is known."""
    refusals: int = 0
    refused: str = "no attempt was made"
    sent_at: float = 0.0
    target: str = ""
    hint: str = ""
    """What its owner said that it waits for."""
