"""What a node says of itself when an operator asks: `holdfast doctor` asks all nodes at once.

Beats carry what all nodes need all the time. This is what is looked at rarely: whether the node is live, which shards it
serves, which recoveries fail, and why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from holdfast import codec
from holdfast.engines.base import Message
from holdfast.version import VERSION

if TYPE_CHECKING:
    from holdfast.node.node import Node

SUBJECT: Final = "hf.d"


class NodeState(msgspec.Struct):
    """A node as it describes itself. ``live``: whether it can show that a majority of the cells takes its writes."""

    incarnation: str
    name: str
    host: str
    version: str
    kinds: list[str]
    live: bool
    shards: list[int]
    recovery_failures: dict[str, str]
    """Cells whose recovery fails, and why."""
    degraded: str = ""
    """How its loop stood still a short while ago, and where."""
    lost_cells: dict[str, str] = {}
    """Cells that it serves no more, because their logs lost acknowledged writes; and how that shows."""


async def answer(node: Node) -> None:
    """Answer whoever asks, until the node's engine is closed. Raises `Closed`."""

    def take(message: Message) -> None:
        if message.reply:
            node.engine.bus.publish(message.reply, codec.encode_raw(state(node)))

    await node.engine.bus.subscribe(SUBJECT, take)


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
