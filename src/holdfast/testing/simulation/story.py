"""Cluster stories in plain text: commands, and below each what came of it. See
`tests/testing/transcripts`.

A story is run on a simulated cluster, and its text is made anew with what came of each command; a
test compares. So a story documents the protocol, and cannot be out of date. A block is a command,
``----``, and its output up to an empty line; lines that begin with ``#`` are prose. Hosts are given
names of the story's own (``let old = owner a1``), and epochs and times are told so roughly that
another seed tells the same story.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec

from holdfast import codec, ids
from holdfast.cluster.ownership.epochs import EpochRecord
from holdfast.engines.base import Record, Stored
from holdfast.errors import ConfigError, HoldfastError
from holdfast.records import agent_record
from holdfast.testing import workloads
from holdfast.testing.history import History, Mark
from holdfast.testing.simulation.cluster import Process, SimCluster
from holdfast.testing.simulation.servers import Cell
from holdfast.testing.simulation.world import World
from holdfast.testing.workloads import Actor

_ANSWER_SECONDS = 120


def execute(text: str) -> str:
    """The story's text, with what comes of each command now. Raises `ConfigError` for a command
    that is none."""
    story = Story()
    workloads._current.append(story)
    try:
        blocks = [story.block(block) for block in text.strip().split("\n\n")]
    finally:
        workloads._current.remove(story)
        story.world.close()
    return "\n\n".join(blocks) + "\n"


class Story:
    """One story under way."""

    def __init__(self) -> None:
        self.world = World(1)
        self.history = History()
        self.cluster: SimCluster
        self.clients: dict[str, Process] = {}
        self.names: dict[str, str] = {}
        self.begun: dict[str, tuple[float, list[str]]] = {}
        self.refused: list[str] = []

    def block(self, text: str) -> str:
        """One block, with its output as it is now."""
        lines = text.splitlines()
        commands = (
            [line for line in lines[: lines.index("----")] if line.strip()]
            if "----" in lines
            else []
        )
        if not commands:
            return text
        words = [
            word for line in commands if not line.startswith("#") for word in shlex.split(line)
        ]
        command: Callable[..., str] | None = getattr(self, "do_" + words[0].replace("-", "_"), None)
        if command is None:
            raise ConfigError(f"a story has no command {words[0]!r}")
        options = dict(word.split("=", 1) for word in words[1:] if "=" in word[1:])
        output = command(*[word for word in words[1:] if "=" not in word[1:]], **options)
        return "\n".join([*commands, "----", output or "ok"])

    def mark(self, agent: str, epoch: int) -> None:
        """A handler's code runs in the process of the running loop."""
        loop: Any = asyncio.get_running_loop()
        self.history.marks.append(Mark(self.world.now, agent, epoch, loop.name))

    async def die(self, label: str) -> None:
        """End the process in whose handler this is called."""
        loop: Any = asyncio.get_running_loop()
        self.history.deaths[label] = self.history.deaths.get(label, 0) + 1
        for host in [host for host, process in self.cluster.nodes.items() if process.loop is loop]:
            self.cluster.kill_node(host)
        await asyncio.sleep(3600)

    async def stand_still(self, label: str) -> None:
        """Have the process stand still in whose handler this is called."""
        loop: Any = asyncio.get_running_loop()
        self.history.standstills.setdefault(label, []).append(True)
        for host in [host for host, process in self.cluster.nodes.items() if process.loop is loop]:
            self.cluster.stand_still(host, label, True)
        await asyncio.sleep(3600)

    # Names ----------------------------------------------------------------------------------------

    def _host(self, name: str) -> str:
        host = self.names.get(name, name)
        if host not in self.cluster.hosts:
            raise ConfigError(f"there is no host {name!r}")
        return host

    def _called(self, host: str) -> str:
        return next((name for name, known in self.names.items() if known == host), "another host")

    def _shard(self, agent: str) -> tuple[Cell, int]:
        node = next(iter(self.clients.values())).node
        assert node is not None
        token = ids.agent_token("Actor", agent)
        number = node._runtime.shard_of(token)
        return self.cluster.servers.cells[node._runtime.cell_of(number)], number

    def _owner(self, agent: str) -> str:
        cell, number = self._shard(agent)
        newest = cell.committed.newest.get(f"{cell.name}.{number}.epoch")
        return "" if newest is None else _epoch(cell.committed.records[newest]).host

    # Commands: the cluster ------------------------------------------------------------------------

    def do_cluster(self, hosts: str = "3", shards: str = "6") -> str:
        """Start hosts with a node each, and a client beside each node."""
        self.cluster = SimCluster(self.world, [Actor], int(hosts), shards=int(shards))
        self.cluster.servers.on_cell = lambda cell: cell.on_refusal.append(self._refusal)
        for host in self.cluster.hosts:
            self.clients[host] = self.cluster.client(host)
        served = self.world.run(90, lambda: len(self._owners()) == int(shards))
        nodes = f"{hosts} hosts, a node on each"
        return (
            f"{nodes}; {shards} shards, each with one owner"
            if served
            else f"{nodes}; not every shard has an owner"
        )

    def _owners(self) -> dict[int, list[str]]:
        found: dict[int, list[str]] = {}
        for host, process in self.cluster.nodes.items():
            for number in process.node._runtime.shards if process.node is not None else ():
                found.setdefault(number, []).append(host)
        ready = all(client.node is not None for client in self.clients.values())
        return found if ready else {}

    def _refusal(self, records: list[Record], error: HoldfastError) -> None:
        agents = [
            record.subject.rpartition("/")[2] for record in records if ".st." in record.subject
        ]
        if agents:
            self.refused.append(f"a batch of {', '.join(agents)}: {type(error).__name__}")

    def do_let(self, name: str, _is: str, _owner: str, agent: str) -> str:
        """Give the host whose node owns an agent a name."""
        self.names[name] = self._owner(agent)
        return ""

    def do_owner(self, agent: str) -> str:
        """Who owns an agent, and how often its shard has been claimed."""
        cell, number = self._shard(agent)
        epochs = [
            s
            for s in self._history(cell)
            if s.subject == f"{cell.name}.{number}.epoch" and _epoch(s).owner
        ]
        return f"{self._called(_epoch(epochs[-1]).host)}, {_nth(len(epochs))} claim"

    def do_owners(self) -> str:
        """How many nodes serve each shard."""
        counts = sorted({len(owners) for owners in self._owners().values()})
        alone = "each by one node" if counts == [1] else f"by {counts} nodes"
        return f"{len(self._owners())} shards are served, {alone}"

    def do_run(self, seconds: str) -> str:
        """Let time pass."""
        self.world.run(float(seconds))
        return ""

    def do_kill_node(self, host: str) -> str:
        """kill -9. Its host starts it again within 2 s."""
        self.cluster.kill_node(self._host(host))
        return ""

    def do_freeze_node(self, host: str, seconds: str) -> str:
        """SIGSTOP, and SIGCONT after a while."""
        self.cluster.freeze_node(self._host(host), float(seconds))
        return ""

    def do_partition(self, host: str, seconds: str) -> str:
        """Cut a host off from all others, for a while."""
        self.cluster.partition(self._host(host), float(seconds))
        return ""

    def do_power_off(self, host: str, seconds: str) -> str:
        """Server and node are gone, and are started again after a while."""
        self.cluster.kill_host(self._host(host), float(seconds))
        return ""

    def do_next_batch(self, agent: str, what: str, seconds: str = "0") -> str:
        """The next batch of an agent is ``lost``, or ``late`` by some seconds, or its
        ``answer-lost``."""
        self.cluster.servers.planned.append((f".st.Actor/{agent}", what, float(seconds)))
        return ""

    def do_next_relay(self, agent: str, what: str, seconds: str = "0") -> str:
        """… the next batch that a relay of the agent's shard writes into another cell."""
        cell, number = self._shard(agent)
        self.cluster.servers.planned.append((f".rl.{cell.name}-{number}", what, float(seconds)))
        return ""

    # Commands: messages ---------------------------------------------------------------------------

    def do_ask(self, agent: str, handler: str, *args: str, **options: str) -> str:
        """Ask, and wait for the answer. ``at``: the host of the client."""
        return self._wait(self._begin(agent, handler, args, options))

    def do_begin(
        self, name: str, _ask: str, agent: str, handler: str, *args: str, **options: str
    ) -> str:
        """Ask, and do not wait."""
        self.begun[name] = self._begin(agent, handler, args, options)
        self.world.run(0.05)
        return ""

    def do_answer(self, name: str) -> str:
        """Wait for the answer of what was begun."""
        return self._wait(self.begun.pop(name))

    def do_send(self, agent: str, handler: str, *args: str, **options: str) -> str:
        """Put a message into an agent's inbox."""
        return self._wait(self._begin(agent, handler, args, options, durable=True))

    def do_tape(self, agent: str) -> str:
        """What an agent did, in its order."""
        return self._wait(self._begin(agent, "tape", (), {})).partition("   (")[0]

    def _begin(
        self,
        agent: str,
        handler: str,
        args: tuple[str, ...],
        options: dict[str, str],
        durable: bool = False,
    ) -> tuple[float, list[str]]:
        client = self.clients[self._host(options.get("at", "h1"))]
        answer: list[str] = []

        async def work() -> None:
            assert client.node is not None
            ref = client.node.agent(Actor, agent).options(
                timeout_seconds=float(options.get("timeout", "60"))
            )
            if "id" in options:
                ref = ref.options(message_id=options["id"])
            method: Any = getattr(Actor, handler)
            given = [
                word.split(",") if "," in word else int(word) if word.isdigit() else word
                for word in args
            ]
            try:
                value = await (ref.send(method, *given) if durable else ref.ask(method, *given))
            except HoldfastError as error:
                answer.append(type(error).__name__)
            else:
                answer.append("in the inbox" if durable else msgspec.json.encode(value).decode())

        client.spawn(work())
        return self.world.now, answer

    def _wait(self, begun: tuple[float, list[str]]) -> str:
        at, answer = begun
        if not self.world.run(_ANSWER_SECONDS, lambda: bool(answer)):
            return "no answer"
        took = self.world.now - at
        rough = next(
            (f"within {limit} s" for limit in (0.05, 3, 10, 30, 120) if took <= limit), "late"
        )
        return f"{answer[0]}   ({'at once' if took <= 0.05 else rough})"

    # Commands: what is to be seen -----------------------------------------------------------------

    def _history(self, cell: Cell) -> list[Stored]:
        return [
            stored
            for operation in cell.operations
            if isinstance(operation, list)
            for stored in operation
        ]

    def do_log(self, agent: str) -> str:
        """All that was ever written into an agent's shard, and what its relays wrote elsewhere, in
        order."""
        cell, number = self._shard(agent)
        lines: list[str] = []
        claims = 0
        for stored in self._history(cell):
            if stored.subject == f"{cell.name}.{number}.epoch":
                epoch = _epoch(stored)
                claims += bool(epoch.owner)
                what = (
                    f"{_nth(claims)} claim, by {self._called(epoch.host)}"
                    if epoch.owner
                    else "released"
                )
                lines.append(f"epoch   {what}")
            elif stored.subject.startswith(f"{cell.name}.{number}."):
                lines.append(self._line(stored))
        return "\n".join(lines)

    def _line(self, stored: Stored) -> str:
        _, _, kind, *rest = stored.subject.split(".")
        name = rest[0].rpartition("/")[2] if rest else ""
        if kind == "st":
            record = agent_record.decode(stored.payload, stored.subject)
            marks = ", with an attempt mark" if record.attempts else ""
            return f"state   {name}, version {record.version}{marks}"
        if kind == "settled":
            return "settled no pack of an owner before is needed"
        if kind == "out":
            return f"outbox  a message for cell {name[-1]}"
        return f"{ {'in': 'inbox', 'dl': 'dead', 'tm': 'timer'}.get(kind, kind):7} of {name}"

    def do_cursors(self, agent: str) -> str:
        """What the relays of an agent's shard wrote into other cells."""
        cell, number = self._shard(agent)
        lines = []
        for other in self.cluster.servers.cells.values():
            for operation in other.operations if other is not cell else ():
                if isinstance(operation, list) and operation[0].subject.endswith(
                    f".rl.{cell.name}-{number}"
                ):
                    lines.append(
                        f"cell {other.name[-1]}: the cursor, and {len(operation) - 1} messages, in "
                        "one batch"
                    )
        return "\n".join(lines) or "nothing"

    def do_outbox(self, agent: str) -> str:
        """What is still to be carried over."""
        cell, number = self._shard(agent)
        left = [
            subject
            for subject in cell.committed.newest
            if subject.startswith(f"{cell.name}.{number}.out.")
        ]
        return f"{len(left)} messages"

    def do_refused(self) -> str:
        """The batches of agents that the log refused since the last look."""
        refused, self.refused = self.refused, []
        return "\n".join(dict.fromkeys(refused)) or "none"

    def do_deaths(self, label: str) -> str:
        """How many processes a deadly message ended."""
        return f"{self.history.deaths.get(label, 0)} processes"

    def do_dead_letters(self) -> str:
        """What was given up."""
        client = next(iter(self.clients.values()))
        lines: list[str] = []

        async def work() -> None:
            assert client.node is not None
            letters = await client.node.dead_letters.all()
            lines.extend(
                f"{one.agent_id} {one.handler}: {one.kind_of_error}, {one.attempts} attempts"
                for one in letters
            )
            lines.append("")

        client.spawn(work())
        self.world.run(30, lambda: "" in lines)
        return "\n".join(lines).strip() or "none"

    def do_lives(self, host: str) -> str:
        """Which life of its process the node of a host is in."""
        process = self.cluster.nodes.get(self._host(host))
        with suppress(AttributeError):
            if process is not None and process.node is not None:
                return f"its {_nth(int(process.node.incarnation.partition('~')[2] or 1))} life"
        return "not running"


def _nth(number: int) -> str:
    return {1: "first", 2: "second", 3: "third", 4: "fourth"}.get(number, f"{number}th")


def _epoch(stored: Stored) -> EpochRecord:
    return msgspec.msgpack.decode(codec.unseal(stored.payload, stored.subject), type=EpochRecord)
