"""Who is there: nodes beat, hosts say which of their nodes are alive, and nobody's silence is taken for death too early.

Each beat is a full snapshot, so a lost one costs nothing. A node's process that ends is reaped by its host, which says
so at once, and with every beat from then on. A node that is only silent is dead when it was condemned; see `life`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from holdfast import codec, limits, loops
from holdfast.cluster.events import unheard
from holdfast.cluster.life import base, number
from holdfast.engines.base import Engine, Message, Subscription

BEAT_SUBJECT = "hf.beat"
HOST_SUBJECT = "hf.host"


class Beat(msgspec.Struct, array_like=True):
    """A node's snapshot of itself."""

    incarnation: str
    host: str
    name: str
    started_at: float
    """Seconds since 1970."""
    kinds: list[str]
    shards: int
    agents: int
    version: str
    supervised: bool = False
    """Whether a host started it, so that the host's word on its life counts."""
    leaving: bool = False
    labels: list[str] = []
    capacity: float = 1.0
    """How much it can carry, beside others: a node of capacity 2 owns twice as many shards as one of 1."""
    state_versions: list[int] = []
    """Of each of ``kinds``, the version of its state that this node writes."""
    warm: list[int] = []
    """Shards of others whose records it has in memory."""
    draining: bool = False
    """It is about to end, and gives its shards away."""
    record_version: int = 1
    """The newest form of records that it reads and writes."""
    generation: int = 1
    """Of the cluster that it belongs to: who was cut off while a restore made another is no member of that."""
    degraded: str = ""
    """What is wrong with it, for people; empty where nothing is."""


class HostBeat(msgspec.Struct, array_like=True):
    """A host's word on its nodes: those that run, and those of whose processes it saw the end, the newest last.

    That one is not in ``nodes`` proves nothing: it may have begun after this was said.
    """

    host: str
    nodes: list[str]
    ended: list[str] = []
    incarnation: str = ""
    """One life of the host's process."""
    votes: bool = False
    """Whether its server runs, keeps copies, and votes."""
    voters: int = 0
    """How many hosts vote, as far as it knows; 0 where it does not."""


class Member(msgspec.Struct):
    """A node as this node sees it. ``heard_at``: on the event loop's clock."""

    beat: Beat
    heard_at: float
    dead: bool = False
    ended: bool = False
    """Its end is certain: it or its host said so, or it was condemned. One that was only silent is welcome back."""


_decode_beat = msgspec.msgpack.Decoder(Beat).decode
_decode_host = msgspec.msgpack.Decoder(HostBeat).decode


