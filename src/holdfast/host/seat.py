"""A host's seat: whether its server votes, under which name, and how it finds the others. It outlives the host's process.

What a host is told on its command line is true at its first start only: later the cohort's record says who votes (see
`holdfast.cluster.cohort`), and a command may have changed it while this host was away. So each host keeps a small file
beside its data, follows the record, and does its own part of it. Whatever is not its own part (who is removed, whose
replicas move) is done by the command, step by step.

A server's name in the engine ends in an id that is made with the host's directory. The engine counts replicas and votes
by that name. A host that lost its disk must not vote as the server that still had it; and a name that was removed may
not come back for minutes. With a new directory, or a new vote, comes a new name.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import shutil
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import msgspec

from holdfast import chance, files, limits
from holdfast.cluster import cohort
from holdfast.cluster.cohort import Cohort, HostEntry
from holdfast.engines.nats.engine import NatsEngine
from holdfast.errors import ConfigError, DataLoss, HoldfastError, InvalidName, NoResponders, NotDone, Unknown
from holdfast.host import addresses
from holdfast.host.directory import STATE_FILE, explain
from holdfast.host.facts import HostFacts
from holdfast.host.nats_server import NatsServer
from holdfast.host.service import ask_host, ask_hosts
from holdfast.host.system import System, peer_id

_LEFT: Final = "jetstream-left"
"""What a server kept when it lost its vote; the next one to be put aside replaces it."""

_LOOK_SECONDS: Final = 1.0
_UNFIT_SECONDS: Final = 0.25
_ELECTION_SECONDS: Final = 10.0
"""For so long what cannot be read is no trouble: it comes back by itself."""
_JOIN_SECONDS: Final = 20.0
_PEEK_SECONDS: Final = 2.0

_logger = logging.getLogger(__name__)

Restart = Callable[[Callable[[], None]], Awaitable[None]]
"""Ends the server, calls what it is given, and starts the server again."""


class State(msgspec.Struct):
    """What is in the file. ``sequence``: of the newest record seen, so that a stale one is known for that."""

    identity: str
    votes: bool
    address: str
    others: list[str] = []
    urls: list[str] = []
    founders: list[str] = []
    """The hosts that the command line's routes lead to."""
    sequence: int = 0
    record: Cohort | None = None
    """The newest record seen: what this host knows of the others while no majority answers."""


