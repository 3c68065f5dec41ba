"""What runs in the handlers of real node processes, written to a file that survives them.

Each process appends to a file of its own, one line per mark, with the time on the clock that all
processes of the machine share. A line is one write, so ``kill -9`` cannot lose what was marked.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from pathlib import Path

from holdfast.testing import workloads
from holdfast.testing.history import Mark

APP = """from holdfast.testing.chaos.handler_log import Marks
from holdfast.testing.chaos.nuisance import Nuisance
from holdfast.testing.workloads import Actor

Marks.begin({marks!r})
Nuisance.begin({loops!r})
"""
"""What the nodes of a real cluster serve; the classes are `Actor` and `Nuisance`."""


class Marks:
    """The marks of this process."""

    def __init__(self, directory: str) -> None:
        path = Path(directory) / f"{os.getpid()}-{time.monotonic_ns()}"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    @classmethod
    def begin(cls, directory: str) -> None:
        """Have this process's handlers write into a directory."""
        workloads._current.append(cls(directory))

    def mark(self, agent: str, epoch: int) -> None:
        """See `Witness`."""
        self._write(f"{agent} {epoch}")

    async def die(self, label: str) -> None:
        """See `Witness`."""
        self._write(f"{label} dies")
        os.kill(os.getpid(), signal.SIGSEGV)  # a SIGKILL would look like somebody else's doing
        await asyncio.sleep(60)

    async def stand_still(self, label: str) -> None:
        """See `Witness`."""
        self._write(f"{label} stands still")
        while True:
            pass

    def _write(self, text: str) -> None:
        os.write(self._file, f"{time.monotonic():.6f} {text}\n".encode())


def read(directory: Path) -> tuple[list[Mark], dict[str, int]]:
    """All marks of a run in the order of time, and how many processes each deadly message ended."""
    marks: list[Mark] = []
    deaths: Counter[str] = Counter()
    for path in directory.iterdir():
        for line in path.read_text().splitlines():
            at, what, epoch = line.split(" ")
            if epoch == "dies":
                deaths[what] += 1
            else:
                marks.append(Mark(float(at), what, int(epoch), path.name.partition("-")[0]))
    marks.sort(key=lambda mark: mark.at)
    return marks, dict(deaths)
