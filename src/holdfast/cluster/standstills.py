"""What hosts say of nodes that stand still, and of nodes that were killed: hints for whoever takes their shards over.

A node whose loop stands still cannot speak for itself, but a thread of it can, and its host can. Whoever claims the node's
shards then knows which message is to run alone, behind a mark in the log. What is heard here is never the last word: it
only makes a message run with more care, or makes another one be tried once more. Everything is bounded; the oldest goes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from holdfast import limits
from holdfast.cluster.door import Incarnation, Text
from holdfast.cluster.life import base

_HEARD_SECONDS = 3 * limits.BEAT_SECONDS
TEXT_MAX = 300
FUNCTIONS_MAX = 64


class Standstill(msgspec.Struct, array_like=True, frozen=True):
    """A node whose loop stands still, or did until its host ended it."""

    incarnation: Incarnation
    seconds: Annotated[float, msgspec.Meta(ge=0, le=1e9)]
    token: Text = ""
    """The agent, and the key of the message; both are empty where the node could not tell."""
    key: Text = ""
    where: Text = ""
    functions: Annotated[tuple[Text, ...], msgspec.Meta(max_length=FUNCTIONS_MAX)] = ()
    """Where the message is not known: the functions that were running."""
    ended: bool = False

    @property
    def text(self) -> str:
        """For people, and for the error of what stood still."""
        where = f" in {self.where[:TEXT_MAX]}" if self.where else ""
        return f"stood still for {self.seconds:.1f} s{where}"


class Standstills:
    """What one process has heard."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._of: dict[str, Standstill] = {}
        """The newest of each node, by the name that all its incarnations have in common."""
        self._heard_at: dict[str, float] = {}
        self.names: dict[tuple[str, str], Standstill] = {}
        """By agent and message; empty nearly always."""
        self._loads: dict[str, tuple[int, float, Standstill]] = {}
        """Agents that stood still while they were loaded: how often, and when that was heard."""
        self._killed: dict[str, None] = {}

    def note(self, still: Sequence[Standstill], killed: Sequence[str]) -> list[Standstill]:
        """Take what a host says; return the standstills that ended, and were not known to."""
        ended = []
        for one in still:
            name = base(one.incarnation)
            known = self._of.get(name)
            self._heard_at[name] = self._loop.time()
            if known is not None and (known.ended or known == one):
                continue
            if known is not None and known.token and not one.token:  # what was named once stays so
                one = msgspec.structs.replace(known, seconds=max(one.seconds, known.seconds), ended=one.ended)
            self._of[name] = one
            if one.ended:
                ended.append(one)
            if one.token and one.key:
                self.names[one.token, one.key] = one
            elif one.token:
                times, _, before = self._loads.get(one.token, (0, 0.0, None))
                again = before is None or before.incarnation != one.incarnation
                self._loads[one.token] = times + again, self._loop.time(), one
        for name in killed:
            self._killed[base(name)] = None
        for table in (self._of, self._heard_at, self.names, self._loads, self._killed):
            _trim(table)
        return ended

    def of(self, incarnation: str) -> Standstill | None:
        """How a node stands still, or stood when it ended."""
        return self._of.get(base(incarnation))

    def named(self, token: str, key: str) -> Standstill | None:
        """How a node stood still in a message of an agent."""
        return self.names.get((token, key))

    def was_killed(self, incarnation: str) -> bool:
        """Whether a node's process was killed by somebody, so that nothing that it had in hand need have ended it."""
        return base(incarnation) in self._killed

    def under_way(self) -> bool:
        """Whether some node stands still now, as far as is heard."""
        oldest = self._loop.time() - _HEARD_SECONDS
        return any(not one.ended and self._heard_at.get(name, 0.0) > oldest for name, one in self._of.items())

    def rests(self, token: str) -> Standstill | None:
        """How an agent stood still when it was loaded last, if that is so short a while ago that it is not loaded again."""
        if (found := self._loads.get(token)) is None:
            return None
        times, at, still = found
        seconds = min(limits.LOAD_REST_SECONDS * 4 ** (times - 1), limits.LOAD_REST_SECONDS_MAX)
        return still if self._loop.time() - at < seconds else None


def _trim(table: dict[Any, Any]) -> None:
    while len(table) > limits.STANDSTILLS_MAX:
        del table[next(iter(table))]
