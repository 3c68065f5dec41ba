"""Asking every process of the cluster to hold its writes for a moment, and doing so when asked.

The bus may lose a request, and a process may not answer: who asks must not rely on it. See
`holdfast.admin.backup.cut`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Annotated, Final

import msgspec

from holdfast import codec, ids, limits, loops
from holdfast.cluster.door import Door, Text
from holdfast.engines.base import Engine, Message, Subscription
from holdfast.engines.gate import Gate

_SUBJECT: Final = "hf.hold"


class _Request(msgspec.Struct, array_like=True):
    """Times in seconds. ``hold``: 0 releases, -1 changes nothing. ``keep``: for how long no blob
    may be deleted. ``cell``: the one to hold; empty for all."""

    hold: Annotated[float, msgspec.Meta(ge=-1.0, le=1e6)]
    keep: Annotated[float, msgspec.Meta(ge=0.0, le=1e6)]
    cell: Text = ""


_decode = msgspec.msgpack.Decoder(_Request).decode


class WritePause:
    """One process's part: it closes its gate when asked, and says when nothing is under way any
    more."""

    def __init__(self, engine: Engine, gate: Gate, name: Callable[[], str]) -> None:
        self._engine = engine
        self._gate = gate
        self._name = name
        self.door = Door("a request to hold writes", _decode)
        self._subscription: Subscription | None = None
        self._answers: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin to listen."""
        self._subscription = await self._engine.bus.subscribe(_SUBJECT, self._asked)

    def _asked(self, message: Message) -> None:
        request = self.door.read(message)
        if request is None:
            return
        self._gate.keep_blobs(min(request.keep, limits.KEEP_BLOBS_SECONDS))
        if request.hold == 0:
            self._gate.release()
        elif request.hold > 0:
            self._gate.hold(min(request.hold, limits.HOLD_SECONDS), request.cell)
        if message.reply:
            task = loops.start(self._answer(message.reply), "the answer to a hold", may_return=True)
            self._answers.add(task)
            task.add_done_callback(self._answers.discard)

    async def _answer(self, reply: str) -> None:
        await self._gate.quiet()
        self._engine.bus.publish(reply, self._name().encode())

    async def close(self) -> None:
        """Stop listening, and hold nothing any more."""
        self._gate.release()
        if self._subscription is not None:
            await self._subscription.close()
        await loops.stop(*self._answers)


async def hold(engine: Engine, names: Iterable[str], wait_seconds: float) -> set[str]:
    """Ask all to hold their writes for `limits.HOLD_SECONDS`; return those of ``names`` that did
    not say that they do."""
    missing = set(names)
    complete = asyncio.Event()
    reply = ids.new_id("hf.h")

    def answered(message: Message) -> None:
        missing.discard(message.payload.decode(errors="replace"))
        if not missing:
            complete.set()

    subscription = await engine.bus.subscribe(reply, answered)
    try:
        _publish(engine, limits.HOLD_SECONDS, reply)
        async with asyncio.timeout(wait_seconds):
            await complete.wait()
    except TimeoutError:
        pass
    finally:
        await subscription.close()
    return missing


def begin(engine: Engine, cell: str) -> None:
    """Ask all to hold their writes to a cell for `limits.HOLD_SECONDS`, without waiting to hear
    that they do."""
    _publish(engine, limits.HOLD_SECONDS, cell=cell)


def release(engine: Engine) -> None:
    """Tell all to let their writes pass again."""
    _publish(engine, 0.0)


def keep_blobs(engine: Engine) -> None:
    """Ask all to delete no blob for `limits.KEEP_BLOBS_SECONDS`."""
    _publish(engine, -1.0)


def _publish(engine: Engine, seconds: float, reply: str = "", cell: str = "") -> None:
    engine.bus.publish(
        _SUBJECT, codec.encode_raw(_Request(seconds, limits.KEEP_BLOBS_SECONDS, cell)), reply
    )