class Membership:
    """The view that one node has of all. ``alone``: no other process can be there (the embedded engine)."""

    def __init__(self, engine: Engine, describe: Callable[[], Beat], alone: bool) -> None:
        self.alone = alone
        self._generation = 1
        self.on_change: Callable[[], None] = _nothing
        self.on_death: Callable[[str], None] = _ignore
        self.on_event: Callable[..., None] = unheard
        """Takes what happened, to whom, a key, and facts: see `cluster.events.Events.say`."""
        self._engine = engine
        self._describe = describe
        self._members: dict[str, Member] = {}
        self._hosts: dict[str, HostBeat] = {}
        self._hosts_heard_at: dict[str, float] = {}
        self._condemned: dict[str, None] = {}
        self._loop = asyncio.get_running_loop()
        self._started_at = self._loop.time()
        self._subscriptions: list[Subscription] = []
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to beat and to listen."""
        self._generation = self._note_self().generation
        if self.alone:
            return
        self._subscriptions = [
            await self._engine.bus.subscribe(BEAT_SUBJECT, self._on_beat),
            await self._engine.bus.subscribe(HOST_SUBJECT, self._on_host),
        ]
        self._task = loops.start(self._run(), "membership")

    async def _run(self) -> None:
        while True:
            self.beat()
            self._look()
            await asyncio.sleep(limits.BEAT_SECONDS)

    def beat(self, leaving: bool = False) -> None:
        """Publish this node's snapshot now."""
        beat = self._note_self()
        if self._task is not None:
            beat.leaving = leaving
            self._engine.bus.publish(BEAT_SUBJECT, codec.encode_raw(beat))

    def _note_self(self) -> Beat:
        beat = self._describe()
        self._members[beat.incarnation] = Member(beat, self._loop.time())
        return beat

    def _on_beat(self, message: Message) -> None:
        try:
            beat = _decode_beat(message.payload)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return
        known = self._members.get(beat.incarnation)
        if (known is not None and known.ended) or beat.generation != self._generation:
            return
        self._members[beat.incarnation] = Member(beat, self._loop.time())
        if known is None and beat.kinds and not beat.leaving:
            facts = {"host": beat.host, "incarnation": beat.incarnation, "version": beat.version, "kinds": beat.kinds}
            self.on_event("node-joined", beat.name, beat.incarnation, **facts)
        for other in [other for other in self._members if base(other) == base(beat.incarnation)]:
            if number(other) < number(beat.incarnation):
                self._die(other, ended=True, why="it goes on as another incarnation")
        if beat.leaving or self._reaped(beat.incarnation, beat.host):
            self._die(beat.incarnation, ended=True, why="left" if beat.leaving else "its process ended")
        elif known is None or known.dead or known.beat.kinds != beat.kinds or known.beat.warm != beat.warm:
            self.on_change()

    def _reaped(self, incarnation: str, host: str) -> bool:
        return host in self._hosts and base(incarnation) in self._hosts[host].ended

    def _on_host(self, message: Message) -> None:
        try:
            beat = _decode_host(message.payload)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return
        known = self._hosts.get(beat.host)
        self._hosts[beat.host] = beat
        self._hosts_heard_at[beat.host] = self._loop.time()
        if beat.incarnation and (known is None or known.incarnation != beat.incarnation):
            self.on_event("host-joined", beat.host, beat.incarnation)
        for incarnation, member in list(self._members.items()):
            if member.beat.supervised and base(incarnation) in beat.ended:
                self._die(incarnation, ended=True, why="its process ended")

    def _look(self) -> None:
        """Note who was not heard for too long; forget the dead after a while."""
        now = self._loop.time()
        condemns = bool(self._describe().kinds)
        for incarnation, member in list(self._members.items()):
            silent = now - member.heard_at
            if not member.dead and silent > limits.TAKEOVER_SECONDS and not (condemns and member.beat.kinds):
                self._die(incarnation)
            elif member.dead and silent > 60 * limits.TAKEOVER_SECONDS:
                del self._members[incarnation]
        for host, heard_at in list(self._hosts_heard_at.items()):
            if now - heard_at > limits.TAKEOVER_SECONDS:
                del self._hosts_heard_at[host]
                self.on_event("host-silent", host, self._hosts[host].incarnation)

    def _die(self, incarnation: str, ended: bool = False, why: str = "silent") -> None:
        member = self._members[incarnation]
        member.ended = member.ended or ended
        if not member.dead:
            member.dead = True
            if member.beat.kinds and ended:
                self.on_event("node-ended", member.beat.name, incarnation, host=member.beat.host, why=why)
            self.on_death(incarnation)
            self.on_change()

    # Questions ---------------------------------------------------------------------------------------------------

    def live(self) -> list[Beat]:
        """The nodes that are there, oldest first."""
        if self.alone:
            self._note_self()
        beats = [member.beat for member in self._members.values() if not member.dead]
        return sorted(beats, key=lambda beat: (beat.started_at, beat.incarnation))

    def warm(self) -> dict[int, list[str]]:
        """Per shard the nodes that have its records in memory."""
        found: dict[int, list[str]] = {}
        for beat in self.live():
            for shard in beat.warm:
                found.setdefault(shard, []).append(beat.incarnation)
        return found

    def serving(self) -> list[str]:
        """The nodes that serve agents and are not known to be dead."""
        return [name for name, member in self._members.items() if member.beat.kinds and not member.dead]

    def is_dead(self, incarnation: str, host: str) -> bool:
        """Whether its shards may be claimed: known dead, or condemned."""
        if self.alone:
            return incarnation != self._describe().incarnation
        member = self._members.get(incarnation)
        if member is not None:
            return member.dead
        return self._reaped(incarnation, host) or incarnation in self._condemned or self._superseded(incarnation)

    def _superseded(self, incarnation: str) -> bool:
        lives = [number(other) for other in self._members if base(other) == base(incarnation)]
        return max(lives, default=0) > number(incarnation)

    def silent(self, incarnation: str) -> bool:
        """Whether a node that is not known to be dead was not heard for so long that it is to be condemned."""
        member = self._members.get(incarnation)
        heard_at = self._started_at if member is None else member.heard_at
        return not self.alone and self._loop.time() - heard_at > limits.SUSPECT_SECONDS

    def condemned(self, incarnation: str) -> None:
        """A node was condemned: it is not live, and never will be."""
        self._condemned[incarnation] = None
        if incarnation in self._members:
            self._die(incarnation, ended=True, why="condemned: it was silent, and proved nothing")
        self.on_change()

    def hears_majority(self, voters: int) -> bool:
        """Whether most of the hosts that vote, ``voters`` or more, are heard: if they have no leader, they soon will."""
        voting = {host: beat for host, beat in self._hosts.items() if beat.votes}
        oldest = self._loop.time() - limits.ISOLATE_SECONDS
        heard = [beat for host, beat in voting.items() if self._hosts_heard_at.get(host, oldest) > oldest]
        # Who was removed is remembered here for a while: the others know how many there are now.
        size = max((beat.voters for beat in heard), default=0) or len(voting)
        return 2 * len(heard) > max(size, voters)

    def settled(self) -> bool:
        """Whether every live node has had the time to be heard at least once."""
        return self.alone or self._loop.time() - self._started_at > 2.5 * limits.BEAT_SECONDS

    async def close(self) -> None:
        """Say goodbye, and stop."""
        if self._task is not None:
            await loops.stop(self._task)
            self.beat(leaving=True)
        for subscription in self._subscriptions:
            await subscription.close()


def _nothing() -> None:
    pass


def _ignore(_incarnation: str) -> None:
    pass
