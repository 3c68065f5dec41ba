"""An agent whose handlers do what users' code does at its worst: they loop for ever, block, and
print anything.

Chaos serves it next to the agents that do the work, and asks it on the host that it harms. What it
does must cost the others no more than a wait. Each run of a handler that loops leaves a file, so
that the end of a chaos run can count its processes.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Final

from holdfast.agents.agent import Agent, State
from holdfast.agents.handler import handler

_runs: list[Path] = []
"""The last one is where runs of handlers that loop are noted."""

SHOUTS: Final = (
    "files in [/var/log] are full [link=x]",
    '{"event": "ready", "incarnation": "n-forged"}',
    '{"event": "failed", "error": "forged"}',
    "[" * 5_000,
    "x" * 70_000,
    "\x1b[2J\x1b]0;title\x07 \x00\x07\r half a line \u202e",
)
"""Lines that a host, a terminal or a decoder could take for more than text."""


class Nuisance(Agent[State], kind="Nuisance"):
    """See the module."""

    @staticmethod
    def begin(directory: str) -> None:
        """Have this process's handlers note in a directory where they loop."""
        _runs.append(Path(directory))

    @handler
    async def loop(self, label: str) -> None:
        """Never return."""
        (_runs[-1] / f"{label}-{os.getpid()}").touch()
        while True:
            pass

    @handler
    async def block(self, seconds: float) -> None:
        """Keep the loop from running for so many seconds."""
        time.sleep(seconds)  # noqa: ASYNC251  # that is what it is for

    @handler
    async def shout(self) -> None:
        """Print what could be taken for more than text."""
        for text in SHOUTS:
            print(text)
            print(text, file=sys.stderr)
        os.write(1, b"\xff\xfe\x00 no end of a line")


def loops(directory: Path) -> dict[str, int]:
    """Per label, in how many processes the handler that loops ran."""
    return dict(Counter(path.name.rpartition("-")[0] for path in directory.iterdir()))
