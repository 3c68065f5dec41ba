"""Simulated servers: replicated cells with leaders, lag and elections, and a bus. What the real ones do, and no better.

A cell commits in one order, by a leader that reaches a majority. What it committed reaches each replica in that order,
but late; reads and tails are answered by any replica, so they may be stale. An append may be lost, may arrive after its
sender gave up, and its answer may be lost. A leader that is cut off keeps what it is given: it commits it when the cut is
mended before another is elected, and forgets it otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from holdfast.engines.base import Message, Record, Stored, matcher, matches
from holdfast.errors import Conflict, Fenced, HoldfastError, NoQuorum
from holdfast.testing.loop import SimLoop
from holdfast.testing.world import World

Answer = Callable[[range | HoldfastError], None]


@dataclass
class Faults:
    """How often the servers and the network misbehave, as probabilities for each message, and by how many seconds."""

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
    lag_seconds: float = 0.01


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
                del self.records[self.newest.pop(name)]
            return
        for stored in operation:
            old = self.newest.get(stored.subject)
            if old is not None:
                del self.records[old]
            self.newest[stored.subject] = stored.sequence
            self.records[stored.sequence] = stored
            self.last = stored.sequence


class Cell:
    """One replicated log."""

    def __init__(self, servers: Servers, name: str, leader: str) -> None:
        self.servers = servers
        self.name = name
        self.leader = leader
        self.term = 1
        self.committed = Replica()
        self.operations: list[list[Stored] | tuple[str, int]] = []
        self.replicas = {host: Replica() for host in servers.hosts}
        self.waiting: list[tuple[Sequence[Record], Answer]] = []
        self.on_commit: list[Callable[[list[Stored]], None]] = []
        self._election_at = 0.0
        self._watchers: dict[str, list[tuple[Callable[[str], bool], Callable[[], None]]]] = {
            h: [] for h in servers.hosts
        }

    def propose(self, records: Sequence[Record], answer: Answer) -> None:
        """What the leader does with a batch that arrived."""
        if not self.servers.majority(self.leader):
            self.waiting.append((records, answer))
            return
        answer(self._commit(records))

    def _commit(self, records: Sequence[Record]) -> range | HoldfastError:
        newest = self.committed.newest
        for record in records:
            if record.expect is not None and newest.get(record.expect.subject, 0) != record.expect.sequence:
                fence = any(one.expect is not None and one.expect.subject != one.subject for one in records)
                return (Fenced if fence else Conflict)(f"{self.name}: {record.expect}")
        first = self.committed.last + 1
        batch = [Stored(record.subject, first + n, record.payload) for n, record in enumerate(records)]
        self._operate(batch)
        for watch in self.on_commit:
            watch(batch)
        return range(first, first + len(records))

    def purge(self, subject: str, before: int) -> None:
        """Forget records."""
        self._operate((subject, before))

    def _operate(self, operation: list[Stored] | tuple[str, int]) -> None:
        self.operations.append(operation)
        self.committed.apply(operation)
        self.replicas[self.leader].applied = max(0, self.replicas[self.leader].applied)
        self._catch_up(self.leader)
        world, lag = self.servers.world, self.servers.faults.lag_seconds
        for host in self.servers.hosts:
            if host != self.leader:
                world.later(world.random.uniform(0, lag), lambda host=host: self._catch_up(host))  # type: ignore[misc]

    def _catch_up(self, host: str) -> None:
        replica = self.replicas[host]
        if host != self.leader and not (self.servers.up(host) and self.servers.world.connected(self.leader, host)):
            return
        subjects: list[str] = []
        while replica.applied < len(self.operations):
            operation = self.operations[replica.applied]
            replica.apply(operation)
            if isinstance(operation, list):
                subjects += [stored.subject for stored in operation]
        if subjects:
            waiting, self._watchers[host] = self._watchers[host], []
            for watcher in waiting:
                if any(map(watcher[0], subjects)):
                    watcher[1]()
                else:
                    self._watchers[host].append(watcher)

    def when_news(self, host: str, wanted: Callable[[str], bool], wake: Callable[[], None]) -> None:
        """Call once when this host's replica has a new record whose subject is wanted."""
        self._watchers[host].append((wanted, wake))

    def look(self) -> None:
        """Several times a second: replicas catch up, a leader without a majority is replaced after a while."""
        servers = self.servers
        if servers.majority(self.leader):
            self._election_at = 0.0
            waiting, self.waiting = self.waiting, []
            for records, answer in waiting:
                answer(self._commit(records))
            for host in servers.hosts:
                self._catch_up(host)
            return
        if not self._election_at:
            self._election_at = servers.world.now + servers.world.random.uniform(4, 9)
        elif servers.world.now >= self._election_at:
            able = [host for host in servers.hosts if servers.majority(host)]
            if able:
                self._election_at = 0.0
                self.waiting = []
                self.leader = servers.world.random.choice(able)
                self.term += 1
                self._catch_up(self.leader)
                servers.world.tell(f"{self.leader} leads {self.name}")


