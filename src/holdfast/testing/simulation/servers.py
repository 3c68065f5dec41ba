"""Simulated servers: replicated cells with leaders, lag and elections, and a bus. What the real
ones do, and no better.

A cell commits in one order, by a leader that reaches a majority. What it committed reaches each
replica in that order, but late; reads and tails are answered by any replica, so they may be stale.
An append may be lost, may arrive after its sender gave up, and its answer may be lost. A leader
that is cut off keeps what it is given: it commits it when the cut is mended before another is
elected, and forgets it otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from holdfast.engines.base import Message, Record, Stored, matcher
from holdfast.errors import Conflict, Fenced, HoldfastError, NoQuorum
from holdfast.records import subjects
from holdfast.testing.simulation.loop import SimLoop
from holdfast.testing.simulation.world import World

Answer = Callable[[range | HoldfastError], None]


@dataclass
class Faults:
    """How often the servers and the network misbehave, as probabilities for each message, and by
    how many seconds."""

    append_lost: float = 0.0
    append_late: float = 0.0
    answer_lost: float = 0.0
    append_refused: float = 0.0
    append_twice: float = 0.0
    """A batch that arrives twice, and whose sender hears of the refusal of the second copy only."""
    late_seconds: float = 12.0
    bus_lost: float = 0.0
    bus_twice: float = 0.0
    bus_delay_seconds: float = 0.002
    bus_late: float = 0.0
    """A message that is held somewhere, for up to ``late_seconds``."""
    lag_seconds: float = 0.01
    read_seconds: float = 0.002
    """How long a read takes at most, and each chunk of a tail."""
    chunk_records: float = 500


@dataclass
class Replica:
    """What one host has of a cell: the newest record of each subject, as far as it has heard."""

    applied: int = 0
    newest: dict[str, int] = field(default_factory=dict)
    records: dict[int, Stored] = field(default_factory=dict)
    last: int = 0

    def apply(self, operation: list[Stored] | tuple[str, int]) -> None:
        """Take the next operation: a batch, or a purge (filter, before which sequence)."""
        self.applied += 1
        if isinstance(operation, tuple):
            subject, before = operation
            wanted = matcher((subject,))
            for name in [n for n, s in self.newest.items() if s < before and wanted(n)]:
                self.records.pop(self.newest.pop(name), None)
            return
        for stored in operation:
            old = self.newest.get(stored.subject)
            if old is not None:
                self.records.pop(old, None)
            self.newest[stored.subject] = stored.sequence
            self.records[stored.sequence] = stored
            self.last = stored.sequence


class Watcher:
    """Somebody who waits for new records of some subjects."""

    def __init__(self, subjects: tuple[str, ...], wake: Callable[[], None]) -> None:
        self.wanted = matcher(subjects)
        self.tokens = list(
            dict.fromkeys(subject.split(".", 2)[1].replace(">", "*") for subject in subjects)
        )
        self.wake = wake


class Cell:
    """One replicated log."""

    def __init__(self, servers: Servers, name: str, leader: str) -> None:
        self.servers = servers
        self.name = name
        self.leader = leader
        self.term = 1
        self.committed = Replica()
        self.operations: list[list[Stored] | tuple[str, int]] = []
        self._times: list[float] = []
        self._lags: dict[str, float] = {}
        """How far each replica is behind, as a share of the most that it may be."""
        self.replicas = {host: Replica() for host in servers.hosts}
        self.waiting: list[tuple[Sequence[Record], Answer]] = []
        self.on_commit: list[Callable[[list[Stored]], None]] = []
        self.on_refusal: list[Callable[[list[Record], HoldfastError], None]] = []
        self._election_at = 0.0
        self._watchers: dict[str, dict[str, dict[Watcher, None]]] = {
            host: {} for host in servers.hosts
        }
        """Per replica, and per second token of what is wanted: who waits for news."""

    def propose(self, records: Sequence[Record], answer: Answer) -> None:
        """What the leader does with a batch that arrived."""
        if not self.servers.majority(self.leader):
            self.waiting.append((records, answer))
            return
        answer(self._commit(records))

    def _commit(self, records: Sequence[Record]) -> range | HoldfastError:
        newest = self.committed.newest
        for record in records:
            if (
                record.expect is not None
                and newest.get(record.expect.subject, 0) != record.expect.sequence
            ):
                fence = any(
                    one.expect is not None and one.expect.subject != one.subject for one in records
                )
                error = (Fenced if fence else Conflict)(f"{self.name}: {record.expect}")
                for hear in self.on_refusal:
                    hear(list(records), error)
                return error
        first = self.committed.last + 1
        batch = [
            Stored(record.subject, first + n, record.payload) for n, record in enumerate(records)
        ]
        self._operate(batch)
        for watch in self.on_commit:
            watch(batch)
        return range(first, first + len(records))

    def purge(self, subject: str, before: int) -> None:
        """Forget records."""
        self._operate((subject, before))

    def _operate(self, operation: list[Stored] | tuple[str, int]) -> None:
        self.operations.append(operation)
        self._times.append(self.servers.world.now)
        self.committed.apply(operation)
        self._catch_up(self.leader)
        for host in self.servers.hosts:
            if host != self.leader:
                lag = self._lags.get(host, 0.0) * self.servers.faults.lag_seconds
                self.servers.world.later(lag, lambda host=host: self._catch_up(host))  # type: ignore[misc]

    def first_since(self, time: float) -> int:
        """The sequence of the first record that was committed at this time or later, or of the next
        one."""
        first = self.committed.last + 1
        for operation, at in zip(reversed(self.operations), reversed(self._times), strict=True):
            if at < time:
                break
            if isinstance(operation, list):
                first = operation[0].sequence
        return first

    def _catch_up(self, host: str) -> None:
        replica = self.replicas[host]
        lag = (
            0.0
            if host == self.leader
            else self._lags.get(host, 0.0) * self.servers.faults.lag_seconds
        )
        until = self.servers.world.now - lag + 1e-9
        if host != self.leader and not (
            self.servers.up(host) and self.servers.world.connected(self.leader, host)
        ):
            return
        subjects: list[str] = []
        while replica.applied < len(self.operations) and self._times[replica.applied] <= until:
            operation = self.operations[replica.applied]
            replica.apply(operation)
            if isinstance(operation, list):
                subjects += [stored.subject for stored in operation]
        watchers = self._watchers[host]
        for subject in subjects:
            for token in (subject.split(".", 2)[1], "*"):
                for watcher in list(watchers.get(token, ())):
                    if watcher.wanted(subject):
                        self.forget(host, watcher)
                        watcher.wake()

    def watch(self, host: str, watcher: Watcher) -> None:
        """Wake the watcher once, when this host's replica has a new record that it wants."""
        for token in watcher.tokens:
            self._watchers[host].setdefault(token, {})[watcher] = None

    def forget(self, host: str, watcher: Watcher) -> None:
        """Wake it no more."""
        for token in watcher.tokens:
            self._watchers[host][token].pop(watcher, None)

    def look(self) -> None:
        """Several times a second: replicas catch up, a leader without a majority is replaced after
        a while."""
        servers = self.servers
        if servers.majority(self.leader):
            self._election_at = 0.0
            waiting, self.waiting = self.waiting, []
            for records, answer in waiting:
                answer(self._commit(records))
            for host in servers.hosts:
                if host not in self._lags or servers.world.random.random() < 0.1:
                    self._lags[host] = servers.world.random.random()
                self._catch_up(host)
            return
        if not self._election_at:
            self._election_at = servers.world.now + servers.world.random.uniform(4, 9)
        elif servers.world.now >= self._election_at:
            self._election_at = 0.0
            self.elect()

    def elect(self) -> None:
        """Another server leads, where one has a majority. What the old one kept, and its answers
        under way, are lost."""
        servers = self.servers
        able = [host for host in servers.hosts if host != self.leader and servers.majority(host)]
        if able:
            self.waiting = []
            self.leader = servers.world.random.choice(able)
            self.term += 1
            self._catch_up(self.leader)
            servers.world.tell(f"{self.leader} leads {self.name}")


