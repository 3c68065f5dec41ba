"""What a run of chaos took: how long nothing succeeded, how long after a harm all agents answered
again."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise
from typing import Final

import msgspec

from holdfast.errors import NoQuorum, Unknown
from holdfast.testing.history import Operation


class Harmed(msgspec.Struct):
    """A harm that was done. Times are in seconds: from the start of the run, and from the harm's
    beginning."""

    kind: str
    host: str
    at: float
    seconds: float = 0.0
    answered_after: float = 0.0
    """Until every agent that was asked meanwhile, or a moment later, and did not answer at once had
    answered again, whatever client asked; where one did not, until the moment was over."""
    refused_after: float | None = None
    """For cuts: until a client on the side of the host that was cut off was first told `NoQuorum`
    or `Unknown`."""
    last_done_after: float | None = None
    """… and until the last success there before it was mended."""


_ANSWERS: Final = ("done", "refused")
"""Fates that are an agent's own word."""

_AT_ONCE_SECONDS: Final = 0.5
_MOMENT_SECONDS: Final = 5.0
"""Who is asked so long after a harm tells of another one."""
CUTS: Final = ("partition", "one-way", "flapping")


def fates(operations: list[Operation]) -> dict[str, dict[str, int]]:
    """Operations by kind and fate."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for operation in operations:
        found[operation.kind][operation.fate] += 1
    return {kind: dict(counts) for kind, counts in sorted(found.items())}


def stalls(operations: list[Operation], began: float, ended: float) -> dict[str, float]:
    """Per kind of operation the longest time without any answer of an agent."""
    found: dict[str, list[float]] = {}
    for operation in operations:
        times = found.setdefault(operation.kind, [began, ended])
        if operation.fate in _ANSWERS and operation.ended <= ended:
            times.append(operation.ended)
    longest = {}
    for kind, times in sorted(found.items()):
        times.sort()
        longest[kind] = max(after - before for before, after in pairwise(times))
    return longest


def measure(harmed: Harmed, operations: list[Operation], began: float) -> None:
    """Fill in what the operations say of a harm. ``began``: the run's beginning on their clock."""
    at = began + harmed.at
    harmed.answered_after = _answered_after(operations, at, at + harmed.seconds + _MOMENT_SECONDS)
    if harmed.kind in CUTS:
        until = at + harmed.seconds
        there = [op for op in operations if op.client == harmed.host]
        refused = [
            op.ended
            for op in there
            if at < op.ended <= until and isinstance(op.result, (NoQuorum, Unknown))
        ]
        done = [op.ended for op in there if at < op.ended <= until and op.fate == "done"]
        harmed.refused_after = min(refused) - at if refused else None
        harmed.last_done_after = max(done) - at if done else None


def _answered_after(operations: list[Operation], at: float, until: float) -> float:
    """The longest time until an agent answered again that did not answer at once; 0 where all
    did."""
    asked: dict[str, list[Operation]] = defaultdict(list)
    for operation in operations:
        if at <= operation.began <= until:
            asked[operation.agent].append(operation)
    longest = 0.0
    for mine in asked.values():
        answered = min(
            (op for op in mine if op.fate in _ANSWERS), key=lambda op: op.ended, default=None
        )
        if answered is None:
            longest = max(longest, until - at)
            continue
        refused = any(
            op.began < answered.ended and op.fate in ("not done", "unknown") for op in mine
        )
        if refused or answered.ended - answered.began > _AT_ONCE_SECONDS:
            longest = max(longest, answered.ended - at)
    return longest
