"""Runs of whole clusters, each a function of a scenario and a seed, judged by all checkers.

A scenario is a small TOML file: how large the cluster is, what clients do, how the servers and the
network misbehave, and what is done to the hosts. Everything that it leaves open is drawn from the
seed.
"""

from __future__ import annotations

import asyncio
import logging
import tomllib
from collections import Counter
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from holdfast import limits
from holdfast.engines.base import Stored
from holdfast.errors import ConfigError, DataLoss, NotDone, Unknown
from holdfast.records import agent_record, packs
from holdfast.serving import complaints
from holdfast.testing import checkers, workloads
from holdfast.testing.history import Commit, History, Mark
from holdfast.testing.simulation import faults
from holdfast.testing.simulation.cluster import Process, SimCluster
from holdfast.testing.simulation.servers import Cell, Faults
from holdfast.testing.simulation.world import World
from holdfast.testing.workloads import Actor, Clerk

_SETTLES_ROUNDS = 5
_SMALL = {
    "PACK_AGENTS_MIN": 1,
    "LINGER_TURNS": 2,
    "PACKS_MAX": 8,
    "PACKED_SECONDS": 2.0,
    "MOVES_MAX": 3,
    "SWEEP_SECONDS": 3.0,
}


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What runs have in common. Times are in seconds; where there is a list, each run chooses one
    of it."""

    name: str = "scenario"
    hosts: int = 3
    shards: int = 16
    clients: int = 2
    agents: int = 6
    """Agents of each kind of work, so that several clients meet at one."""
    seconds: float = 20.0
    pause: tuple[float, float] = (0.02, 0.4)
    """What a client waits between two operations, from … to."""
    harm_pause: tuple[float, float] = (0.5, 4.0)
    clock_drift: float = 0.0
    work: dict[str, int] = {}
    """How many tasks of each client do what; see `holdfast.testing.workloads.KINDS`."""
    faults: dict[str, list[float]] = {}
    """See `holdfast.testing.simulation.servers.Faults`."""
    harm: dict[str, float] = {}
    """What is done to hosts, each with its weight; see `holdfast.testing.simulation.faults`."""
    harm_seconds: float = 8.0
    """How long each may last."""
    still_seconds: float = 10.0
    """For how long nothing may move at the end."""
    late_hosts: list[float] = []
    """Within so many seconds the hosts start for the first time, one by one, while clients already
    try to join."""
    unjudged: list[str] = []
    """Checkers that do not judge: what they look for is not promised where somebody lies."""

    def __post_init__(self) -> None:
        for what, names, known in (
            ("work", self.work, workloads.KINDS),
            ("faults", self.faults, tuple(Faults.__dataclass_fields__)),
            ("harm", self.harm, tuple(faults.ALL)),
            ("unjudged", self.unjudged, tuple(checker.__name__ for checker in checkers.ALL)),
        ):
            for name in names:
                if name not in known:
                    raise ConfigError(f"{what}: there is no {name!r}; there are {', '.join(known)}")


class Outcome(msgspec.Struct):
    """How a run ended. ``counts``: operations by kind and fate; ``seconds``: on the world's
    clock."""

    scenario: str
    seed: int
    violations: list[str]
    story: list[str]
    counts: dict[str, int]
    seconds: float
    digest: str = ""
    """Of the whole history; the same seed has the same."""

    def report(self) -> str:
        """What a person needs to understand a run that failed, and to see it again."""
        lines = [
            f"seed {self.seed} of {self.scenario}: {len(self.violations)} violations",
            "",
            *self.story,
            "",
        ]
        lines += [f"  {violation[:400]}" for violation in self.violations[:12]]
        return "\n".join(
            [*lines, "", f"again: holdfast simulate {self.scenario} --seed {self.seed}"]
        )


def load(name: str) -> Scenario:
    """A scenario by the name of one that comes with Holdfast, or by a file. Raises
    `ConfigError`."""
    path = Path(name)
    packaged = resources.files("holdfast.testing.simulation") / "scenarios" / f"{name}.toml"
    if path.suffix == ".toml" and path.exists():
        text = path.read_text()
    elif packaged.is_file():
        text = packaged.read_text()
    else:
        raise ConfigError(
            f"there is no scenario {name!r}: give a .toml file, or one of {', '.join(names())}"
        )
    try:
        return msgspec.convert({"name": name, **tomllib.loads(text)}, Scenario)
    except (msgspec.ValidationError, tomllib.TOMLDecodeError, TypeError) as error:
        raise ConfigError(f"scenario {name}: {error}") from None


def about(name: str) -> str:
    """What a scenario that comes with Holdfast is for: the first line of its file."""
    path = resources.files("holdfast.testing.simulation") / "scenarios" / f"{name}.toml"
    return path.read_text().partition("\n")[0].removeprefix("# ")


def names() -> list[str]:
    """The scenarios that come with Holdfast."""
    found = (resources.files("holdfast.testing.simulation") / "scenarios").iterdir()
    return sorted(
        entry.name.removesuffix(".toml") for entry in found if entry.name.endswith(".toml")
    )


def run(scenario: Scenario, seed: int) -> Outcome:
    """One run: start a cluster, work, do harm, heal, and judge."""
    with _packs(seed), _quiet():
        simulation = Simulation(scenario, seed)
        workloads._current.append(simulation)
        try:
            return simulation.run()
        finally:
            workloads._current.remove(simulation)
            simulation.world.close()


@contextmanager
def _packs(seed: int) -> Iterator[None]:
    """Small batches make packs too, and these are few and get old soon: in two of three runs."""
    changed = {} if seed % 3 == 0 else _SMALL
    before = {name: getattr(limits, name) for name in changed}
    for name, value in changed.items():
        setattr(limits, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(limits, name, value)


@contextmanager
def _quiet() -> Iterator[None]:
    """What simulated agents are told to do wrong is no news."""
    logger = logging.getLogger(complaints.__name__)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _bad(error: dict[str, Any]) -> bool:
    """Whether what a node's exception handler was called with may not be; a damaged replica is to
    be reported so."""
    return not (
        isinstance(error.get("exception"), DataLoss)
        and str(error["message"]).endswith("is repeated")
    )


class Simulation:
    """One run under way."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self.scenario = scenario
        self.world = World(seed)
        self.history = History(harmed=False)
        self.stopping = False
        self._calm_at = 0.0
        self._looked_at = 0.0
        self.problems: list[str] = []
        random = self._random = self.world.random
        faults = Faults(**{name: random.choice(values) for name, values in scenario.faults.items()})
        self.world.tell(f"{faults}")
        late = random.choice(scenario.late_hosts) if scenario.late_hosts else 0.0
        self.cluster = SimCluster(
            self.world, [Actor], scenario.hosts, faults, scenario.shards, scenario.clock_drift, late
        )
        self.cluster.servers.on_founding = self._founded
        self.cluster.servers.on_cell = self._watch

    def _founded(self, process: str, copies: int) -> None:
        self.history.founders.append(
            (process, not process.startswith("client"), copies, self.scenario.hosts)
        )

    def _watch(self, cell: Cell) -> None:
        def note(batch: list[Stored]) -> None:
            self.history.commits.append(Commit(self.world.now, cell.name, [*packs.unfold(batch)]))

        cell.on_commit.append(note)

    @property
    def now(self) -> float:
        """The world's clock, in seconds."""
        return self.world.now

    def mark(self, agent: str, epoch: int) -> None:
        """A handler's code runs in the process of the running loop."""
        loop: Any = asyncio.get_running_loop()
        self.history.marks.append(Mark(self.now, agent, epoch, loop.name))

    async def die(self, label: str) -> None:
        """End the process in whose handler this is called."""
        loop: Any = asyncio.get_running_loop()
        self.history.deaths[label] = self.history.deaths.get(label, 0) + 1
        host = next(
            (host for host, process in self.cluster.nodes.items() if process.loop is loop), ""
        )
        if host:
            self.cluster.kill_node(host)
        await asyncio.sleep(3600)

    async def stand_still(self, label: str) -> None:
        """Have the process stand still in whose handler this is called; its host ends it after a
        while."""
        loop: Any = asyncio.get_running_loop()
        says = self._random.random() < 0.8
        self.history.standstills.setdefault(label, []).append(says)
        host = next(
            (host for host, process in self.cluster.nodes.items() if process.loop is loop), ""
        )
        if host:
            self.cluster.stand_still(host, label, says)
        await asyncio.sleep(3600)

    # The run --------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """See the module."""
        clients = [
            self.cluster.client(self.cluster.hosts[n % self.scenario.hosts])
            for n in range(self.scenario.clients)
        ]
        if self._await(
            "no client joins", 90, lambda: all(client.node is not None for client in clients)
        ):
            clerks = self._begin(clients)
            self._harm(self.world.now + self.scenario.seconds)
            self._heal()
            calm_at = self.world.now
            self.world.run(3)
            self.stopping = True
            if self._await(
                "clients get no answer", 150, lambda: not any(clerk.running for clerk in clerks)
            ):
                # timers that are still to fire
                self.world.run(max(calm_at + 15 - self.world.now, 5))
                self._look(clients[0])
        problems = [*self.problems]
        for process in [*self.cluster.nodes.values(), *clients]:
            problems += [
                f"{process.name}: {error.get('exception')!r}"
                for error in process.loop.errors
                if _bad(error)
            ]
        for checker in (
            checkers.ALL if not self.problems else (checkers.one_line, checkers.one_actor)
        ):
            if checker.__name__ not in self.scenario.unjudged:
                problems += [f"{checker.__name__}: {text}" for text in checker(self.history)]
        counts = Counter(f"{op.kind} {op.fate}" for op in self.history.operations)
        return Outcome(
            self.scenario.name,
            self.world.seed,
            problems,
            self.world.story,
            dict(sorted(counts.items())),
            self.world.now,
            self.history.digest(),
        )

    def _await(self, problem: str, seconds: float, condition: Any) -> bool:
        if self.world.run(seconds, condition):
            return True
        self.problems.append(f"{problem} within {seconds} s")
        return False

    def _begin(self, clients: list[Process]) -> list[Clerk]:
        clerks = []
        for number, client in enumerate(clients):
            assert client.node is not None
            clerk = Clerk(
                self, client.node, f"c{number}", self.scenario.agents, self.scenario.pause,
                Random(self._random.getrandbits(64)),
            )  # fmt: skip
            clerks.append(clerk)
            for kind, count in self.scenario.work.items():
                for _ in range(count):
                    client.spawn(clerk.begin(kind))
        return clerks

    def _harm(self, end: float) -> None:
        kinds, weights = list(self.scenario.harm), list(self.scenario.harm.values())
        while self.world.now < end:
            self.world.run(self._random.uniform(*self.scenario.harm_pause))
            if not kinds or self.world.now >= end:
                continue
            host, kind = (
                self._random.choice(self.cluster.hosts),
                self._random.choices(kinds, weights)[0],
            )
            seconds = self._random.uniform(0.5, self.scenario.harm_seconds)
            self._calm_at = max(self._calm_at, self.world.now + seconds + 3)
            self.history.harmed = self.history.harmed or kind != faults.stop_node.__name__
            faults.ALL[kind](self.cluster, self._random, host, seconds)

    def _heal(self) -> None:
        """Wait until the last harm has passed, and have the servers and the network behave from now
        on."""
        self.world.run(max(self._calm_at - self.world.now, 0))
        self.cluster.servers.faults = Faults()
        self.world.tell("all is well again")

    # The end --------------------------------------------------------------------------------------

    def _look(self, client: Process) -> None:
        """Take down what the checkers need to know of the end."""
        epochs = self._epochs()
        if not self._await("inboxes are not handled", 120, self._quiet):
            return
        # what was handled last is on its way into the log: until then readers see the state before
        self.world.run(1)
        ended: list[bool] = []
        client.spawn(self._told(self._read(client, ended)))
        if not self._await("agents do not answer at the end", 120, lambda: bool(ended)):
            return
        # A shard that was moved in the midst of the harm may be moved once more, for balance, a
        # while later.
        for _ in range(_SETTLES_ROUNDS):
            self.world.run(self.scenario.still_seconds)
            before, epochs = epochs, self._epochs()
            self.history.epochs_at_rest = before, epochs
            if before == epochs:
                break
        nodes = [
            process.node for process in self.cluster.nodes.values() if process.node is not None
        ]
        for number in range(self.scenario.shards):
            self.history.owners[str(number)] = [
                node.name for node in nodes if number in node._runtime.shards
            ]
        for node in nodes:
            self._compare(node)

    def _epochs(self) -> dict[str, int]:
        return {
            subject: sequence
            for cell in self.cluster.servers.cells.values()
            for subject, sequence in cell.committed.newest.items()
            if subject.endswith(".epoch")
        }

    async def _told(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:
            self.problems.append(f"reading what came of it: {error!r}")

    async def _read(self, client: Process, ended: list[bool]) -> None:
        node = client.node
        assert node is not None
        cells = self.cluster.servers.cells.values()
        there = packs.unfold(stored for cell in cells for stored in cell.committed.records.values())
        found = {stored.subject.rpartition("/")[2] for stored in there if ".st." in stored.subject}
        agents = sorted(
            found.union(op.agent for op in self.history.operations if op.kind != "deadly")
        )
        for agent in agents:
            while True:
                try:
                    self.history.tapes[agent] = await node.agent(Actor, agent).ask(Actor.tape)
                    break
                except (NotDone, Unknown):
                    await asyncio.sleep(0.2)
        for letter in await node.dead_letters.all():
            self.history.bury(letter)
        ended.append(True)

    def _quiet(self) -> bool:
        """Whether no agent has anything in hand."""
        if self.world.now < self._looked_at + 1:
            return False
        self._looked_at = self.world.now
        return not any(
            shard._held
            or any(
                a.inbox or a.mailbox or a.running or a.pending for a in shard.activations.values()
            )
            for process in self.cluster.nodes.values()
            if process.node is not None
            for shard in process.node._runtime.shards.values()
        )

    def _compare(self, node: Any) -> None:
        """What an owner has in memory, and what the log has."""
        for shard in node._runtime.shards.values():
            prefix = f"{shard.prefix}.st."
            records = sorted(
                self.cluster.servers.cells[shard.cell].committed.records.values(),
                key=lambda one: one.sequence,
            )
            found = {
                one.subject.removeprefix(prefix): one
                for one in packs.unfold(records)
                if one.subject.startswith(prefix)
            }
            if {token: one.sequence for token, one in found.items()} != shard.index:
                self.history.differences.append(
                    f"{node.name}: the index of shard {shard.number} is not the log's"
                )
            for token, activation in shard.activations.items():
                if activation.loaded and activation.sequence:
                    stored = found.get(token)
                    record = (
                        None
                        if stored is None
                        else agent_record.decode(stored.payload, stored.subject)
                    )
                    state = record and (
                        record.state or self.cluster.servers.blobs.get(record.blob, b"")
                    )
                    if activation.pending or state != activation.state_bytes:
                        self.history.differences.append(
                            f"{node.name}: {token} is not as the log has it"
                        )
