"""A host's seat: whether its server votes, under which name, and how it finds the others. It
outlives the host's process.

What a host is told on its command line is true at its first start only: later the cohort's record
says who votes (see `holdfast.cluster.facts.cohort`), and a command may have changed it while this
host was away. So each host keeps a small file beside its data, follows the record, and does its own
part of it: it also takes the vote from its own former server. Whatever is not its own part (who
else is removed, whose replicas move) is done by the command, step by step.

A server's name in the engine ends in an id that is made with the host's directory. The engine
counts replicas and votes by that name. A host that lost its disk must not vote as the server that
still had it; and a name that was removed may not come back for minutes. With a new directory, or a
new vote, comes a new name.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from holdfast import chance, limits
from holdfast.cluster.facts import cohort, founding
from holdfast.cluster.facts.cohort import Cohort, HostEntry
from holdfast.engines.nats.engine import NatsEngine
from holdfast.errors import ConfigError, HoldfastError, NoQuorum, NotDone, Unknown
from holdfast.host import addresses, state
from holdfast.host.directory import explain
from holdfast.host.rpc.facts import HostFacts
from holdfast.host.rpc.service import ask_hosts
from holdfast.host.server.nats_server import NatsServer
from holdfast.host.server.server_admin import ServerAdmin, peer_id
from holdfast.host.state import State
from holdfast.host.voting import arrival

_LOOK_SECONDS: Final = 1.0
_UNFIT_SECONDS: Final = 0.25
_ELECTION_SECONDS: Final = 10.0
"""For so long what cannot be read is no trouble: it comes back by itself."""
_PEEK_SECONDS: Final = 2.0

_logger = logging.getLogger(__name__)

Restart = Callable[[Callable[[], None]], Awaitable[None]]
"""Ends the server, calls what it is given, and starts the server again."""


Say = Callable[[str, dict[str, Any]], None]
"""Hears of an event."""

MayLeave = Callable[[str], Awaitable[None]]
"""Raises `NotDone` where the others cannot do without a server."""

NOTHING_LEFT: Final = (
    "this host belonged to a cluster, and nothing of that is left on any host that answers. It "
    "waits for the others, and founds no empty one. Start the hosts that have data; or remove all "
    "hosts' directories, to begin anew or to restore a backup"
)


class Voter:
    """See the module. ``join``: HOST:PORT of a host of the cluster, empty for a founder."""

    def __init__(
        self, host: str, server: NatsServer, join: str, restart: Restart, say: Say
    ) -> None:
        self.host = host
        self.trouble = ""
        """Why it is not as the record says, empty where it is."""
        self._server = server
        self._join = join
        self._restart = restart
        self._say = say
        self._empty_since = 0.0
        self._said = False
        self._directory = Path(server.settings.directory)
        self._state = State("", True, "")
        self._changing = asyncio.Lock()

    # Before the server starts ---------------------------------------------------------------------

    async def take(self) -> None:
        """Find out what part this host has, before its server starts. Raises `ConfigError`,
        `NoQuorum`, `DataLoss`."""
        kept = state.load(self._directory)
        if kept is not None:
            founds = bool(self._server.settings.routes)
            state.check(self._directory, self.host, founds, bool(self._join))
            kept = state.adopt(self._directory, self.host, kept)
            if not state.check_store(self._directory, kept, founds):
                # a store that was removed takes its server's name along
                kept.identity, kept.named = _identity(), False
            self._state = kept
        elif self._join:
            own = self._server.settings
            record, sequence = await arrival.learn(self.host, own.security, self._join)
            urls = [entry.url for entry in record.hosts.values()]
            address = arrival.address_of(own, self._join)
            self._state = State(
                _identity(), False, address, record.routes(), urls, sequence=sequence
            )
        else:
            new = State(_identity(), True, arrival.address_of(self._server.settings, ""))
            self._state = state.adopt(self._directory, self.host, new)
        try:
            if kept is not None:
                await self._look_before()
            self._save()
            self._dress()
        except OSError as error:
            raise ConfigError(explain(error, self._directory)) from None

    async def _look_before(self) -> None:
        """What the others know is learned before its server speaks to anybody.

        A vote that was taken away while this host was gone is given up, and so is a store that
        another server of this host replaced. Raises `ConfigError` where a server of its name is up,
        as this is a copy of that one's directory, and where its server would meet those of another
        cluster.
        """
        urls = [url for url in self._state.urls if url != self._server.url]
        if not urls:
            return
        record, sequence, up, own = None, 0, "", f"{self.host}-{self._state.identity}"
        engine = NatsEngine(urls, self._server.settings.security)
        try:
            async with asyncio.timeout(_PEEK_SECONDS):
                await engine.open()
                # The connection of a machine that fell is kept for a while, and nothing answers
                # there.
                with suppress(TimeoutError, HoldfastError):
                    async with asyncio.timeout(_PEEK_SECONDS / 2):
                        up = await arrival.server_up(engine, self.host)
                record, sequence = await arrival.read(engine)
        except (TimeoutError, HoldfastError):
            pass  # they may not be there either
        finally:
            await engine.close()
        if up == own:
            raise ConfigError(
                f"there is a host {self.host!r} in the cluster already, and {self._directory} is a "
                "copy of its directory: end that host first, or give an empty --dir and another "
                "--name"
            )
        if record is None:
            return
        if state.is_foreign(record, self.record):
            routes = (*self._server.settings.routes, *self._state.others)
            if shared := await arrival.same_places(
                [entry.route for entry in record.hosts.values()], routes
            ):
                raise ConfigError(state.foreign_text(self._directory, shared))
            return
        if sequence < self._state.sequence or record.target:
            return  # while the cohort changes, the command sees to it
        was = state.server_in(self.record, self.host)
        if self._state.votes and not record.votes(self.host):
            new = {"identity": _identity(), "votes": False, "named": False}
            self._state = msgspec.structs.replace(self._state, sequence=sequence, **new)
        elif (
            self._state.votes and was == own and state.server_in(record, self.host) not in ("", own)
        ):
            state.put_aside(self._directory)
            self._state = msgspec.structs.replace(self._state, identity=_identity(), named=False)

    def _save(self) -> None:
        state.save(self._directory, self._state)

    def _dress(self) -> None:
        """The server as the file says. Raises `ConfigError` where a store cannot be put aside."""
        own = self._state
        self._server.name = f"{self.host}-{own.identity}"
        self._server.settings = msgspec.structs.replace(
            self._server.settings, others=tuple(own.others), votes=own.votes
        )
        if not own.votes or state.server_of(self._directory) not in ("", self._server.name):
            state.put_aside(self._directory)
        if own.votes and state.is_empty(self._directory):
            state.note_server(self._directory, self._server.name)
            own.named = True
            self._save()

    @property
    def record(self) -> Cohort | None:
        """The newest record of the cohort that this host ever saw."""
        return self._state.record

    @property
    def sequence(self) -> int:
        """Of that record."""
        return self._state.sequence

    @property
    def voters(self) -> int:
        """How many hosts vote, by the record; 0 before it was read."""
        return 0 if self.record is None else max(len(self.record.members), len(self.record.target))

    @property
    def copies(self) -> int:
        """How many copies of everything there are to be at least, by the newest record that this
        host ever saw; 0 for none."""
        record = self.record
        return (
            0
            if record is None
            else min(len(names) for names in (record.members, record.target) if names)
        )

    @property
    def votes(self) -> bool:
        """Whether the server is set up to vote."""
        return self._server.settings.votes

    @property
    def entry(self) -> HostEntry:
        """This host, as the record has it."""
        own = self._server.settings
        address = self._state.address
        clustered = own.routes or own.others
        scheme = "tls" if own.security.tls_cert else "nats"
        route = addresses.join(address, own.cluster_port) if clustered else ""
        return HostEntry(
            self._server.name, route, f"{scheme}://{addresses.join(address, own.port)}"
        )

    @property
    def founded(self) -> bool:
        """Whether this host ever saw a cluster: then it founds none, whatever was removed."""
        return bool(self._state.founded)

    def saw_cluster(self) -> None:
        """There is a cluster, and this host belongs to it. Raises `OSError`."""
        if not self.founded:
            seen = msgspec.structs.replace(self._state, founded=True)
            state.save(self._directory, seen)
            self._state = seen

    # Afterwards -----------------------------------------------------------------------------------

    async def run(self, engine: NatsEngine, system: ServerAdmin, may_leave: MayLeave) -> None:
        """Follow the record, for ever."""
        fails_since: float | None = None
        while True:
            try:
                fits = await self._fit(engine, system, may_leave)
                fails_since, self.trouble = None, "" if fits else self.trouble
            except (HoldfastError, OSError) as error:
                fits, now = False, time.monotonic()
                fails_since = now if fails_since is None else fails_since
                text = f"{type(error).__name__}: {error}"
                if (
                    not isinstance(error, (NotDone, Unknown))
                    or now - fails_since > _ELECTION_SECONDS
                ):
                    self.trouble = text
                _logger.debug("the seat of %s: %s", self.host, text)
            await asyncio.sleep(_LOOK_SECONDS if fits else _UNFIT_SECONDS)

    async def _fit(self, engine: NatsEngine, system: ServerAdmin, may_leave: MayLeave) -> bool:
        """Do one thing that brings this host nearer to what the record says; return whether nothing
        was to be done."""
        record, sequence = await arrival.read(engine)
        if record is None:
            return await self._found(engine)
        self._empty_since = 0.0
        async with self._changing:
            if state.is_foreign(record, self.record):
                self.trouble = state.foreign_text(
                    self._directory, (entry.url for entry in record.hosts.values())
                )
                return False
            if sequence < self._state.sequence:
                return False  # a replica that lags
            self._remember(record, sequence)
            votes = self._server.settings.votes
            known = record.hosts.get(self.host)
            if votes and not record.votes(self.host) and self._is_not_itself():
                return False
            if votes and not record.votes(self.host) and not record.target:
                await self._give_up(system, may_leave)
                await self._sit(False)
                return False
            if (
                not votes
                and self.host in (record.target or record.members)
                and self.host in record.members
            ):
                await self._sit(True)
                return False
            if known == self.entry:
                if not self.founded and await founding.look(engine) is not None:
                    self.saw_cluster()  # it has no node that would tell
                if (
                    votes
                    and not self._state.named
                    and state.name_old_store(self._directory, self._server.name)
                ):
                    self._state.named = True
                    self._save()
                return True
            lost = votes and known is not None and known.server != self.entry.server
            if (
                lost
                and known is not None
                and not await self._succeed(system, known.server, may_leave)
            ):
                return False
            await cohort.change(engine, cohort.CELL, self._entered)
            return False

    def _is_not_itself(self) -> bool:
        """Whether it has another host's store, or has no other voter beside it: then it puts
        nothing aside."""
        owner, own = self._state.owner, self._server.settings
        if owner and owner != self.host:
            self.trouble = f"this is the directory of host {owner}: give --name {owner}"
        elif not own.routes and not own.others:
            members = ", ".join(self.record.members if self.record is not None else ())
            self.trouble = (
                f"by the record the only copy belongs to {members}, not to {self.host}: give that "
                "--name"
            )
        else:
            return False
        return True

    def _entered(self, record: Cohort | None) -> Cohort:
        assert record is not None
        return record.with_host(self.host, self.entry)

    def _remember(self, record: Cohort, sequence: int) -> None:
        if self._server.settings.routes and not self._state.founders:
            self._state.founders = sorted(record.members)
        others = [
            entry.route
            for name, entry in sorted(
                record.hosts.items(), key=lambda host: (not record.votes(host[0]), host[0])
            )
            if entry.route and name != self.host and name not in self._state.founders
        ]
        urls = [entry.url for name, entry in sorted(record.hosts.items()) if name != self.host]
        seen = msgspec.structs.replace(
            self._state, sequence=sequence, others=others, urls=urls, record=record
        )
        if seen != self._state:
            self._state = seen
            self._save()

    async def _found(self, engine: NatsEngine) -> bool:
        """Write the first record, once all founders are there."""
        founders = self._server.settings.routes
        if not self._state.votes:
            return False
        if self.founded and await founding.look(engine) is None:
            self.trouble = NOTHING_LEFT
            self._empty_since = self._empty_since or time.monotonic()
            if time.monotonic() - self._empty_since > _ELECTION_SECONDS and not self._said:
                self._said = True
                self._say(
                    "nothing-left", {"server": self._server.settings.name, "text": NOTHING_LEFT}
                )
            return False
        await engine.ensure_cells([cohort.CELL], len(founders) or 1)
        hosts = {self.host: self.entry}
        if founders:
            found = await ask_hosts(engine.bus, "facts", HostFacts, wait_seconds=0.5)
            hosts = {
                name: facts.entry
                for name, facts in found.items()
                if isinstance(facts, HostFacts)
                and facts.entry is not None
                and len(facts.cohort) == len(founders)
            }
            if len(hosts) != len(founders):
                self.trouble = f"of {len(founders)} founders {len(hosts)} are there"
                return False
        first = Cohort(sorted(hosts), hosts)
        await cohort.change(engine, cohort.CELL, lambda record: record or first)
        return False

    async def _succeed(self, system: ServerAdmin, former: str, may_leave: MayLeave) -> bool:
        """Take the place of this host's former server, whose disk is lost: nobody else has that
        name.

        Its own server, which is new, may not know yet that the former one votes.
        """
        voters = await system.voters_as_led()
        ids = {peer.peer: peer for peer in voters.peers}
        own = ids.get(peer_id(self._server.name))
        if own is None or not voters.leader:
            self.trouble = "its new server has no vote yet"
            return False
        lost = ids.get(peer_id(former))
        if lost is None:
            return True
        if 0 < lost.active < limits.TAKEOVER_SECONDS * 1_000_000_000:
            self.trouble = (
                f"its former server {former} is still there: do two hosts have the name "
                f"{self.host!r}?"
            )
            return False
        await may_leave(former)
        await system.remove(former)
        return True

    async def _give_up(self, system: ServerAdmin, may_leave: MayLeave) -> None:
        """Take the vote from the own server, where it has one that the record does not give it.

        The server that leads knows. Raises `NotDone` where the others cannot do without it, or none
        of them is heard.
        """
        voters = await system.voters_as_led()
        own = self._server.name
        if peer_id(own) not in {peer.peer for peer in voters.peers}:
            return  # it was taken from it already
        others = [peer for peer in voters.peers if peer.name != own and not peer.offline]
        if not others:
            raise NoQuorum("no other server that votes is heard")
        await may_leave(own)
        if voters.leader == own:
            await system.lead_elsewhere(others[0].name)
        await system.remove(own)

    # What the command asks for --------------------------------------------------------------------

    async def vote(self, sequence: int) -> HostEntry:
        """Have the server vote, for a record of this sequence or newer. Return how it is called
        now."""
        async with self._changing:
            self._state.sequence = max(self._state.sequence, sequence)
            if not self._server.settings.votes:
                await self._sit(True)
            return self.entry

    async def stand_down(self, sequence: int) -> HostEntry:
        """Have the server give up its vote, which others took from it already. Return how it is
        called now."""
        async with self._changing:
            self._state.sequence = max(self._state.sequence, sequence)
            if self._server.settings.votes:
                await self._sit(False)
            return self.entry

    async def _sit(self, votes: bool) -> None:
        if not votes:
            state.room_aside(self._directory)  # refused before anything is changed
        self._state.votes = votes
        if not votes:
            self._state.identity, self._state.named = _identity(), False
        self._save()
        await self._restart(self._dress)


def _identity() -> str:
    return f"{chance.bits(24):06x}"
