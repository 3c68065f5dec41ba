"""What the nodes of these tests serve."""

from __future__ import annotations

import time

from holdfast import Agent, State, handler, reader


class Page(State):
    text: str = ""
    edits: int = 0


class Note(Agent[Page]):
    @handler
    async def write(self, text: str) -> int:
        self.state.text = text
        self.state.edits += 1
        return self.state.edits

    @handler
    async def grow(self, size: int) -> None:
        """A state that is too large for a record."""
        self.state.text = "x" * size

    @handler
    async def stall(self, seconds: float) -> None:
        """What a handler on the loop must not do."""
        time.sleep(seconds)

    @handler
    async def fail(self) -> None:
        raise ValueError("as told")

    @reader
    async def read(self) -> str:
        return self.state.text