class Seat:
    """See the module. ``join``: HOST:PORT of a host of the cluster, empty for a founder."""

    def __init__(self, host: str, server: NatsServer, join: str, restart: Restart) -> None:
        self.host = host
        self.trouble = ""
        """Why it is not as the record says, empty where it is."""
        self._server = server
        self._join = join
        self._restart = restart
        self._path = Path(server.settings.directory) / STATE_FILE
        self._state = State("", True, "")
        self._changing = asyncio.Lock()

    # Before the server starts --------------------------------------------------------------------------------------

    async def take(self) -> None:
        """Find out what part this host has, before its server starts. Raises `ConfigError`, `NoQuorum`, `DataLoss`."""
        if self._path.exists():
            try:
                self._state = msgspec.json.decode(self._path.read_bytes(), type=State)
            except msgspec.MsgspecError as error:
                raise ConfigError(
                    f"{self._path} cannot be read ({error}): restore it, or move the directory away"
                ) from None
            self._miss_store()
            await self._look_before()
        elif self._join:
            await self._learn_from(self._join)
        else:
            self._state = State(_identity(), True, self._address(""))
        try:
            self._save()
            self._dress()
        except OSError as error:
            raise ConfigError(explain(error, self._path.parent)) from None

    def _miss_store(self) -> None:
        """A store that was removed takes its server's name along. Raises `DataLoss` where nobody else has what was in it."""
        state, store = self._state, self._path.parent / "jetstream"
        if state.votes and state.sequence and not (store.is_dir() and any(store.iterdir())):
            if not (self._server.settings.routes or state.others):
                raise DataLoss(f"{store} is gone: restore a backup, or remove {self._path.parent} to begin anew")
            self._state = msgspec.structs.replace(state, identity=_identity())

    async def _learn_from(self, join: str) -> None:
        security = self._server.settings.security
        scheme = "tls" if security.tls_cert else "nats"
        engine = NatsEngine([f"{scheme}://{join}"], **msgspec.structs.asdict(security))
        await engine.open()
        try:
            record, sequence = await self._joinable(engine, join)
            if self.host in record.hosts:
                try:
                    await ask_host(engine.bus, self.host, "facts", HostFacts)
                except NoResponders:
                    pass  # the same host, without its disk
                else:
                    raise ConfigError(f"there is a host {self.host!r} in the cluster: give another --name")
        finally:
            await engine.close()
        address = self._address(join)
        urls = [entry.url for entry in record.hosts.values()]
        self._state = State(_identity(), False, address, record.routes(), urls, sequence=sequence)

    async def _joinable(self, engine: NatsEngine, join: str) -> tuple[Cohort, int]:
        """The record of a cluster that may just be founded."""
        try:
            async with asyncio.timeout(_JOIN_SECONDS):
                while True:
                    record, sequence = await _read(engine)
                    if record is not None and not any(entry.route for entry in record.hosts.values()):
                        raise ConfigError(f"{join} is a single host, and does not grow: start a cluster with --cohort")
                    if record is not None:
                        return record, sequence
                    await asyncio.sleep(_UNFIT_SECONDS)
        except TimeoutError:
            raise ConfigError(
                f"{join} belongs to no cluster that can be joined: its servers have no record of a cohort. "
                "For servers of your own, give --servers URL"
            ) from None

    async def _look_before(self) -> None:
        """A vote that was taken away while this host was gone is given up before its server speaks to anybody."""
        if not self._state.votes or not self._state.urls:
            return
        own = self._server.settings
        engine = NatsEngine(
            [url for url in self._state.urls if url != self._server.url], **msgspec.structs.asdict(own.security)
        )
        try:
            async with asyncio.timeout(_PEEK_SECONDS):
                await engine.open()
                record, sequence = await _read(engine)
        except (TimeoutError, HoldfastError):
            return
        finally:
            await engine.close()
        if record is None or sequence < self._state.sequence or record.target:
            return  # while the cohort changes, the command sees to it
        if not record.votes(self.host):
            self._state = msgspec.structs.replace(self._state, identity=_identity(), votes=False, sequence=sequence)

    def _address(self, join: str) -> str:
        """Where others reach this host: where it listens, or else the address that faces them."""
        listen = self._server.settings.listen
        if listen not in addresses.EVERYWHERE:
            return listen
        for route in self._server.settings.routes:
            name = addresses.bare(route.rpartition(":")[0])
            if route.endswith(f":{self._server.settings.cluster_port}") and _is_here(name):
                return name
        host, _, port = join.rpartition(":")
        if not host:
            return socket.gethostname()
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((addresses.bare(host), int(port)))
            return str(probe.getsockname()[0])

    def _save(self) -> None:
        files.write_private(self._path, msgspec.json.encode(self._state).decode())

    def _dress(self) -> None:
        """The server as the file says."""
        state = self._state
        self._server.name = f"{self.host}-{state.identity}"
        self._server.settings = msgspec.structs.replace(
            self._server.settings, others=tuple(state.others), votes=state.votes
        )
        kept = self._path.parent / "jetstream"
        if not state.votes and kept.exists():
            left = self._path.parent / _LEFT
            shutil.rmtree(left, ignore_errors=True)
            kept.rename(left)

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
        """How many copies of everything there are to be at least, by the newest record that this host ever saw; 0 for none."""
        record = self.record
        return 0 if record is None else min(len(names) for names in (record.members, record.target) if names)

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
        return HostEntry(self._server.name, route, f"{scheme}://{addresses.join(address, own.port)}")

    # Afterwards ----------------------------------------------------------------------------------------------------

    async def run(self, engine: NatsEngine, system: System) -> None:
        """Follow the record, for ever."""
        fails_since: float | None = None
        while True:
            try:
                fits = await self._fit(engine, system)
                fails_since, self.trouble = None, "" if fits else self.trouble
            except (HoldfastError, OSError) as error:
                fits, now = False, time.monotonic()
                fails_since = now if fails_since is None else fails_since
                text = f"{type(error).__name__}: {error}"
                if not isinstance(error, (NotDone, Unknown)) or now - fails_since > _ELECTION_SECONDS:
                    self.trouble = text
                _logger.debug("the seat of %s: %s", self.host, text)
            await asyncio.sleep(_LOOK_SECONDS if fits else _UNFIT_SECONDS)

    async def _fit(self, engine: NatsEngine, system: System) -> bool:
        """Do one thing that brings this host nearer to what the record says; return whether nothing was to be done."""
        record, sequence = await _read(engine)
        if record is None:
            return await self._found(engine)
        async with self._changing:
            if sequence < self._state.sequence:
                return False  # a replica that lags
            self._remember(record, sequence)
            votes = self._server.settings.votes
            known = record.hosts.get(self.host)
            if votes and not record.votes(self.host) and not record.target:
                await self._give_up(system)
                await self._sit(False)
                return False
            if not votes and self.host in (record.target or record.members) and self.host in record.members:
                await self._sit(True)
                return False
            if known == self.entry:
                return True
            lost = votes and known is not None and known.server != self.entry.server
            if lost and known is not None and not await self._succeed(system, known.server):
                return False
            await cohort.change(engine, cohort.CELL, self._entered)
            return False

    def _entered(self, record: Cohort | None) -> Cohort:
        assert record is not None
        return record.with_host(self.host, self.entry)

    def _remember(self, record: Cohort, sequence: int) -> None:
        if self._server.settings.routes and not self._state.founders:
            self._state.founders = sorted(record.members)
        others = [
            entry.route
            for name, entry in sorted(record.hosts.items(), key=lambda host: (not record.votes(host[0]), host[0]))
            if entry.route and name != self.host and name not in self._state.founders
        ]
        urls = [entry.url for name, entry in sorted(record.hosts.items()) if name != self.host]
        seen = msgspec.structs.replace(self._state, sequence=sequence, others=others, urls=urls, record=record)
        if seen != self._state:
            self._state = seen
            self._save()

    async def _found(self, engine: NatsEngine) -> bool:
        """Write the first record, once all founders are there."""
        founders = self._server.settings.routes
        if not self._state.votes:
            return False
        await engine.ensure_cells([cohort.CELL], len(founders) or 1)
        hosts = {self.host: self.entry}
        if founders:
            found = await ask_hosts(engine.bus, "facts", HostFacts, wait_seconds=0.5)
            hosts = {
                name: facts.entry
                for name, facts in found.items()
                if isinstance(facts, HostFacts) and facts.entry is not None and len(facts.cohort) == len(founders)
            }
            if len(hosts) != len(founders):
                self.trouble = f"of {len(founders)} founders {len(hosts)} are there"
                return False
        first = Cohort(sorted(hosts), hosts)
        await cohort.change(engine, cohort.CELL, lambda record: record or first)
        return False

    async def _succeed(self, system: System, former: str) -> bool:
        """Take the place of this host's former server, whose disk is lost: nobody else has that name."""
        voters = await system.voters()
        ids = {peer.peer: peer for peer in voters.peers}
        own = ids.get(peer_id(self._server.name))
        if own is None or not voters.leader:
            self.trouble = "its new server has no vote yet"
            return False
        lost = ids.get(peer_id(former))
        if lost is None:
            return True
        if 0 < lost.active < limits.TAKEOVER_SECONDS * 1_000_000_000:
            self.trouble = f"its former server {former} is still there: do two hosts have the name {self.host!r}?"
            return False
        await system.remove(former)
        return True

    async def _give_up(self, system: System) -> None:
        """Take the vote from the own server, where it has one that the record does not give it."""
        voters = await system.voters()
        own = self._server.name
        others = [peer for peer in voters.peers if peer.name != own and not peer.offline]
        if not voters.leader or not others:
            return  # it was taken from it already
        if voters.leader == own:
            await system.lead_elsewhere(others[0].name)
        await system.remove(own)

    # What the command asks for -------------------------------------------------------------------------------------

    async def vote(self, sequence: int) -> HostEntry:
        """Have the server vote, for a record of this sequence or newer. Return how it is called now."""
        async with self._changing:
            self._state.sequence = max(self._state.sequence, sequence)
            if not self._server.settings.votes:
                await self._sit(True)
            return self.entry

    async def stand_down(self, sequence: int) -> HostEntry:
        """Have the server give up its vote, which others took from it already. Return how it is called now."""
        async with self._changing:
            self._state.sequence = max(self._state.sequence, sequence)
            if self._server.settings.votes:
                await self._sit(False)
            return self.entry

    async def _sit(self, votes: bool) -> None:
        self._state.votes = votes
        if not votes:
            self._state.identity = _identity()
        self._save()
        await self._restart(self._dress)


async def _read(engine: NatsEngine) -> tuple[Cohort | None, int]:
    try:
        return await cohort.read(engine, cohort.CELL)
    except InvalidName:  # there is no registry yet
        return None, 0


def _identity() -> str:
    return f"{chance.bits(24):06x}"


def _is_here(name: str) -> bool:
    """Whether an address belongs to this machine."""
    try:
        found = socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM)
        for family, kind, _, _, address in found:
            with socket.socket(family, kind) as probe:
                probe.bind((ipaddress.ip_address(address[0]).compressed, 0))
                return True
    except (OSError, ValueError):
        return False
    return False
