"""Which replica is right about a record: the majority, where it holds the same and the checksum
agrees.

Every record is judged by itself, from what each replica shows of it (its content's digest and
whether its checksum agrees) or that it shows nothing. What a majority of all copies shows is what
the cluster committed; a replica that shows something else has diverged. Where no majority agrees,
nothing is decided: no copy may then be thrown away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Mark(NamedTuple):
    """What a replica shows of a record. ``intact``: its checksum agrees, or it has none."""

    digest: int
    intact: bool


class Verdict(NamedTuple):
    """``outliers``: the replicas that differ from the majority, by what is wrong there. Both empty:
    all is well."""

    missing: tuple[str, ...] = ()
    """They lack the record."""
    altered: tuple[str, ...] = ()
    """They show another content."""
    surplus: tuple[str, ...] = ()
    """They show a record that the majority no longer has."""
    undecided: bool = False
    """No majority shows the same intact record, or the same absence of it."""


def judge(marks: Mapping[str, Mark | None], copies: int) -> Verdict:
    """The verdict on one record. ``marks``: what each replica that was read shows; None: it lacks
    the record."""
    (most, count) = Counter(marks.values()).most_common(1)[0]
    if count < majority(copies) or (most is not None and not most.intact):
        return Verdict(undecided=True)
    if most is None:
        return Verdict(surplus=tuple(server for server, mark in marks.items() if mark is not None))
    return Verdict(
        missing=tuple(server for server, mark in marks.items() if mark is None),
        altered=tuple(server for server, mark in marks.items() if mark not in (None, most)),
    )


def majority(copies: int) -> int:
    """How many of so many copies are a majority."""
    return copies // 2 + 1


def may_rebuild(
    server: str, copies: int, diverged: Iterable[str], unread: Iterable[str], undecided: bool
) -> bool:
    """Whether a replica may be thrown away and copied anew: a majority of verified good ones is
    left without it."""
    bad = {server, *diverged, *unread}
    return not undecided and copies - len(bad) >= majority(copies)


def spans(sequences: Iterable[int], spans_max: int) -> list[str]:
    """Sequences as people read them: ``["7", "1002-1500"]``, at most so many, then ``"…"``."""
    found: list[list[int]] = []
    for sequence in sorted(sequences):
        if found and sequence == found[-1][1] + 1:
            found[-1][1] = sequence
        elif len(found) == spans_max:
            return [*_texts(found), "…"]
        else:
            found.append([sequence, sequence])
    return _texts(found)


def _texts(found: list[list[int]]) -> list[str]:
    return [str(first) if first == last else f"{first}-{last}" for first, last in found]


class Extent(NamedTuple):
    """How far a replica goes. ``messages`` counts its records."""

    last: int
    messages: int


def why_keep(
    server: str,
    copies: int,
    kept: Mapping[str, Extent | None],
    leader: str,
    before: Extent,
    after: Extent,
) -> str:
    """Why a replica may not be thrown away at this moment; empty where it may be.

    ``kept``: what each server of the stream has by its own word, None where it did not say.
    ``before``, ``after``: what the leader had before and after they were asked; what came in
    between may be in a replica or not yet.
    """
    others = {name: extent for name, extent in kept.items() if name != server}
    if copies < 2 or len(others) < majority(copies):
        return f"of {copies} copies {len(others)} are elsewhere: no majority would be left"
    if len(others) < copies - 1:
        return f"of {copies} copies only {len(others) + 1} are there"
    if leader not in others:
        return f"it is led by {leader or 'nobody'}, and what the leader has is what is copied"
    own = kept.get(server)
    if own is not None and own.last > after.last:
        return f"this copy goes up to {own.last}, and the leader {leader} only to {after.last}"
    between = after.last - before.last
    if own is not None and own.messages > max(before.messages, after.messages) + between:
        return (
            f"this copy has {own.messages} records, and the leader's {after.messages}: it may have "
            "what the others lost"
        )
    least = min(before.messages, after.messages) - between
    most = max(before.messages, after.messages) + between
    for name, extent in sorted(others.items()):
        if extent is None:
            return f"{name} does not say what it has"
        if extent.last < before.last:
            return f"the copy on {name} goes up to {extent.last}, and its leader's to {before.last}"
        if not least <= extent.messages <= most:
            return (
                f"the copy on {name} has {extent.messages} records, and its leader's "
                f"{after.messages}"
            )
    return ""
