"""Chaos on a real cluster: real servers and processes on a network that can be cut, and every
promise judged at the end.

The same work and the same checkers as in simulations. What happens inside a process is not replayed
from a seed here; the seed decides what is done to the cluster, when, and what clients ask for.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any, Final

import msgspec

from holdfast import chance, files
from holdfast.errors import ConfigError, NoResponders, NotDone, StorageFailed, Unknown
from holdfast.host.local_cluster import LocalCluster
from holdfast.node.node import Node
from holdfast.testing import checkers, workloads
from holdfast.testing.chaos import faults, handler_log, measures, nuisance
from holdfast.testing.chaos.client import ClientSettings, Said
from holdfast.testing.chaos.faults import Harms
from holdfast.testing.chaos.measures import Harmed
from holdfast.testing.chaos.network import Network, choose
from holdfast.testing.chaos.observer import Observer
from holdfast.testing.history import History
from holdfast.testing.workloads import Actor

WORK: Final = {
    "adds": 2,
    "retries": 1,
    "slows": 1,
    "spreads": 1,
    "nests": 1,
    "timers": 1,
    "edges": 1,
    "bads": 1,
    "sends": 2,
    "peeks": 1,
    "reads": 2,
}
"""What each client does, where nothing else is said: how many tasks do what."""

CHECKERS: Final = tuple(
    checker for checker in checkers.ALL if checker is not checkers.memory_is_the_log
)
"""From outside a process its memory is not seen."""

LOOPS_MAX: Final = 2
"""Processes that a handler that loops for ever may run in, for one message."""

_ANSWER_SECONDS: Final = 150.0
"""An operation's own deadline is 100 s at most."""

