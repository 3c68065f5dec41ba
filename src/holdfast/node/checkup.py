"""What a node says of itself when an operator asks: `holdfast doctor` asks all nodes at once.

Beats carry what all nodes need all the time. This is what is looked at rarely: whether the node is
live, which shards it serves, which recoveries fail, and why.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any, Final

import msgspec

from holdfast import codec
from holdfast.cluster.door import Door, Incarnation, Long, Name, Names, Shards, Text, Version
from holdfast.cluster.members.beats import BEAT_SUBJECT
from holdfast.engines.base import Message
from holdfast.engines.local.engine import LocalEngine
from holdfast.engines.local.socket_engine import SocketEngine
from holdfast.errors import NoResponders, Unknown
from holdfast.node.assembly import Assembly
from holdfast.version import VERSION

SUBJECT: Final = "hf.d"
_WHO: Final = "hf.w"
_WHO_SECONDS: Final = 2.0


Reasons = Annotated[dict[Text, Long], msgspec.Meta(max_length=4096)]


class NodeState(msgspec.Struct):
    """A node as it describes itself. ``live``: whether it can show that a majority of the cells
    takes its writes."""

    incarnation: Incarnation
    name: Name
    host: Name
    version: Version
    kinds: Names
    live: bool
    shards: Shards
    recovery_failures: Reasons
    """Cells whose recovery fails, and why."""
    degraded: Long = ""
    """How its loop stood still a short while ago, and where."""
    lost_cells: Reasons = {}
    """Cells that it serves no more, because their logs lost acknowledged writes; and how that
    shows."""


_decode_state = msgspec.msgpack.Decoder(NodeState).decode


def state_door() -> Door[NodeState]:
    """For what nodes answer."""
    return Door("a node's answer", _decode_state, answers=False)


async def answer(parts: Assembly) -> None:
    """Answer whoever asks, until the node's engine is closed. Raises `Closed`."""
    door = Door("a question to all nodes", bytes)

    def take(message: Message) -> None:
        if door.read(message) is not None and message.reply:
            parts.engine.bus.publish(message.reply, codec.encode_raw(state(parts)))

    await parts.engine.bus.subscribe(SUBJECT, take)
    if parts.life.embedded:
        await _meet(parts)


async def _meet(parts: Assembly) -> None:
    """On an embedded log nobody beats, as there is one node. A visitor asks that one who it is."""
    if isinstance(parts.engine, SocketEngine):
        with suppress(NoResponders, Unknown):
            beat = await parts.engine.bus.request(_WHO, b"", _WHO_SECONDS)
            parts.membership._on_beat(Message(BEAT_SUBJECT, "", beat))
        return

    def tell(message: Message) -> None:
        if message.reply:
            parts.engine.bus.publish(message.reply, codec.encode_raw(parts.beat()))

    await parts.engine.bus.subscribe(_WHO, tell)
    if isinstance(parts.engine, LocalEngine) and parts.runtime.kinds:
        await parts.engine.let_in()  # one that serves nothing has it for a moment only


def malformed(parts: Assembly) -> int:
    """How many messages of others this node dropped since its start, as they did not fit."""
    doors: list[Door[Any]] = [
        parts.membership.beats,
        parts.membership.host_beats,
        parts.write_pause.door,
        parts.router._frames.door,
    ]
    return sum(door.dropped for door in doors) + parts.runtime.intake.door.dropped


def state(parts: Assembly) -> NodeState:
    """What a node says of itself at this moment."""
    ownership = parts.ownership
    return NodeState(
        parts.life.incarnation,
        parts.identity.name,
        parts.identity.host,
        VERSION,
        sorted(parts.runtime.kinds),
        parts.life.live(),
        sorted(parts.runtime.shards),
        dict(ownership.failures),
        parts.stalls.text(),
        dict(ownership.lost_cells),
    )
