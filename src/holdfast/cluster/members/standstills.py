"""What hosts say of nodes that stand still, and of nodes that were killed: hints for whoever takes
their shards over.

A node whose loop stands still cannot speak for itself, but a thread of it can, and its host can.
Whoever claims the node's shards then knows which message is to run alone, behind a mark in the log.
What is heard here is never the last word: it only makes a message run with more care, a verdict
wait, or another message be tried once more. Everything is bounded; the oldest goes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Annotated, Any

import msgspec

from holdfast import limits
from holdfast.cluster.door import Incarnation, Text
from holdfast.cluster.members.liveness import base

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


def _no(_: str) -> bool:
    return False


class Standstills:
    """What one process has heard.

    ``is_there``: whether a node's process is there, as its host said a moment ago; ``goes_on``:
    whether it is heard itself, whatever it is called by now.
    """

    def __init__(
        self, is_there: Callable[[str], bool] = _no, goes_on: Callable[[str], bool] = _no
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.is_there, self.goes_on = is_there, goes_on
        self._of: dict[str, Standstill] = {}
        """The newest of each node, by the name that all its incarnations have in common."""
        self._heard_at: dict[str, float] = {}
        self._hosts: dict[str, str] = {}
        """Which host said it."""
        self.names: dict[tuple[str, str], Standstill] = {}
        """By agent and message. It is empty until a message stands still, and what was not ended
        for it goes again."""
        self._loads: dict[str, dict[str, tuple[float, Standstill]]] = {}
        """Agents that stood still while they were loaded: on which nodes, and when that was
        heard."""
        self._killed: dict[str, None] = {}
        self._last: dict[str, tuple[float, Standstill]] = {}
        """The newest of each node that it was not ended for, so far, and when that was heard."""

    def note(
        self, still: Sequence[Standstill], killed: Sequence[str], host: str = ""
    ) -> list[Standstill]:
        """Take all that a host says; return the standstills that ended, and were not known to."""
        ended = []
        listed = {base(one.incarnation) for one in still}
        for name in [
            name for name, one in self._of.items() if not one.ended and name not in listed
        ]:
            if self._hosts[name] == host:  # it goes on, or something else ended it
                self._forget(name)
        for one in still:
            name = base(one.incarnation)
            known = self._of.get(name)
            self._heard_at.pop(name, None)  # the one that was heard last comes last
            self._heard_at[name] = self._loop.time()
            self._last.pop(name, None)
            if not one.ended:
                self._last[name] = self._loop.time(), one
            if known is not None and (known.ended or known == one):
                continue
            if known is not None and known.token and not one.token:  # what was named once stays so
                one = msgspec.structs.replace(
                    known, seconds=max(one.seconds, known.seconds), ended=one.ended
                )
            self._forget(name)
            self._of[name], self._hosts[name] = one, host
            if one.ended:
                ended.append(one)
            if one.token and one.key:
                before = self.names.get((one.token, one.key))
                if one.ended or before is None or not before.ended:
                    self.names[one.token, one.key] = one
            elif one.token:
                loads = self._loads.setdefault(one.token, {})
                loads[name] = self._loop.time(), one
                _trim(loads)
        for name in killed:
            self._killed[base(name)] = None
        for table in (
            self._of,
            self._heard_at,
            self._hosts,
            self.names,
            self._loads,
            self._killed,
            self._last,
        ):
            _trim(table)
        return ended

    def _forget(self, name: str) -> None:
        """Drop what is known of a standstill that its node was not ended for."""
        # so that it has the order of the other table, and is trimmed with it
        self._hosts.pop(name, None)
        if (known := self._of.pop(name, None)) is None:
            return
        if not known.token:
            return
        if self.names.get((known.token, known.key)) is known:
            del self.names[known.token, known.key]
        if not known.key and (loads := self._loads.get(known.token)) is not None:
            loads.pop(name, None)
            if not loads:
                del self._loads[known.token]

    def of(self, incarnation: str) -> Standstill | None:
        """How a node stands still, or stood when it ended."""
        return self._of.get(base(incarnation))

    def named(self, token: str, key: str) -> Standstill | None:
        """How a node stood still in a message of an agent."""
        return self.names.get((token, key))

    def was_killed(self, incarnation: str) -> bool:
        """Whether a node's process was killed by somebody, so that nothing that it had in hand need
        have ended it."""
        return base(incarnation) in self._killed

    def stands(self, incarnation: str) -> bool:
        """Whether a node stands still now, as far as is heard, so that its host may still end it
        for that."""
        still, heard_at = self.of(incarnation), self._heard_at.get(base(incarnation), 0.0)
        return (
            still is not None
            and not still.ended
            and heard_at > self._loop.time() - limits.TAKEOVER_SECONDS
        )

    def last(self, incarnation: str, since: float) -> Standstill | None:
        """How a node that goes on stood still, where that was heard later than at a time of the
        loop's."""
        at, still = self._last.get(base(incarnation), (-1.0, None))
        return still if at > since else None

    def under_way(self) -> bool:
        """Whether some node stands still now, as far as is heard."""
        return any(map(self.stands, self._of))

    def rests(self, token: str) -> Standstill | None:
        """How an agent stood still when it was loaded last, if that is so short a while ago that it
        is not loaded again."""
        if not (found := self._loads.get(token)):
            return None
        at, still = max(found.values(), key=itemgetter(0))
        seconds = min(
            limits.LOAD_REST_SECONDS * 4 ** (len(found) - 1), limits.LOAD_REST_SECONDS_MAX
        )
        return still if self._loop.time() - at < seconds else None


def _trim(table: dict[Any, Any]) -> None:
    while len(table) > limits.STANDSTILLS_MAX:
        del table[next(iter(table))]
