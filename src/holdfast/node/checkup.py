"""What a node says of itself when an operator asks: `holdfast doctor` asks all nodes at once.

Beats carry what all nodes need all the time. This is what is looked at rarely: whether the node is live, which shards it
serves, which recoveries fail, and why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from holdfast import codec
from holdfast.engines.base import Message, Subscription

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


class Checkup:
    """The answering side, on one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        """Begin to answer. Raises `Closed`."""
        self._subscription = await self._node.engine.bus.subscribe(SUBJECT, self._answer)

    async def close(self) -> None:
        """End."""
        if self._subscription is not None:
            await self._subscription.close()

    def _answer(self, message: Message) -> None:
        if message.reply:
            self._node.engine.bus.publish(message.reply, codec.encode_raw(self._node.checkup()))
