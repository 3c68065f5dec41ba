"""What a node says of itself when an operator asks: `holdfast doctor` asks all nodes at once.

Beats carry what all nodes need all the time. This is what is looked at rarely: whether the node is
live, which shards it serves, which recoveries fail, and why.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec

from holdfast import codec
from holdfast.cluster.door import Door, Incarnation, Long, Name, Names, Shards, Text, Version
from holdfast.cluster.members.beats import BEAT_SUBJECT
from holdfast.engines.base import Message
from holdfast.engines.local.engine import LocalEngine
from holdfast.engines.local.socket_engine import SocketEngine
from holdfast.errors import NoResponders, Unknown
from holdfast.version import VERSION

if TYPE_CHECKING:
    from holdfast.node.node import Node

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


async def answer(node: Node) -> None:
    """Answer whoever asks, until the node's engine is closed. Raises `Closed`."""

    door = Door("a question to all nodes", bytes)

    def take(message: Message) -> None:
        if door.read(message) is not None and message.reply:
            node.engine.bus.publish(message.reply, codec.encode_raw(state(node)))

    await node.engine.bus.subscribe(SUBJECT, take)
    if node.life.embedded:
        await _meet(node)


async def _meet(node: Node) -> None:
    """On an embedded log nobody beats, as there is one node. A visitor asks that one who it is."""
    if isinstance(node.engine, SocketEngine):
        with suppress(NoResponders, Unknown):
            beat = await node.engine.bus.request(_WHO, b"", _WHO_SECONDS)
            node._membership._on_beat(Message(BEAT_SUBJECT, "", beat))
        return

    def tell(message: Message) -> None:
        if message.reply:
            node.engine.bus.publish(message.reply, codec.encode_raw(node._beat()))

    await node.engine.bus.subscribe(_WHO, tell)
    if isinstance(node.engine, LocalEngine) and node._runtime.kinds:
        await node.engine.let_in()  # one that serves nothing has it for a moment only


def malformed(node: Node) -> int:
    """How many messages of others this node dropped since its start, as they did not fit."""
    doors: list[Door[Any]] = [
        node._membership.beats,
        node._membership.host_beats,
        node._holding.door,
        node._router._frames.door,
    ]
    return sum(door.dropped for door in doors) + node._runtime.door.dropped


def state(node: Node) -> NodeState:
    """What a node says of itself at this moment."""
    ownership = node._ownership
    return NodeState(
        node.incarnation,
        node.name,
        node.host,
        VERSION,
        sorted(node._runtime.kinds),
        node.life.live(),
        sorted(number for number in ownership.owned if node._runtime.serves(number)),
        dict(ownership.failures),
        node._runtime.stalls.text(),
        dict(ownership.lost_cells),
    )
