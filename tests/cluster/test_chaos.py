"""Agents at work while nodes, hosts and servers are killed and frozen at random; then every promise is counted.

It found that a shard could skip inbox messages after a second claim, and a recovery that misread a replica that lagged.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest
from tests.cluster.app import Account, Post

from holdfast import HoldfastError, LocalCluster, Node, NotDone, OutcomeUnknown
from holdfast.agents.record import unpack

pytestmark = [pytest.mark.cluster, pytest.mark.soak, pytest.mark.timeout(600)]
T = TypeVar("T")
APP = str(Path(__file__).parent / "app.py")
ACCOUNTS = [f"a{n}" for n in range(30)]
RECEIVERS = [f"r{n}" for n in range(6)]
SENDERS = [f"p{n}" for n in range(6)]
QUEUES = [f"q{n}" for n in range(6)]


async def insist(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask until there is an answer: when two of three servers are away there is none."""
    end = time.monotonic() + 120
    while True:
        try:
            return await ask()
        except (NotDone, OutcomeUnknown):
            if time.monotonic() > end:
                raise
            await asyncio.sleep(0.1)


class Work:
    """What clients do meanwhile, and what was acknowledged to them."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.stop = False
        self.added = dict.fromkeys(ACCOUNTS, 0)
        self.unknown = dict.fromkeys(ACCOUNTS, 0)
        self.turns = dict.fromkeys(SENDERS, 0)
        self.sent: dict[str, list[int]] = {name: [] for name in QUEUES}

    async def add(self, name: str) -> None:
        account = self.node.agent(Account, name).options(timeout_seconds=60)
        while not self.stop:
            try:
                value = await account.ask(Account.add, 1)
            except OutcomeUnknown:
                self.unknown[name] += 1
                continue
            except NotDone:
                await asyncio.sleep(0.1)
                continue
            self.added[name] += 1
            assert self.added[name] <= value <= self.added[name] + self.unknown[name], name
            if random.random() < 0.3:
                seen = await insist(lambda: account.ask(Account.value))
                assert seen >= value, "a reader saw less than was acknowledged"

    async def spread(self, name: str) -> None:
        count = 0
        while not self.stop:
            count += 1
            sender = self.node.agent(Post, name).options(message_id=f"{name}-{count}", timeout_seconds=60)
            self.turns[name] = await insist(lambda sender=sender: sender.ask(Post.spread, RECEIVERS))  # type: ignore[misc]
            assert self.turns[name] == count, f"{name} forgot turns: after {count} it has made {self.turns[name]}"
            await asyncio.sleep(0.02)

    async def send(self, name: str) -> None:
        queue = self.node.agent(Post, name).options(timeout_seconds=60)
        while not self.stop:
            await queue.send(Post.take, "client", len(self.sent[name]))
            self.sent[name].append(len(self.sent[name]))
            await asyncio.sleep(0.005)


class Audit:
    """Watches the logs from outside: each agent's records must be one line, each built on the one before."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.seen: dict[str, list[str]] = {}
        self.newest: dict[str, tuple[int, int]] = {}
        self.wrong: list[str] = []
        self.tasks = [asyncio.create_task(self.follow(cell)) for cell in node.manifest.cells]

    async def follow(self, cell: str) -> None:
        async for chunk in self.node.engine.log.tail(cell, [f"{cell}.*.epoch", f"{cell}.*.st.>"]):
            for stored in chunk.records:
                shard = ".".join(stored.subject.split(".")[:2])
                history = self.seen.setdefault(shard, [])
                if stored.subject.endswith(".epoch"):
                    history.append(f"{time.time():.3f} {stored.sequence} {stored.subject} {stored.payload[:60]!r}")
                    continue
                record = unpack(stored.payload, stored.subject)
                version, sequence = self.newest.get(stored.subject, (0, 0))
                line = (
                    f"{stored.sequence} {stored.subject} v{record.version} commit {record.commit} on {record.previous}"
                )
                history.append(f"{time.time():.3f} {line}")
                if record.version <= version or (record.version == version + 1 and record.previous != sequence):
                    self.wrong.append(
                        "\n".join([f"{line}, after v{version} at {sequence}; its shard:", *history[-40:]])
                    )
                self.newest[stored.subject] = record.version, stored.sequence


