"""A client as a process of its own: on one side of a network that is cut, doing the workload's
kinds of work.

It is told its `ClientSettings` as JSON on the standard input, says what each operation came to on
its standard output, one JSON object a line, and ends when there is more on its standard input, or
no more of it.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from random import Random
from typing import Final

import msgspec

from holdfast.children import die_with_parent
from holdfast.errors import from_wire, to_wire
from holdfast.loops import run
from holdfast.node.node import Node
from holdfast.security import Security
from holdfast.testing.history import Fate, History, Operation
from holdfast.testing.workloads import Clerk

_SAY_SECONDS: Final = 0.2
_ERA_SECONDS: Final = 60.0
"""Agents work so long, then others do: their tapes are written whole with every commit."""


class ClientSettings(msgspec.Struct):
    """Everything that a client's process is told."""

    parent: int
    name: str
    urls: list[str]
    security: Security
    work: dict[str, int]
    agents: int
    pause: tuple[float, float]
    seed: int


class Said(msgspec.Struct, array_like=True):
    """An operation on its way to who started the client."""

    kind: str
    agent: str
    label: str
    began: float
    ended: float | None
    fate: Fate
    result: int | None = None
    error: tuple[str, str, str, str] = ("", "", "", "")
    """See `holdfast.errors.to_wire`."""

    @classmethod
    def of(cls, operation: Operation) -> Said:
        """The message for an operation."""
        ended = operation.ended if operation.fate != "open" else None
        said = cls(
            operation.kind, operation.agent, operation.label, operation.began, ended, operation.fate
        )
        if isinstance(operation.result, BaseException):
            said.error = to_wire(operation.result)
        elif isinstance(operation.result, int):
            said.result = operation.result
        return said

    def operation(self, client: str) -> Operation:
        """What `of` was given."""
        result = from_wire(*self.error) if self.error[0] else self.result
        ended = float("inf") if self.ended is None else self.ended
        return Operation(
            self.kind, self.agent, self.label, self.began, ended, self.fate, result, client
        )


class _Notebook:
    """This process's recorder; see `holdfast.testing.history.Recorder`."""

    def __init__(self) -> None:
        self.history = History()
        self.stopping = False

    @property
    def now(self) -> float:
        return time.monotonic()

    def say(self, everything: bool = False) -> None:
        """Tell of the operations that ended since, or of those that did not as well."""
        still_open = []
        for operation in self.history.operations:
            if operation.fate == "open" and not everything:
                still_open.append(operation)
            else:
                sys.stdout.buffer.write(msgspec.json.encode(Said.of(operation)) + b"\n")
        self.history.operations = still_open
        sys.stdout.buffer.flush()


async def serve(settings: ClientSettings) -> None:
    """Work until there is more on the standard input. Raises what `Node.join` raises."""
    loop = asyncio.get_running_loop()
    book = _Notebook()
    async with Node.join(settings.urls, name=settings.name, security=settings.security) as node:
        clerk = Clerk(
            book, node, settings.name, settings.agents, settings.pause, Random(settings.seed)
        )
        loop.add_reader(sys.stdin.fileno(), _stop, book)
        tasks = [
            loop.create_task(clerk.begin(kind))
            for kind, count in settings.work.items()
            for _ in range(count)
        ]
        began = loop.time()
        for turn in itertools.count(1):
            await asyncio.wait(tasks, timeout=_SAY_SECONDS)
            for task in tasks:
                if task.done():
                    task.result()
            if all(task.done() for task in tasks):
                break
            era = int((loop.time() - began) / _ERA_SECONDS)
            clerk.era = f".{era}" if era else ""
            if turn % 2 == 0 or book.stopping:
                book.say()
        book.say(everything=True)


def _stop(book: _Notebook) -> None:
    book.stopping = True
    asyncio.get_running_loop().remove_reader(sys.stdin.fileno())


def main() -> None:
    """``python -m holdfast.testing.chaos.client``."""
    settings = msgspec.json.decode(sys.stdin.buffer.readline(), type=ClientSettings)
    die_with_parent(settings.parent)
    run(serve(settings))


if __name__ == "__main__":
    main()
