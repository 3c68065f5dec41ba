"""What the caller's side needs of the agents that its own process serves: calls to them take no way
through the bus."""

from __future__ import annotations

from collections.abc import Container
from typing import Protocol

from holdfast.agents.calls import Sink
from holdfast.records.messages import Call


class Here(Protocol):
    """See the module; `holdfast.serving.intake.Intake` is one."""

    @property
    def shards(self) -> Container[int]:
        """The numbers of the shards that are served here."""
        ...

    @property
    def incarnation(self) -> str:
        """The name of this life of the node."""
        ...

    def take(self, call: Call, sink: Sink | None) -> None:
        """Hand a call to its agent; ``sink`` hears of the reply."""
        ...

    def cancel(self, call: Call) -> None:
        """Nobody waits for the answer to a call any more."""
        ...