class Interest:
    """A subscription, as the servers know it."""

    def __init__(self, subject: str, queue: str, host: str, loop: SimLoop, callback: Callable[[Message], None]) -> None:
        self.subject = subject
        self.wild = "*" in subject or ">" in subject
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
        self.interests: list[Interest] = []
        self.down: set[str] = set()
        self.on_cell: Callable[[Cell], None] = lambda _: None
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
            self.cells[name] = cell = Cell(self, name, self.hosts[len(self.cells) % len(self.hosts)])
            for replica in (cell.committed, *cell.replicas.values()):
                replica.last = first_sequence - 1
            self.on_cell(self.cells[name])
        return self.cells[name]

    def entry(self, host: str) -> str:
        """The server that a process on this host is connected to, empty where it reaches none."""
        if self.up(host):
            return host
        return next((other for other in self.hosts if self.up(other) and self.world.connected(host, other)), "")

    def append(self, host: str, cell: Cell, records: Sequence[Record], answer: Answer) -> None:
        """Carry a batch from a process on a host to the leader, and the answer back, as far as they get."""
        world, faults, random = self.world, self.faults, self.world.random
        server = self.entry(host)
        if not server:
            answer(NoQuorum("no server is reached"))
            return
        if random.random() < faults.append_refused or not self.up(cell.leader):
            world.later(0.001, lambda: answer(NoQuorum(f"no server leads {cell.name}")))
            return
        lost = random.random() < faults.answer_lost

        def back(outcome: range | HoldfastError) -> None:
            leader, at = cell.leader, self.entry(host)
            if not lost and at and world.reaches(leader, at):
                world.later(random.uniform(0.0003, 0.003), lambda: answer(outcome))

        def arrive() -> None:
            if self.up(cell.leader) and world.reaches(server, cell.leader):
                if random.random() < faults.append_twice:
                    cell.propose(records, lambda _: None)
                cell.propose(records, back)

        if random.random() >= faults.append_lost:
            late = random.random() < faults.append_late
            world.later(random.uniform(0, faults.late_seconds) if late else random.uniform(0.0003, 0.003), arrive)

    def _look(self) -> None:
        for cell in self.cells.values():
            cell.look()
        self.interests = [one for one in self.interests if one.open and not one.loop.dead]
        self.world.later(0.5, self._look)

    # The bus ---------------------------------------------------------------------------------------------------------

    def publish(self, host: str, message: Message) -> None:
        """Carry a message to whoever wants it and is reached."""
        world, faults, random = self.world, self.faults, self.world.random
        source = self.entry(host)
        if not source:
            return
        queues: dict[str, list[Interest]] = {}
        for number, one in enumerate(self.interests):
            if not (one.subject == message.subject or (one.wild and matches(one.subject, message.subject))):
                continue
            at = self.entry(one.host) if one.open and not one.loop.dead else ""
            if at and world.reaches(source, at):
                queues.setdefault(one.queue or f"#{number}", []).append(one)
        if not queues and message.reply:
            nobody = Message(message.reply, "", b"", no_responders=True)
            for one in self.interests:
                if one.host == host and matches(one.subject, nobody.subject):
                    world.later(0.001, lambda one=one: one.deliver(nobody))  # type: ignore[misc]
            return
        for members in queues.values():
            one = random.choice(members)
            for _ in range(2 if random.random() < faults.bus_twice else 1):
                if random.random() >= faults.bus_lost:
                    delay = random.uniform(0.0002, faults.bus_delay_seconds)
                    world.later(delay, lambda one=one: one.deliver(message))  # type: ignore[misc]
