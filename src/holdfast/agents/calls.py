"""What an address needs of whoever carries its messages, and a call on its caller's side."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Literal, Protocol

import msgspec

from holdfast import limits
from holdfast.core.pools import Pool, Space
from holdfast.errors import HoldfastError
from holdfast.records.messages import Call

Sink = Callable[[int, int, bytes], None]
"""Takes (reference, outcome, payload) of a reply."""


class Options(msgspec.Struct, frozen=True):
    """How a message is sent; see `AgentRef.options`."""

    timeout_seconds: float = limits.ASK_TIMEOUT_SECONDS
    message_id: str = ""
    fresh: bool = False


class Outcome(msgspec.Struct, frozen=True):
    """What became of a message that was given an id. ``error`` is the name of the failure's class,
    ``text`` what it says.

    ``done``: its turn is committed. ``failed``: it was handled, failed, and changed nothing.
    ``waiting``: it is in the agent's hands or its inbox. ``not seen``: it has not come to the
    agent, or longer ago than ids are remembered.
    """

    status: Literal["done", "failed", "waiting", "not seen"]
    error: str = ""
    text: str = ""


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


class Turn(Protocol):
    """The turn in which a call is made, as far as its caller's side needs it. `Context` is one."""

    deadline: float
    path: tuple[str, ...]
    _over: bool
    _task: Any
    _asks: Any

    @property
    def is_live(self) -> bool: ...
    def next_call_id(self) -> str: ...
    def send(self, token: str, handler: str, arguments: bytes, message_id: str) -> str: ...


class Calls(Protocol):
    """Carries the messages of one process. `holdfast.calling.router.Router` does, and says what
    each raises."""

    @property
    def space(self) -> Space: ...
    async def locate(self, token: str) -> int: ...
    async def place(self, token: str, pool: Pool | str | None) -> None: ...
    async def ask(
        self, token: str, handler: str, arguments: bytes, options: Options, reads_only: bool
    ) -> bytes: ...
    def begin(
        self, shard: int, token: str, handler: str, arguments: bytes,
        options: Options, reads_only: bool, context: Turn | None = None,
    ) -> Open: ...  # fmt: skip
    def give_up(self, opened: Open, context: Turn | None) -> None: ...
    def error(self, opened: Open, payload: bytes) -> HoldfastError: ...
    async def send(
        self, token: str, handler: str, arguments: bytes, timeout_seconds: float, message_id: str
    ) -> None: ...
    def tell(self, token: str, handler: str, arguments: bytes) -> None: ...