async def harm(cluster: LocalCluster) -> None:
    """One fault, ended before this returns, but for a host that is still coming back."""
    host = random.choice(cluster.hosts)
    what = random.choice(["kill node", "kill node", "freeze node", "kill host", "freeze server", "kill server"])
    if what == "kill node":
        cluster.kill_node(f"{host}-1")
    elif what == "kill host":
        await cluster.kill_host(host)
        await asyncio.sleep(random.uniform(0, 3))
        await cluster.start_host(host)
    elif what == "kill server":
        os.kill(cluster.server_pid(host), signal.SIGKILL)
    else:
        pid = cluster.node_pid(f"{host}-1") if what == "freeze node" else cluster.server_pid(host)
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(random.uniform(1, 7))
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("seed", range(3))
async def test_every_promise_is_kept_in_chaos(tmp_path: Path, seed: int) -> None:
    random.seed(seed)
    async with LocalCluster(tmp_path, [APP]) as cluster, Node.join(cluster.urls) as node:
        await node.ready()
        work, audit = Work(node), Audit(node)
        jobs = [(work.add, ACCOUNTS), (work.spread, SENDERS), (work.send, QUEUES)]
        tasks = [asyncio.create_task(job(name)) for job, names in jobs for name in names]
        end = time.monotonic() + 60
        while time.monotonic() < end:
            await asyncio.sleep(random.uniform(0.5, 4))
            try:
                await harm(cluster)
            except (ProcessLookupError, HoldfastError):
                continue  # it was down already
            assert not audit.wrong, audit.wrong[0]
            for task in tasks:
                if task.done():
                    task.result()
        for host in cluster.hosts:
            await cluster.start_host(host)
        work.stop = True
        async with asyncio.timeout(120):
            await asyncio.gather(*tasks)
        await count(node, work)
        assert not audit.wrong, audit.wrong[0]


async def count(node: Node, work: Work) -> None:
    for name in ACCOUNTS:
        value = await insist(lambda name=name: node.agent(Account, name).ask(Account.value))  # type: ignore[misc]
        assert work.added[name] <= value <= work.added[name] + work.unknown[name], name
    expected = {name: {sender: list(range(count)) for sender, count in work.turns.items()} for name in RECEIVERS}
    expected |= {name: {"client": numbers} for name, numbers in work.sent.items()}
    for letter in await node.dead_letters.all():
        # Three processes were killed with this very message in their hands: it is given up, where everybody can see it.
        assert "ended 3 processes" in letter.error, letter
        sender, number = letter.arguments
        expected[letter.agent_id.partition("/")[2]][sender].remove(number)
    end = time.monotonic() + 60
    for name, wanted in expected.items():
        while (got := await insist(lambda name=name: node.agent(Post, name).ask(Post.got))) != wanted:  # type: ignore[misc]
            if time.monotonic() > end:
                raise AssertionError(f"{name} lacks messages:\n{await compare(node, name, wanted, got)}")
            await asyncio.sleep(0.1)


async def compare(node: Node, name: str, wanted: dict[str, list[int]], got: dict[str, list[int]]) -> str:
    """What one agent has and lacks, and what the log has for it: a message lost, or one that is only late."""
    lines = [str(node.describe(f"Post/{name}"))]
    for sender, numbers in wanted.items():
        have = got.get(sender, [])
        lines.append(f"{sender}: {len(have)} of {len(numbers)}; missing {sorted(set(numbers) - set(have))[:20]}")
    info = node.describe(f"Post/{name}")
    for cell in node.manifest.cells:
        tail = node.engine.log.tail(
            cell, [f"{info.cell}.{info.shard}.>" if cell == info.cell else f"{cell}.*.out.>", f"{cell}.rl.>"]
        )
        async for chunk in tail:
            lines += [f"{stored.sequence} {stored.subject}" for stored in chunk.records]
            if chunk.caught_up:
                break
        await tail.aclose()  # type: ignore[attr-defined]
    lines += [str(node.statistics()), str(node.members())]
    return "\n".join(lines)
