"""A host: one machine's part in the cluster. It runs one nats-server and some nodes, and starts
again what ends.

Every host is the same; none is the head. A host tells the others at once when a process of its
nodes ended: it was its parent, so it knows. That is what makes a takeover after a crash fast,
without anybody guessing from silence.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import time
from collections import deque
from contextlib import suppress
from typing import Any, Final

import msgspec

from holdfast import codec, ids, limits, loops, pipes, said, signals
from holdfast.children import python
from holdfast.cluster.facts.cohort import SIZES
from holdfast.cluster.members.beats import HOST_SUBJECT, HostBeat, host_door
from holdfast.engines.base import Message
from holdfast.engines.nats.engine import NatsEngine
from holdfast.errors import Closed, HoldfastError
from holdfast.host import spawn
from holdfast.host.changes import Changes
from holdfast.host.directory import DirectoryLock
from holdfast.host.heard import Heard
from holdfast.host.node_child import NodeChild
from holdfast.host.operations import Operations
from holdfast.host.rpc.facts import NodeAway
from holdfast.host.rpc.service import HostService
from holdfast.host.server.keeper import RESTART_SECONDS_MIN, STABLE_SECONDS, Keeper, longer
from holdfast.host.server.nats_server import NatsServer
from holdfast.host.server.server_admin import ServerAdmin
from holdfast.host.settings import HostSettings, Report
from holdfast.host.still import Watchman
from holdfast.host.told import Told
from holdfast.host.voting.leader_balance import LeaderBalance
from holdfast.host.voting.lost_votes import LostVotes
from holdfast.host.voting.voter import Voter
from holdfast.node.process import NodeSettings

_ENDED_MAX: Final = 64
_AWAY_MAX: Final = 64
_ERROR_CHARACTERS_MAX: Final = 16_000
"""Of how a node failed: what hosts answer has a bound, and an answer beyond it is none."""

_logger = logging.getLogger(__name__)


class Host:
    """See the module. ``lock``: on its directory, where it was taken already.

    ``report`` hears of each event: ``server``, ``server-ended``, ``server-failed``,
    ``server-stores-nothing``, ``node-ready``, ``node-still``, ``node-ended``, ``node-said``."""

    def __init__(
        self, settings: HostSettings, report: Report, lock: DirectoryLock | None = None
    ) -> None:
        ids.check_machine(settings.name, "host")
        self.settings = settings
        self.started_at = time.time()
        self.server = None if settings.server is None else NatsServer(settings.server, lock)
        self.system: ServerAdmin | None = None
        self.say = self._report = Told(settings.name, report)
        """Says what happens."""
        self.keeper = (
            None if self.server is None else Keeper(self.server, self.say, self._write_error)
        )
        self.seat: Voter | None = None
        if self.server is not None and self.keeper is not None:
            self.seat = Voter(
                settings.name, self.server, settings.join, self.keeper.restart, self.say
            )
        self.heard = Heard()
        self.children = [
            NodeChild(f"{settings.name}-{index + 1}") for index in range(settings.nodes)
        ]
        self._watchman = Watchman(self.children, report, self._say_who_lives)
        self._service: HostService | None = None
        own = [] if self.server is None else [self.server.url]
        self._urls = [*own, *(url for url in settings.urls if url not in own)]
        self._engine: NatsEngine | None = None
        self.wants_restart = asyncio.Event()
        """Whether its process is to end and begin anew: whoever runs it sees to that."""
        self._tasks: list[asyncio.Task[None]] = []
        self._passing: list[asyncio.Task[None]] = []
        """Tasks that may end while the host goes on."""
        self._stopping = False
        self._incarnation = ids.new_id("h")
        self.changes = Changes(self, self._incarnation)
        self._door = host_door()
        self._beats = 0
        self._ended: deque[str] = deque(maxlen=_ENDED_MAX)
        """Incarnations whose processes ended."""
        self._killed: deque[str] = deque(maxlen=_ENDED_MAX)
        """Those of ``_ended`` that somebody else killed."""

    async def start(self) -> None:
        """Start the server and the nodes. Raises `ConfigError`, `NoQuorum`."""
        loop = asyncio.get_running_loop()
        if self.server is not None and self.seat is not None and self.keeper is not None:
            await loops.in_thread(self.server.lock.take)
            await self.seat.take()
            await self.keeper.start()
            self._tasks += self.keeper.tasks()
        # Its own server is there: where the machine has little time, it answers late.
        seconds = limits.CONNECT_SECONDS if self.server is None else limits.JOIN_SECONDS
        self._engine = NatsEngine(self._urls, self.settings.security, connect_seconds=seconds)
        await self._engine.open()
        self._tasks.append(loop.create_task(self._report.run(self._engine)))
        if self.server is not None and self.seat is not None:
            self.system = ServerAdmin(
                self.server.url, self.server.system_password, self._engine.certificates
            )
            await self.system.open()
            may_leave = self.changes.guards.may_leave
            self._tasks.append(
                loop.create_task(self.seat.run(self._engine, self.system, may_leave))
            )
            self._passing.append(loop.create_task(self.changes.resume()))
            self._tasks.append(
                loop.create_task(LeaderBalance(self._engine, self.system, self.seat).run())
            )
            self._tasks.append(loop.create_task(LostVotes(self.system, self.seat, may_leave).run()))
        await self._engine.bus.subscribe(HOST_SUBJECT, self._on_host)
        self._service = HostService(
            self._engine.bus, self.settings.name, Operations(self, self.changes).table()
        )
        await self._service.start()
        self._tasks.append(loop.create_task(self._beat()))
        self._tasks.append(loop.create_task(self._watchman.run()))
        self._tasks += [loop.create_task(self._keep_node(child)) for child in self.children]

    async def _write_error(self) -> str:
        return "" if self.system is None else await self.system.write_error()

    async def failed(self) -> None:
        """Return when one of the parts that keep others alive ended; raises its error."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    # Nodes ----------------------------------------------------------------------------------------

    def _say_who_lives(self) -> None:
        if self._engine is not None and self._engine.connected():
            living = [child.incarnation for child in self.children if child.incarnation]
            voters = self.seat.voters if self.seat is not None else 0
            beat = HostBeat(
                self.settings.name, living, list(self._ended), self._incarnation, self.votes, voters
            )
            beat.still, beat.killed = (
                self._watchman.standstills(),
                [*self._killed, *self._watchman.stopped()],
            )
            self._beats += 1
            beat.number = self._beats
            self._engine.bus.publish(HOST_SUBJECT, codec.encode_raw(beat))

    @property
    def votes(self) -> bool:
        """Whether its server runs, keeps copies, and votes."""
        return (
            self.seat is not None
            and self.seat.votes
            and self.server is not None
            and self.server.pid != 0
        )

    def _on_host(self, message: Message) -> None:
        if (beat := self._door.read(message)) is not None:
            self.heard.note(beat.host)

    async def _beat(self) -> None:
        while True:
            self._say_who_lives()
            await asyncio.sleep(limits.BEAT_SECONDS)

    async def _keep_node(self, child: NodeChild) -> None:
        loop = asyncio.get_running_loop()
        delay = RESTART_SECONDS_MIN
        while True:
            started = loop.time()
            code = await self._run_node(child)
            if self._stopping:
                return
            child.ended(code)
            self._report("node-ended", {"node": child.name, "code": code, "error": child.error})
            stable = loop.time() - started > STABLE_SECONDS
            delay = RESTART_SECONDS_MIN if stable else longer(delay)
            await asyncio.sleep(delay)

    def _copies(self) -> int | None:
        """How many copies of everything there are to be: what the cohort's record says comes before
        the command line."""
        known = 0 if self.seat is None else self.seat.copies
        return max((size for size in SIZES if size <= known), default=self.settings.replicas)

    async def _run_node(self, child: NodeChild) -> int:
        if self._stopping:  # meanwhile
            return os.EX_OK
        # The name of its life is known, and said, before it begins: nobody takes a beat of it for a
        # ghost's.
        child.begins(ids.new_id("n"))
        self._say_who_lives()
        settings = NodeSettings(
            urls=self._urls,
            parent=os.getpid(),
            apps=self.settings.apps,
            name=child.name,
            host=self.settings.name,
            incarnation=child.incarnation,
            found=self.settings.replicas is not None
            and not (self.seat is not None and self.seat.founded),
            replicas=self._copies(),
            labels=self.settings.labels,
            capacity=self.settings.capacity,
            security=self.settings.security,
        )
        started: spawn.Child | None = None
        try:
            started = await spawn.start(
                python("holdfast.node"),
                lambda events: (
                    msgspec.json.encode(msgspec.structs.replace(settings, events=events)) + b"\n"
                ),
                lambda event, facts: self._heard(child, event, facts),
                lambda text: self._said(child, text),
            )
            child.process = started.process
            if not self._stopping:  # else nobody would tell it to end
                return await started.wait()
        except (OSError, subprocess.SubprocessError) as error:
            # The machine has no processes, files or memory left, which a user's code may have
            # taken: it may have some soon.
            child.error = f"no process can be started: {error}"
        finally:
            if started is not None:
                await started.kill()
                if started.process.returncode == -signal.SIGKILL and not child.watch.over:
                    self._killed.append(child.incarnation)
            self._ended.append(child.incarnation)
            child.incarnation = ""
            child.process = None
            self._say_who_lives()
        return os.EX_OSERR

    def _heard(self, child: NodeChild, event: str, facts: dict[str, Any]) -> None:
        """A node told this host something; what is not known here comes from a newer version."""
        child.watch.heard(event, facts)
        if event == "ready" and child.process is not None:
            child.serves()
            if self.seat is not None:
                with suppress(OSError):  # the seat tries again
                    self.seat.saw_cluster()
            told = {
                "node": child.name,
                "node_pid": child.process.pid,
                "incarnation": child.incarnation,
                "kinds": facts.get("kinds", []),
            }
            self._report("node-ready", told)
        elif event == "failed":
            child.error = str(facts.get("error", ""))[:_ERROR_CHARACTERS_MAX]
        elif event == said.SAID:
            agent, at = str(facts.get("agent", "")), facts.get("at", 0.0)
            text = (
                str(facts["text"])
                if "text" in facts
                else pipes.dropped_text(facts.get("dropped", 0))
            )
            self._said(child, text, agent, at)

    def _said(self, child: NodeChild, text: str, agent: str = "", at: float = 0.0) -> None:
        """A line that a node printed: data, whatever it looks like."""
        self._report(
            "node-said", {"node": child.name, "agent": agent, "at": at or time.time(), "text": text}
        )

    @property
    def engine(self) -> NatsEngine:
        """Its connection to the cluster. Raises `Closed`."""
        if self._engine is None:
            raise Closed(f"host {self.settings.name} is not connected")
        return self._engine

    def away(self) -> list[NodeAway]:
        """Its nodes that are away, the first of them; none while it ends."""
        found = [away for child in self.children if (away := child.away()) is not None]
        return [] if self._stopping else found[:_AWAY_MAX]

    def node_pids(self) -> list[int]:
        """The processes of the nodes."""
        return [child.process.pid for child in self.children if child.process is not None]

    def reload(self) -> None:
        """Have the server read its settings and certificates again; everything else reads them when
        it connects."""
        if self.server is not None:
            try:
                self.server.reload()
            except HoldfastError as error:
                self._report("reload-failed", {"error": str(error)})
                return
        self._report("reloaded", {})

    def kill(self) -> None:
        """End all its processes at once, without a word."""
        signals.kill(
            [
                *self.node_pids(),
                *([self.server.pid] if self.server is not None and self.server.pid else []),
            ]
        )

    # End ------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Have the nodes let go of their shards and end, then the server."""
        if self._stopping:
            return
        self._stopping = True
        store_gone = False
        if self.keeper is not None:
            self.keeper.stopping = True
            store_gone = self.keeper.store_gone
        processes = [child.process for child in self.children if child.process is not None]
        for process in processes:
            if process.returncode is None:
                process.send_signal(signal.SIGKILL if store_gone else signal.SIGTERM)
        if processes:
            waits = [asyncio.ensure_future(process.wait()) for process in processes]
            _, late = await asyncio.wait(waits, timeout=limits.DRAIN_SECONDS * 2)
            if late:
                _logger.warning("%d nodes did not end in time and are killed", len(late))
        for task in (*self._tasks, *self._passing):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._passing, return_exceptions=True)
        await self.changes.close()
        if self._service is not None:
            await self._service.close()
        if self.system is not None:
            await self.system.close()
        if self._engine is not None:
            await self._engine.close()
        if self.server is not None:
            await self.server.stop()
            self.server.lock.release()