_SETTLE_SECONDS: Final = 60.0


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """A run. Times are in seconds; pairs are from … to. ``seed``: None draws one."""

    seconds: float = 60.0
    seed: int | None = None
    hosts: int = 3
    harms: tuple[str, ...] = ()
    """Kinds of `holdfast.testing.chaos.faults.KINDS`; empty for all that work here."""
    work: dict[str, int] = msgspec.field(default_factory=lambda: dict(WORK))
    agents: int = 8
    pause: tuple[float, float] = (0.02, 0.4)
    """What a task of a client waits between two operations."""
    harm_pause: tuple[float, float] = (0.5, 4.0)
    harm_seconds: tuple[float, float] = (0.5, 8.0)
    together: int = 1
    """How many harms may be under way at once."""
    harm_count: int | None = None
    """End after so many harms, and not after ``seconds``."""
    rest_seconds: float = 5.0
    """How long nothing may move at the end."""
    network: str = "auto"
    directory: str = ""
    """Where everything lies; empty for a new temporary one."""

    def __post_init__(self) -> None:
        if self.hosts not in (3, 5):
            raise ConfigError(
                f"chaos needs 3 or 5 hosts, not {self.hosts}: a single one cannot survive anything"
            )
        faults.parse(self.harms)
        for name, count in self.work.items():
            if name not in workloads.KINDS or count < 0:
                raise ConfigError(
                    f"there is no work {name}={count}; there are {', '.join(workloads.KINDS)}"
                )
        for name in ("pause", "harm_pause", "harm_seconds"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise ConfigError(f"{name} is from … to, not {low} to {high}")
        if self.seconds <= 0 or self.agents < 1 or self.together < 1:
            raise ConfigError("seconds, agents and together must be positive")


class Outcome(msgspec.Struct):
    """How a run ended."""

    seed: int
    network: str
    violations: list[str]
    operations: dict[str, dict[str, int]]
    """By kind and fate."""
    harms: list[Harmed]
    stalls: dict[str, float]
    """Per kind of operation the longest time in seconds without any success."""
    not_available: dict[str, str]
    """Kinds of harm that could not be done on this machine, and why."""
    seconds: float
    directory: str


class Chaos:
    """One run. ``report`` hears of each thing that is done; see `run`."""

    def __init__(self, settings: Settings, report: Callable[[str], None]) -> None:
        self.settings = settings
        self.seed = chance.bits(32) if settings.seed is None else settings.seed
        self.history = History(commits_are_all=False)
        self.harmed: list[Harmed] = []
        self.problems: list[str] = []
        self._lost_disks: set[str] = set()
        """Hosts whose files were removed, so that they are to end."""
        self.not_available: dict[str, str] = {}
        self.began = time.monotonic()
        self._report = report
        self._random = Random(self.seed)
        self._clients: dict[str, asyncio.subprocess.Process] = {}
        self._stopped = False

    async def run(self) -> Outcome:
        """Start a cluster, work, do harm, heal, and judge. Raises `ConfigError` where there is no
        start."""
        directory = Path(
            self.settings.directory or tempfile.mkdtemp(prefix="holdfast-chaos-")
        ).resolve()
        files.make_directory(directory / "marks")
        files.make_directory(directory / "loops")
        if any((directory / "marks").iterdir()):
            raise ConfigError(
                f"{directory} is of another run: chaos needs a new cluster, in an empty directory"
            )
        wanted = self.settings.harms or tuple(faults.KINDS)
        network = choose(self.settings.network, self.settings.hosts, "disk-full" in wanted)
        lacking = [
            kind
            for kind, able in {
                "disk-full": network.fills,
                "renew-certificates": network.renews,
            }.items()
            if not able
        ]
        kinds = [kind for kind in wanted if kind not in lacking]
        for kind in set(lacking).intersection(wanted):
            self.not_available[kind] = "it needs Linux, root and network namespaces"
        async with self._cluster(network, directory) as (cluster, node, observer):
            await self._begin(network, directory)
            reading = [asyncio.create_task(self._read(*each)) for each in self._clients.items()]
            await self._all_work(reading)
            self.began = time.monotonic()
            await self._harm(kinds, Harms(cluster, network, node, self._random))
            ended = time.monotonic()
            await self._heal(cluster, node)
            await self._stop_clients(reading)
            await self._look(node, observer)
        self.history.marks, self.history.deaths = handler_log.read(directory / "marks")
        for label, processes in nuisance.loops(directory / "loops").items():
            if processes > LOOPS_MAX:
                self.problems.append(
                    f"poison: the handler that loops ran in {processes} processes for {label}"
                )
        return self._judge(network, directory, ended)

    @asynccontextmanager
    async def _cluster(
        self, network: Network, directory: Path
    ) -> AsyncIterator[tuple[LocalCluster, Node, Observer]]:
        app = directory / "app.py"
        app.write_text(
            handler_log.APP.format(marks=str(directory / "marks"), loops=str(directory / "loops"))
        )
        try:
            await network.open(directory)
            cluster = LocalCluster(
                directory,
                [f"{app}:Actor,Nuisance"],
                hosts=self.settings.hosts,
                report=self._hear,
                places=network.places,
                log=directory / "processes.log",
            )
            security = network.places[0].security
            self._report("starting a cluster")
            try:
                await cluster.start()
                async with Node.join(cluster.urls, security=security) as node:
                    await node.ready(_SETTLE_SECONDS)
                    observer = Observer(cluster.urls, security)
                    try:
                        await observer.start(node.manifest.cells)
                        yield cluster, node, observer
                    finally:
                        await self._kill_clients()
                        await observer.close()
            finally:
                self._stopped = True
                await cluster.kill()
        finally:
            await network.close()

    def _hear(self, event: str, facts: dict[str, Any]) -> None:
        error = str(facts.get("error", ""))
        if event == "node-ended" and "NodeFailed" in error:
            self.problems.append(
                f"a part of node {facts['node']} ended with an error of ours: {error}"
            )
        lost = facts.get("host") in self._lost_disks and error.startswith(StorageFailed.__name__)
        if event == "failed" and not self._stopped and not lost:
            self.problems.append(f"host {facts['host']} ended: {error}")

    # Clients --------------------------------------------------------------------------------------

    async def _begin(self, network: Network, directory: Path) -> None:
        """A client on each host's side. Its name is the host's, and its operations' labels begin
        with it."""
        for number, place in enumerate(network.places):
            settings = ClientSettings(
                os.getpid(),
                f"h{number + 1}",
                [place.url, *place.others],
                place.security,
                self.settings.work,
                self.settings.agents,
                self.settings.pause,
                self._random.getrandbits(32),
            )
            with (directory / "clients.log").open("ab") as log:
                client = await asyncio.create_subprocess_exec(
                    *(*place.command, sys.executable, "-m", "holdfast.testing.chaos.client"),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=log,
                    start_new_session=True,
                )
            assert client.stdin is not None
            client.stdin.write(msgspec.json.encode(settings) + b"\n")
            self._clients[settings.name] = client

    async def _all_work(self, reading: list[asyncio.Task[None]]) -> None:
        """Wait until every client had its first answer."""
        end = time.monotonic() + _SETTLE_SECONDS
        while len({op.client for op in self.history.operations}) < self.settings.hosts:
            if time.monotonic() > end or any(task.done() for task in reading):
                raise ConfigError(
                    "the clients had no answer, before any harm was done: see clients.log"
                )
            await asyncio.sleep(0.05)

    async def _read(self, name: str, client: asyncio.subprocess.Process) -> None:
        assert client.stdout is not None
        decode = msgspec.json.Decoder(Said).decode
        while line := await client.stdout.readline():
            self.history.operations.append(decode(line).operation(name))
        if await client.wait() != 0 and not self._stopped:
            self.problems.append("a client ended with an error, which clients.log tells")

    async def _stop_clients(self, reading: list[asyncio.Task[None]]) -> None:
        self._report("waiting for the last answers")
        for client in self._clients.values():
            if client.stdin is not None:
                client.stdin.close()
        _, late = await asyncio.wait(reading, timeout=_ANSWER_SECONDS)
        if late:
            self.problems.append(
                f"settles: {len(late)} clients had no answer {_ANSWER_SECONDS} s after the last "
                "harm"
            )
        self._stopped = True

    async def _kill_clients(self) -> None:
        self._stopped = True
        for client in self._clients.values():
            if client.returncode is None:
                client.kill()
                await client.wait()

    # Harm -----------------------------------------------------------------------------------------

    async def _harm(self, kinds: list[str], doing: Harms) -> None:
        settings, random = self.settings, self._random
        running: set[asyncio.Task[None]] = set()
        end = self.began + settings.seconds
        while True:
            await asyncio.sleep(random.uniform(*settings.harm_pause))
            done = (
                time.monotonic() >= end
                if settings.harm_count is None
                else len(self.harmed) >= settings.harm_count
            )
            if done:
                break
            while len(running) >= settings.together:
                await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            kind = random.choice(kinds)
            hosts = doing.free_hosts(kind)
            seconds = random.uniform(*settings.harm_seconds)
            if hosts:
                task = asyncio.create_task(self._do(doing, kind, random.choice(hosts), seconds))
                running.add(task)
                task.add_done_callback(running.discard)
                if settings.together == 1:
                    await task
        if running:
            await asyncio.wait(running)

    async def _do(self, doing: Harms, kind: str, host: str, seconds: float) -> None:
        at = time.monotonic()
        harmed = Harmed(kind, host, at - self.began)
        if kind == "lose-disk":
            self._lost_disks.add(host)
        self._report(f"{kind} {host}")
        if await doing.do(kind, host, seconds):
            harmed.seconds = time.monotonic() - at
            self.harmed.append(harmed)

    async def _heal(self, cluster: LocalCluster, node: Node) -> None:
        self._report("healing")
        for host in cluster.hosts:
            try:
                await cluster.start_host(host)
            except ConfigError as error:
                self.problems.append(f"settles: {error}")
        try:
            await node.ready(_SETTLE_SECONDS)
        except NoResponders as error:
            self.problems.append(f"settles: {error}")

    # The end --------------------------------------------------------------------------------------

    async def _look(self, node: Node, observer: Observer) -> None:
        """Take down what the checkers need to know of the end."""
        self._report("reading what there is")
        history = self.history
        end = time.monotonic() + _SETTLE_SECONDS
        while True:
            await self._read_tapes(node)
            missing = [*checkers.inbox_complete(history), *checkers.timer_once(history)]
            if not missing or time.monotonic() > end:
                break
            await asyncio.sleep(0.5)
        while (behind := await observer.behind()) and time.monotonic() < end:
            await asyncio.sleep(0.5)
        self.problems += [f"settles: {text}" for text in behind]
        self._report("watching it rest")
        end = time.monotonic() + _SETTLE_SECONDS
        while True:
            before = dict(observer.epochs)
            await asyncio.sleep(self.settings.rest_seconds)
            if before == observer.epochs or time.monotonic() > end:
                break
        history.epochs_at_rest = before, dict(observer.epochs)
        there = {member.incarnation for member in node.members()}
        for shard, owner in observer.owners.items():
            history.owners[shard] = [owner] if owner in there else []
        for member in node.members():
            owned = list(observer.owners.values()).count(member.incarnation)
            if member.shards != owned:
                self.problems.append(
                    f"settles: {member.name} ({member.incarnation}) says that it serves "
                    f"{member.shards} shards, and owns {owned}"
                )
        history.commits = list(observer.commits())
        self.problems += [f"log: {problem}" for problem in observer.problems]

    async def _read_tapes(self, node: Node) -> None:
        tapes = self.history.tapes
        asked = {op.agent for op in self.history.operations if op.kind != "deadly"}
        sent_to = {
            name
            for tape in tapes.values()
            for text in tape
            if text.startswith("spread ")
            for name in text.split(" ")[2].split(",")
        }
        for agent in sorted(asked | sent_to):
            self.history.tapes[agent] = await _insist(
                lambda agent=agent: node.agent(Actor, agent).ask(Actor.tape)  # type: ignore[misc]
            )
        for letter in await _insist(node.dead_letters.all):
            self.history.bury(letter)

    def _judge(self, network: Network, directory: Path, ended: float) -> Outcome:
        operations = self.history.operations
        for harmed in self.harmed:
            measures.measure(harmed, operations, self.began)
        return Outcome(
            self.seed,
            network.kind,
            [*self.problems, *_violations(self.history)],
            measures.fates(operations),
            self.harmed,
            measures.stalls(operations, self.began, ended),
            self.not_available,
            ended - self.began,
            str(directory),
        )


def _violations(history: History) -> Iterator[str]:
    for checker in CHECKERS:
        yield from (f"{checker.__name__}: {text}" for text in checker(history))


async def _insist(ask: Callable[[], Any]) -> Any:
    """Ask until there is an answer, for as long as it may take to settle. Raises the last
    refusal."""
    end = time.monotonic() + _SETTLE_SECONDS
    while True:
        try:
            return await ask()
        except (NotDone, Unknown):
            if time.monotonic() > end:
                raise
            await asyncio.sleep(0.1)
