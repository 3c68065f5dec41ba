"""What happened in a run, as its checkers see it: operations of clients, code that ran in handlers,
commits, deaths."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal, Protocol

from holdfast.engines.base import Stored
from holdfast.node.dead_letters import DeadLetter

Fate = Literal["open", "done", "not done", "unknown", "refused"]
"""What an operation's caller was told: acknowledged, `NotDone`, `Unknown`, or one of the `Never`
errors."""


@dataclass(slots=True)
class Operation:
    """One message of a client. ``label`` is its own; times are in seconds on the world's clock."""

    kind: str
    agent: str
    label: str
    began: float
    ended: float = float("inf")
    fate: Fate = "open"
    result: Any = None
    client: str = ""


@dataclass(slots=True)
class Mark:
    """A handler's code ran at this moment, in this process, for an activation of this epoch."""

    at: float
    agent: str
    epoch: int
    process: str


@dataclass(slots=True)
class Commit:
    """A batch that a cell committed."""

    at: float
    cell: str
    batch: list[Stored]


@dataclass
class History:
    """One run's. ``tapes``: at the end, per agent everything that it did, in its own order."""

    operations: list[Operation] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    commits: list[Commit] = field(default_factory=list)
    commits_are_all: bool = True
    """False where they were watched from outside: then some may be missing, and which batch a
    record was in is a guess."""
    deaths: dict[str, int] = field(default_factory=dict)
    """Per label of a deadly message, how many processes it ended."""
    standstills: dict[str, list[bool]] = field(default_factory=dict)
    """Per label of a message in which nodes stand still, whether the node's host could say so, for
    each of them."""
    harmed: bool = True
    """Whether anything was done to nodes that is no stop in order."""
    tapes: dict[str, list[str]] = field(default_factory=dict)
    dead_letters: set[str] = field(default_factory=set)
    """Labels of messages that were given up, where everybody can see it."""
    epochs_at_rest: tuple[dict[str, int], dict[str, int]] = field(default_factory=lambda: ({}, {}))
    """Each shard's epoch when the faults had been over for a while, and later."""
    owners: dict[str, list[str]] = field(default_factory=dict)
    """Per shard the nodes that serve it at the end."""
    founders: list[tuple[str, bool, int, int]] = field(default_factory=list)
    """Who made cells: the process, whether it had a mandate, with how many copies, and how many
    there were to be."""
    differences: list[str] = field(default_factory=list)
    """What nodes have in memory at the end that the log has not, or has otherwise."""

    def digest(self) -> str:
        """A digest of all that happened, in its order: two runs with the same one were the same
        run."""
        made = blake2b(digest_size=16)
        for op in self.operations:
            made.update(
                repr(
                    (op.kind, op.agent, op.label, op.began, op.ended, op.fate, str(op.result))
                ).encode()
            )
        for mark in self.marks:
            made.update(repr((mark.at, mark.agent, mark.epoch, mark.process)).encode())
        for commit in self.commits:
            made.update(repr((commit.at, commit.cell, commit.batch)).encode())
        made.update(
            repr((self.tapes, self.deaths, sorted(self.dead_letters), self.epochs_at_rest)).encode()
        )
        return made.hexdigest()

    def begin(self, kind: str, agent: str, label: str, now: float) -> Operation:
        """A client begins an operation."""
        operation = Operation(kind, agent, label, now)
        self.operations.append(operation)
        return operation

    def bury(self, letter: DeadLetter) -> None:
        """Note that a message was given up. One is the same to its sender whether it is handled
        slowly or at once."""
        handler = letter.handler.removesuffix("_slowly").removesuffix("_badly")
        self.dead_letters.add(" ".join([handler, *map(str, letter.arguments)]))


class Recorder(Protocol):
    """Where clients write down what they do."""

    history: History
    stopping: bool
    """Whether clients are to end."""

    @property
    def now(self) -> float:
        """Seconds, on a clock that all processes of the run share."""


class Witness(Protocol):
    """Who is told what runs in handlers; of a simulation, or in a process of a real node."""

    def mark(self, agent: str, epoch: int) -> None:
        """A handler's code runs now, for an activation of this epoch."""

    async def die(self, label: str) -> None:
        """End the process in whose handler this is called."""

    async def stand_still(self, label: str) -> None:
        """Have the process stand still in whose handler this is called."""
