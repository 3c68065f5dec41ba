"""Signs of life: what nodes and hosts say of themselves, several times a second, to whoever
listens.

Each is a full snapshot, so a lost one costs nothing. A node numbers its own, so that one which
comes late or twice is known by its number.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from holdfast import limits
from holdfast.cluster.door import (
    Count,
    Door,
    Incarnation,
    Incarnations,
    Moment,
    Name,
    Names,
    Shards,
    Small,
    Text,
)
from holdfast.cluster.members.standstills import Standstill

BEAT_SUBJECT: Final = "hf.beat"
HOST_SUBJECT: Final = "hf.host"

Capacity = Annotated[float, msgspec.Meta(ge=limits.CAPACITY_MIN, le=limits.CAPACITY_MAX)]


class Beat(msgspec.Struct, array_like=True):
    """A node's snapshot of itself."""

    incarnation: Incarnation
    host: Name
    name: Name
    started_at: Moment
    """Seconds since 1970."""
    kinds: Names
    shards: Small
    agents: Count
    version: Text
    supervised: bool = False
    """Whether a host started it, so that the host's word on its life counts."""
    leaving: bool = False
    labels: Names = []
    capacity: Capacity = 1.0
    """How much it can carry, beside others: a node of capacity 2 owns twice as many shards as one
    of 1."""
    state_versions: Annotated[list[Small], msgspec.Meta(max_length=4096)] = []
    """Of each of ``kinds``, the version of its state that this node writes."""
    warm: Shards = []
    """Shards of others whose records it has in memory."""
    draining: bool = False
    """It is about to end, and gives its shards away."""
    record_version: Small = 1
    """The newest version of records that it reads and writes."""
    generation: Small = 1
    """Of the cluster that it belongs to: who was cut off while a restore made another is no member
    of that."""
    degraded: Annotated[str, msgspec.Meta(max_length=limits.DEGRADED_TEXT_MAX)] = ""
    """What is wrong with it, for people; empty where nothing is."""
    number: Count = 0
    """How many beats this process has sent, this one included; 0 from a process of a version that
    did not count."""


class HostBeat(msgspec.Struct, array_like=True):
    """A host's word on its nodes: those that run, and those of whose processes it saw the end, the
    newest last.

    That one is not in ``nodes`` proves nothing: it may have begun after this was said.
    """

    host: Name
    nodes: Incarnations
    ended: Incarnations = []
    incarnation: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{0,100}\Z")] = ""
    """One life of the host's process."""
    votes: bool = False
    """Whether its server runs, keeps copies, and votes."""
    voters: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    """How many hosts vote, as far as it knows; 0 where it does not."""
    still: Annotated[list[Standstill], msgspec.Meta(max_length=4096)] = []
    """Its nodes that stand still now, and those that it ended for it, the newest last."""
    killed: Incarnations = []
    """Of ``ended``, those whose processes somebody else killed; and those that somebody stopped."""
    number: Count = 0
    """Of this beat, in this life: the last one that was heard tells one silence from another."""


_decode_beat = msgspec.msgpack.Decoder(Beat).decode
_decode_host = msgspec.msgpack.Decoder(HostBeat).decode


def beat_door() -> Door[Beat]:
    """For a node's beats."""
    return Door("a node's beat", _decode_beat)


def host_door() -> Door[HostBeat]:
    """For a host's beats."""
    return Door("a host's beat", _decode_host)


class Member(msgspec.Struct):
    """A node as this node sees it. ``heard_at``: on the event loop's clock.

    That it is ``dead`` is what others say, or what its silence suggests: later beats of the node
    itself lift it. Only a sentence in the log is ``final``. Its shards may be claimed after such a
    sentence, and after the ``word`` of its host.
    """

    beat: Beat
    heard_at: float
    dead: bool = False
    final: bool = False
    word: bool = False
    """Its host says that its process ended."""
    called_at: float = 0.0
    """When others called it dead, or it said goodbye; 0 if it was only silent."""
    outlived: bool = False
    """It lived on after it was called dead, so that the next word on it counts less."""
    since: int = 0
    """Beats of it that were taken since."""
    stray: int = 0
    """The number of the last one that was not taken."""

    def take(self, beat: Beat, now: float) -> bool:
        """Take a beat of it; False for one that came late, or twice, or from a life that is
        over."""
        if self.final:
            return False
        number = beat.number or self.beat.number + 1
        if number <= self.beat.number:
            # Late or twice, unless the number before was not the node's own: then its own go on
            # below it.
            goes_on = 0 < self.stray < number and now - self.heard_at > limits.BEAT_SECONDS * 2.5
            self.stray = number
            if not goes_on:
                return False
        beat.number = number
        self.beat, self.heard_at, self.stray = beat, now, 0
        if self.dead:
            self.since += 1
            if not self.called_at or self.since >= limits.LIFTING_BEATS:
                self.lift(now)
        return True

    def lift(self, now: float) -> None:
        """It lives, whatever was said."""
        self.outlived = self.outlived or bool(self.called_at)
        self.dead, self.word, self.called_at, self.since, self.heard_at = False, False, 0.0, 0, now

    def call_dead(self, now: float, *, word: bool) -> bool:
        """Somebody says that it ended: its host (``word``), it itself, or another life of it.
        Whether that is news.

        A host's word that the node has outlived once counts again if the node is not heard either.
        """
        if word and self.outlived and now - self.heard_at <= limits.BEAT_SECONDS * 3:
            return False
        news = not self.dead or (word and not self.word)
        if not self.dead:
            self.since = 0
        if news:
            self.dead, self.called_at, self.word = True, now, word or self.word
        return news