class Interest:
    """A subscription, as the servers know it."""

    def __init__(
        self,
        subject: str,
        queue: str,
        host: str,
        loop: SimLoop,
        callback: Callable[[Message], None],
    ) -> None:
        self.subject = subject
        self.wanted = matcher((subject,))
        self.queue = queue
        self.host = host
        self.loop = loop
        self.callback = callback
        self.open = True

    def deliver(self, message: Message) -> None:
        """Hand it to the process."""
        if self.open and not self.loop.dead:
            self.loop.call_soon(self._call, message)

    def _call(self, message: Message) -> None:
        if self.open:
            self.callback(message)


class Servers:
    """One server per host, with all cells on all of them."""

    def __init__(self, world: World, hosts: Sequence[str], faults: Faults | None = None) -> None:
        self.world = world
        self.hosts = list(hosts)
        self.faults = faults or Faults()
        self.cells: dict[str, Cell] = {}
        self.blobs: dict[str, bytes] = {}
        self.interests: dict[str, list[Interest]] = {}
        """By subject; those with wildcards are under the empty one."""
        self.down: set[str] = set()
        self.muted: set[str] = set()
        """Hosts whose messages do not leave them, although their batches do."""
        self.planned: list[tuple[str, str, float]] = []
        """What is to happen to the next batch with a record whose subject ends so: ``lost``,
        ``late``, ``answer-lost``."""
        self.on_cell: Callable[[Cell], None] = lambda _: None
        self.on_founding: Callable[[str, int], None] = lambda _process, _copies: None
        world.later(0.5, self._look)

    def up(self, host: str) -> bool:
        """Whether the host's server runs, and is not frozen."""
        return host not in self.down

    def majority(self, host: str) -> bool:
        """Whether this host's server reaches a majority of all, itself included."""
        if not self.up(host):
            return False
        reached = sum(self.up(other) and self.world.connected(host, other) for other in self.hosts)
        return reached * 2 > len(self.hosts)

    def make(self, name: str, first_sequence: int = 1) -> Cell:
        """The cell, made where it is missing."""
        if name not in self.cells:
            self.cells[name] = cell = Cell(
                self, name, self.hosts[len(self.cells) % len(self.hosts)]
            )
            for replica in (cell.committed, *cell.replicas.values()):
                replica.last = first_sequence - 1
            self.on_cell(self.cells[name])
        return self.cells[name]

    def entry(self, host: str) -> str:
        """The server that a process on this host is connected to, empty where it reaches none."""
        if self.up(host):
            return host
        return next(
            (other for other in self.hosts if self.up(other) and self.world.connected(host, other)),
            "",
        )

    def append(self, host: str, cell: Cell, records: Sequence[Record], answer: Answer) -> None:
        """Carry a batch from a process on a host to the leader, and the answer back, as far as they
        get."""
        world, faults, random = self.world, self.faults, self.world.random
        server = self.entry(host)
        if not server:
            answer(NoQuorum("no server is reached"))
            return
        if random.random() < faults.append_refused or not self.up(cell.leader):
            world.later(0.001, lambda: answer(NoQuorum(f"no server leads {cell.name}")))
            return
        plan, plan_seconds = self._plan(records)
        lost = random.random() < faults.answer_lost or plan == "answer-lost"

        def back(outcome: range | HoldfastError) -> None:
            leader, term = cell.leader, cell.term

            def come() -> None:
                at = self.entry(host)
                if cell.term == term and at and world.reaches(leader, at):
                    answer(outcome)

            if not lost:
                world.later(random.uniform(0.0003, 0.003), come)

        def arrive() -> None:
            if self.up(cell.leader) and world.reaches(server, cell.leader):
                if random.random() < faults.append_twice:
                    cell.propose(records, lambda _: None)
                cell.propose(records, back)

        if plan == "late":
            world.later(plan_seconds, arrive)
        elif random.random() >= faults.append_lost and plan != "lost":
            late = random.random() < faults.append_late
            world.later(
                random.uniform(0, faults.late_seconds) if late else random.uniform(0.0003, 0.003),
                arrive,
            )

    def _plan(self, records: Sequence[Record]) -> tuple[str, float]:
        for place, (end, what, seconds) in enumerate(self.planned):
            if any(record.subject.endswith(end) for record in records):
                del self.planned[place]
                return what, seconds
        return "", 0.0

    def damage(self, host: str) -> None:
        """An agent's record at rest in this host's replica is lost, or a byte of it is another; no
        server notices."""
        random = self.world.random
        cell = random.choice(list(self.cells.values()))
        replica, recent = cell.replicas[host], cell.first_since(self.world.now - 1.0)
        agents = [
            one
            for one in replica.records.values()
            if ".st." in one.subject or subjects.is_pack(one.subject)
        ]
        there = [stored for stored in agents if stored.sequence < recent]
        if not there:
            return
        stored = random.choice(there)
        if random.random() < 0.5:
            del replica.records[stored.sequence], replica.newest[stored.subject]
        else:
            payload = bytearray(stored.payload)
            payload[random.randrange(len(payload))] ^= 1 << random.randrange(8)
            replica.records[stored.sequence] = stored._replace(payload=bytes(payload))
        self.world.tell(f"the replica of {host} is damaged at {stored.sequence} {stored.subject}")

    def _look(self) -> None:
        for cell in self.cells.values():
            cell.look()
        for subject, interests in list(self.interests.items()):
            self.interests[subject] = [one for one in interests if one.open and not one.loop.dead]
            if not self.interests[subject]:
                del self.interests[subject]
        self.world.later(0.5, self._look)

    # The bus --------------------------------------------------------------------------------------

    def subscribe(self, interest: Interest) -> None:
        """Note that a process wants messages."""
        wild = "*" in interest.subject or ">" in interest.subject
        self.interests.setdefault("" if wild else interest.subject, []).append(interest)

    def _interested(self, subject: str) -> list[Interest]:
        exact = self.interests.get(subject, [])
        return exact + [one for one in self.interests.get("", ()) if one.wanted(subject)]

    def publish(self, host: str, message: Message) -> None:
        """Carry a message to whoever wants it and is reached."""
        world, faults, random = self.world, self.faults, self.world.random
        source = self.entry(host)
        if not source:
            return
        queues: dict[str, list[Interest]] = {}
        for number, one in enumerate(self._interested(message.subject)):
            at = self.entry(one.host) if one.open and not one.loop.dead else ""
            if at and world.reaches(source, at) and (at == source or source not in self.muted):
                queues.setdefault(one.queue or f"#{number}", []).append(one)
        if not queues and message.reply:
            nobody = Message(message.reply, "", b"", no_responders=True)
            for one in self._interested(nobody.subject):
                if one.host == host:
                    world.later(0.001, lambda one=one: one.deliver(nobody))  # type: ignore[misc]
            return
        for members in queues.values():
            one = random.choice(members)
            for _ in range(2 if random.random() < faults.bus_twice else 1):
                if random.random() >= faults.bus_lost:
                    late = faults.bus_late and random.random() < faults.bus_late
                    delay = random.uniform(
                        0.0002, faults.late_seconds if late else faults.bus_delay_seconds
                    )
                    world.later(delay, lambda one=one: one.deliver(message))  # type: ignore[misc]
