"""Who is there: nodes beat, hosts say which of their nodes are alive, and nobody's silence is taken
for death too early.

A node's process that ends is reaped by its host, which says so at once, and with every beat from
then on: so a crash is taken over without a guess. But whatever is heard is a hint. A node that is
called dead and lives goes on to beat, and two later beats of it lift the word. Only a sentence in
the log is final, and it can be passed on no node that lives; see `life`. So nothing that comes
late, twice, from another life, or from somebody else can divide a cluster for good.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from holdfast import codec, limits, loops
from holdfast.cluster.facts.events import unheard
from holdfast.cluster.members.beats import (
    BEAT_SUBJECT,
    HOST_SUBJECT,
    Beat,
    HostBeat,
    Member,
    beat_door,
    host_door,
)
from holdfast.cluster.members.liveness import base, number
from holdfast.cluster.members.standstills import Standstills
from holdfast.engines.base import Engine, Message, Subscription

_MEMBERS_MAX: Final = 10_000
"""More nodes or hosts than any cluster has: somebody makes them up."""

_OLD_WORD_SECONDS: Final = 2.0
"""A word on a node that is older than what a tail of the log may lag behind."""

_BEATS_TOGETHER: Final = 16
"""Not everybody hears a host's last beat: two silences that begin within so many beats have one
name."""


def _nothing() -> None:
    pass


def _ignore(_incarnation: str) -> None:
    pass


class Membership:
    """The view that one node has of all. ``embedded``: no other process can be there.

    ``on_change`` is called when the view has changed; ``on_death`` with an incarnation that is
    dead; ``on_event`` with what happened: see `holdfast.cluster.facts.events.Events.say`.
    """

    def __init__(
        self,
        engine: Engine,
        describe: Callable[[], Beat],
        embedded: bool,
        *,
        on_change: Callable[[], None] = _nothing,
        on_death: Callable[[str], None] = _ignore,
        on_event: Callable[..., None] = unheard,
    ) -> None:
        self.embedded = embedded
        self.standstills = Standstills(self._is_there, self._goes_on)
        self._generation = 1
        self._on_change = on_change
        self._on_death = on_death
        self._on_event = on_event
        self._engine = engine
        self._describe = describe
        self._members: dict[str, Member] = {}
        self._lives: dict[str, set[str]] = {}
        """The members by process: all incarnations of one have a name in common."""
        self._hosts: dict[str, HostBeat] = {}
        self._host_of: dict[str, str] = {}
        """Which host has each process of a node, by the hosts' newest beats."""
        self._hosts_heard_at: dict[str, float] = {}
        """Of the hosts that are not silent."""
        self._looked_at = asyncio.get_running_loop().time()
        self._condemned: dict[str, None] = {}
        self._loop = asyncio.get_running_loop()
        self._started_at = self._loop.time()
        self._subscriptions: list[Subscription] = []
        self._task: asyncio.Task[None] | None = None
        self.beats, self.host_beats = beat_door(), host_door()
        self._own = ""
        self._sent = 0
        self._denied_at = 0.0
        self._closing = False

    async def start(self) -> None:
        """Begin to beat and to listen."""
        self._generation = self._note_self().generation
        if self.embedded:
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
            self._sent += 1
            beat.leaving, beat.number = leaving, self._sent
            self._engine.bus.publish(BEAT_SUBJECT, codec.encode_raw(beat))

    def _note_self(self) -> Beat:
        beat = self._describe()
        self._members[beat.incarnation] = Member(beat, self._loop.time())
        self._lives.setdefault(base(beat.incarnation), set()).add(beat.incarnation)
        if beat.incarnation != self._own:
            before, self._own = self._own, beat.incarnation
            if before in self._members:
                self._call_dead(before, "it goes on as another incarnation")
        return beat

    def _on_beat(self, message: Message) -> None:
        beat = self.beats.read(message)
        if beat is None or beat.generation != self._generation:
            return
        if base(beat.incarnation) == base(self._own):
            if beat.leaving or number(beat.incarnation) > number(self._own):
                self._deny()  # nobody else knows better how this process is
            return
        known = self._members.get(beat.incarnation)
        was = None if known is None or known.dead else (known.beat.kinds, known.beat.warm)
        if known is None:
            if beat.incarnation in self._condemned or len(self._members) >= _MEMBERS_MAX:
                return
            known = self._members[beat.incarnation] = Member(beat, self._loop.time())
            self._lives.setdefault(base(beat.incarnation), set()).add(beat.incarnation)
            if beat.kinds and not beat.leaving:
                facts = {
                    "host": beat.host,
                    "incarnation": beat.incarnation,
                    "version": beat.version,
                    "kinds": beat.kinds,
                }
                self._on_event("node-joined", beat.name, beat.incarnation, **facts)
            if self._reaped(beat.incarnation, beat.host):
                self._call_dead(beat.incarnation, "its process ended", word=True)
        elif not known.take(beat, self._loop.time()):
            return
        for other in [other for other in self._members if base(other) == base(beat.incarnation)]:
            if number(other) < number(beat.incarnation):
                self._call_dead(other, "it goes on as another incarnation")
        if beat.leaving:
            self._call_dead(beat.incarnation, "left")
        elif not known.dead and was != (beat.kinds, beat.warm):
            self._on_change()

    def _reaped(self, incarnation: str, host: str) -> bool:
        return host in self._hosts and base(incarnation) in self._hosts[host].ended

    def _on_host(self, message: Message) -> None:
        beat = self.host_beats.read(message)
        if beat is None:
            return
        known = self._hosts.get(beat.host)
        if known is None and len(self._hosts) >= _MEMBERS_MAX:
            return
        if (
            known is not None
            and known.incarnation == beat.incarnation
            and beat.host not in self._hosts_heard_at
        ):
            self._on_event("host-returned", beat.host, _silence(known))
        for name in known.nodes if known is not None else ():
            if self._host_of.get(name) == beat.host:
                del self._host_of[name]
        self._host_of.update(dict.fromkeys(beat.nodes, beat.host))
        self._hosts[beat.host] = beat
        self._hosts_heard_at[beat.host] = self._loop.time()
        for one in self.standstills.note(beat.still, beat.killed, beat.host):
            what = {"seconds": one.seconds, "where": one.where, "agent": one.token}
            self._on_event(
                "node-stood-still", one.incarnation, one.incarnation, host=beat.host, **what
            )
        if beat.incarnation and (known is None or known.incarnation != beat.incarnation):
            self._on_event("host-joined", beat.host, beat.incarnation)
        ended = set(beat.ended)
        if base(self._own) in ended:
            self._deny()
        for incarnation, member in list(self._members.items()):
            its = incarnation != self._own and member.beat.host == beat.host
            if member.beat.supervised and its and base(incarnation) in ended:
                self._call_dead(incarnation, "its process ended", word=True)

    def _deny(self) -> None:
        """This node was called dead, and lives: say so, but not more often than several times a
        second."""
        now = self._loop.time()
        if not self._closing and now - self._denied_at > limits.BEAT_SECONDS / 4:
            self._denied_at = now
            self.beat()

    def proved(self, incarnation: str) -> None:
        """A node wrote into the log what only one that lives can write. What was said of it a while
        ago was wrong."""
        member, now = self._members.get(incarnation), self._loop.time()
        if (
            member is not None
            and member.called_at
            and not member.final
            and now - member.called_at > _OLD_WORD_SECONDS
        ):
            member.lift(now)
            self._on_change()

    def _look(self) -> None:
        """Note who was not heard for too long; forget the dead after a while."""
        now = self._loop.time()
        self._forgive(now)
        condemns = bool(self._describe().kinds)
        for incarnation, member in list(self._members.items()):
            silent = now - member.heard_at
            if (
                not member.dead
                and silent > limits.TAKEOVER_SECONDS
                and not (condemns and member.beat.kinds)
            ):
                member.dead = True
                self._died(incarnation)
            elif member.dead and silent > 60 * limits.TAKEOVER_SECONDS:
                del self._members[incarnation]
                lives = self._lives[base(incarnation)]
                lives.discard(incarnation)
                if not lives:
                    del self._lives[base(incarnation)]
        if self.hears_majority(0) or not any(beat.votes for beat in self._hosts.values()):
            for host, heard_at in list(self._hosts_heard_at.items()):
                if now - heard_at > limits.TAKEOVER_SECONDS:
                    del self._hosts_heard_at[host]
                    self._on_event(
                        "host-silent",
                        host,
                        _silence(self._hosts[host]),
                        seconds=round(now - heard_at, 1),
                    )

    def _forgive(self, now: float) -> None:
        """Nobody is silent because this process stood still: what was said meanwhile is heard in a
        moment.

        A process that was frozen wakes with every clock of silence run out, before it reads what
        has come. All silences go on where they were, and no further back: else a node that stands
        still often would suspect nobody.
        """
        elapsed, self._looked_at = now - self._looked_at, now
        missed = max(elapsed - 2 * limits.BEAT_SECONDS, 0.0)
        for member in self._members.values():
            member.heard_at = min(member.heard_at + missed, now)
        # who is cut off from the bus says nothing about hosts
        missed = missed if self._engine.connected() else elapsed
        self._hosts_heard_at = {
            host: min(at + missed, now) for host, at in self._hosts_heard_at.items()
        }

    def _call_dead(self, incarnation: str, why: str, word: bool = False) -> None:
        member = self._members[incarnation]
        was = member.dead
        if member.call_dead(self._loop.time(), word=word):
            if was:
                self._on_change()
            else:
                self._died(incarnation, why)

    def _died(self, incarnation: str, why: str = "") -> None:
        member = self._members[incarnation]
        if member.beat.kinds and why:
            self._on_event(
                "node-ended", member.beat.name, incarnation, host=member.beat.host, why=why
            )
        self._on_death(incarnation)
        self._on_change()

    # Questions ------------------------------------------------------------------------------------

    def live(self) -> list[Beat]:
        """The nodes that are there, oldest first."""
        if self.embedded:
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
        return [
            name for name, member in self._members.items() if member.beat.kinds and not member.dead
        ]

    def is_dead(self, incarnation: str, host: str) -> bool:
        """Whether its shards may be claimed: it was condemned, its host says that its process
        ended, or it was this one.

        A goodbye, and word of another life, are not enough: if they are true the node falls silent,
        and is condemned.
        """
        if self.embedded or base(incarnation) == base(self._own):
            return incarnation != self._describe().incarnation
        member = self._members.get(incarnation)
        if member is not None:
            return member.final or member.word
        return self._reaped(incarnation, host) or incarnation in self._condemned

    def is_heard(self, incarnation: str) -> bool:
        """Whether a node was heard a moment ago, and is not known to be dead."""
        member = self._members.get(incarnation)
        return member is not None and not member.dead and not self.silent(incarnation)

    def _is_there(self, incarnation: str) -> bool:
        heard_at = self._hosts_heard_at.get(self._host_of.get(base(incarnation), ""))
        return heard_at is not None and self._loop.time() - heard_at <= limits.TAKEOVER_SECONDS

    def _goes_on(self, incarnation: str) -> bool:
        return any(map(self.is_heard, self._lives.get(base(incarnation), ())))

    def silent(self, incarnation: str) -> bool:
        """Whether a node that is not known to be dead was not heard for so long that it is to be
        condemned."""
        member = self._members.get(incarnation)
        heard_at = self._started_at if member is None else member.heard_at
        return not self.embedded and self._loop.time() - heard_at > limits.SUSPECT_SECONDS

    def condemned(self, incarnation: str) -> None:
        """A node was condemned: it is not live, and never will be."""
        self._condemned[incarnation] = None
        member = self._members.get(incarnation)
        if member is not None:
            member.final, was, member.dead = True, member.dead, True
            if not was:
                self._died(incarnation, "condemned: it was silent, and proved nothing")
        self._on_change()

    def hears_majority(self, voters: int) -> bool:
        """Whether most of the hosts that vote, ``voters`` or more, are heard: if they have no
        leader, they soon will."""
        voting = {host: beat for host, beat in self._hosts.items() if beat.votes}
        oldest = self._loop.time() - limits.ISOLATE_SECONDS
        heard = [
            beat for host, beat in voting.items() if self._hosts_heard_at.get(host, oldest) > oldest
        ]
        # Who was removed is remembered here for a while: the others know how many there are now.
        size = max((beat.voters for beat in heard), default=0) or len(voting)
        return 2 * len(heard) > max(size, voters)

    def settled(self) -> bool:
        """Whether every live node has had the time to be heard at least once."""
        return self.embedded or self._loop.time() - self._started_at > 2.5 * limits.BEAT_SECONDS

    async def close(self) -> None:
        """Say goodbye, and stop."""
        self._closing = True
        if self._task is not None:
            await loops.stop(self._task)
            self.beat(leaving=True)
        for subscription in self._subscriptions:
            await subscription.close()


def _silence(beat: HostBeat) -> str:
    """The name of the silence that began after a host's beat: the same for all that heard about the
    same one last."""
    return f"{beat.incarnation}-{beat.number // _BEATS_TOGETHER}"
