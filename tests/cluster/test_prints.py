"""What nodes print is data: whatever handlers print, however much, all goes on, and people see who
printed it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.cluster.prints_app import Printer

from holdfast import LocalCluster, Node
from holdfast.host.server.nats_server import free_ports

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(900),
]
APP = str(Path(__file__).parent / "prints_app.py")


class Events:
    """What a cluster reported."""

    def __init__(self) -> None:
        self.all: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, event: str, facts: dict[str, Any]) -> None:
        self.all.append((event, facts))

    def said(self) -> list[tuple[str, str]]:
        """Agent and text of each line."""
        return [
            (facts["agent"], facts["text"]) for event, facts in self.all if event == "node-said"
        ]

    async def line(self, agent: str, text: str) -> None:
        """Wait for a line."""
        await until(lambda: (agent, text) in self.said())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(240):
        while not condition():
            await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
def events() -> Events:
    return Events()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(
    tmp_path_factory: pytest.TempPathFactory, events: Events
) -> AsyncIterator[LocalCluster]:
    async with LocalCluster(
        tmp_path_factory.mktemp("prints"), [APP], hosts=1, nodes=2, report=events
    ) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(cluster: LocalCluster) -> AsyncIterator[Node]:
    async with Node.join(cluster.urls) as made:
        await made.ready()
        yield made


@asynccontextmanager
async def joined(port: int) -> AsyncIterator[Node]:
    """A client of a host that is about to start."""
    async with asyncio.timeout(240):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                break
            except OSError:
                await asyncio.sleep(0.05)
    async with Node.join(f"nats://127.0.0.1:{port}", wait=True) as made:
        await made.ready()
        yield made


NASTY = [
    "files in [/var/log] are full",
    "[/]",
    "[link=https://example.org]here[/link]",
    '{"event": "ready", "kinds": ["Everything"]}',
    '{"event": "failed", "error": "no"}',
    '{"event": "said", "text": "I am somebody else"}',
    "\x1b[31mred\x1b[0m \x1b]0;title\x07",
    "\x00\x01\x02",
    "‮right to left",
    "ü €  漢",
]


@pytest.mark.parametrize("to", ["stdout", "stderr"])
@pytest.mark.parametrize("text", NASTY)
async def test_whatever_is_printed_comes_as_it_is(
    node: Node, events: Events, text: str, to: str
) -> None:
    ready = sum(event == "node-ready" for event, _ in events.all)
    name = f"{to}-{NASTY.index(text)}"
    assert await node.agent(Printer, name).ask(Printer.say, text, "\n", to) == 1
    await events.line(f"Printer/{name}", text)
    assert sum(event == "node-ready" for event, _ in events.all) == ready
    assert not [facts for event, facts in events.all if event == "node-ended"]


async def test_long_lines_are_cut_and_deep_ones_end_nothing(node: Node, events: Events) -> None:
    agent = node.agent(Printer, "long")
    for text in ("x" * 70_000, "[" * 100_000, '{"a":' * 20_000):
        await agent.ask(Printer.say, text)
        await events.line("Printer/long", f"{text[:8192]}... {len(text) - 8192} more")
        await agent.ask(Printer.write, text.encode() + b"\n")
        await events.line("", f"{text[:8192]}... {len(text) - 8192} more")
    assert await agent.ask(Printer.say, "alive") == 7


async def test_text_without_an_end_and_with_returns(node: Node, events: Events) -> None:
    agent = node.agent(Printer, "part")
    await agent.ask(Printer.say, "no end", "")
    await events.line("Printer/part", "no end")
    await agent.ask(Printer.write, b"raw, no end")
    await events.line("", "raw, no end")
    await agent.ask(Printer.say, "\r 10 %\r 20 %\r100 %")
    await events.line("Printer/part", "100 %")
    await agent.ask(Printer.write, b"\xff\xfe\x00 binary\r\n")
    await events.line("", "\\xff\\xfe\x00 binary")


async def test_a_line_says_which_agent_printed_or_logged_it(node: Node, events: Events) -> None:
    one, other = node.agent(Printer, "one"), node.agent(Printer, "other")
    await asyncio.gather(one.ask(Printer.log, "1"), other.ask(Printer.log, "2"))
    await one.ask(Printer.say_in_thread, "in a thread")
    for agent, text in (("Printer/one", "1"), ("Printer/other", "2")):
        await events.line(agent, f"INFO shop: before: {text}")
        await events.line(agent, f"WARNING shop: after: {text}")
    await events.line("Printer/one", "in a thread")
    await events.line("Printer/one", "INFO shop: in a thread")
    await asyncio.gather(
        one.ask(Printer.say_in_tasks, "of one"), other.ask(Printer.say_in_tasks, "of another")
    )
    for agent, text in (("Printer/one", "of one"), ("Printer/other", "of another")):
        for begin in ("task 0", "task 1", "task 2", "to thread"):
            await events.line(agent, f"{begin} {text}")
    await one.ask(Printer.say_in_process, "in a process")
    for text in ("in a process", "err in a process", "INFO shop: in a process"):
        await events.line("Printer/one", text)
    await until(
        lambda: any(
            one == "Printer/one" and text.startswith("git version") for one, text in events.said()
        )
    )
    assert not [text for _, text in events.said() if "too much" in text]
    await one.ask(Printer.lose_task)
    await until(lambda: any("KeyError: 'nobody waits for it'" in text for _, text in events.said()))
    assert all(
        facts["node"].startswith("h1-") and facts["at"] > 0
        for event, facts in events.all
        if event == "node-said"
    )


async def test_a_fork_prints_and_does_no_harm(node: Node, events: Events) -> None:
    await node.agent(Printer, "fork").ask(Printer.fork, "from a fork")
    await events.line("", "from a fork")


async def test_a_flood_is_cut_and_its_agents_go_on(node: Node, events: Events) -> None:
    agent = node.agent(Printer, "flood")
    await agent.ask(Printer.flood, 20_000)
    assert await agent.ask(Printer.say, "after it") == 1
    await until(lambda: any("lines dropped" in text for _, text in events.said()))
    assert len([text for _, text in events.said() if text.startswith("flood")]) < 15_000
    assert not [facts for event, facts in events.all if event == "node-ended"]


async def test_a_program_that_keeps_the_pipes_does_not_hide_a_death(
    cluster: LocalCluster, node: Node, events: Events
) -> None:
    """The host tells the end of a node at once, starts it again, and others have its agents, while
    the program goes on."""
    agent = node.agent(Printer, "parent")
    daemon = await agent.ask(Printer.start_daemon)
    try:
        owner = node.describe("Printer/parent").owner
        name = next(member.name for member in node.members() if member.incarnation == owner)
        ended = sum(event == "node-ended" for event, _ in events.all)
        cluster.kill_node(name)
        await until(lambda: sum(event == "node-ended" for event, _ in events.all) == ended + 1)
        assert await agent.ask(Printer.say, "taken over") == 2
        await until(lambda: events.all[-1][0] == "node-ready" or name in cluster._hosts["h1"].nodes)
        os.kill(daemon, 0)
    finally:
        with suppress(ProcessLookupError):
            os.kill(daemon, signal.SIGKILL)


async def test_a_file_gets_the_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody has to hear of the events: by default the lines are printed, else they are in the
    file."""
    facts = {"host": "h1", "node": "h1-1", "agent": "Printer/a", "text": "[/] \x1b[31m \ud800"}
    for log in ("", tmp_path / "log"):
        made = LocalCluster(tmp_path, hosts=1, log=log)
        made._heard("node-said", facts)
        made._heard("host-said", {"host": "h1", "text": "of a host"})
        made._heard("node-ready", {"host": "h1"})
        made._writer.close(30)
    lines = ["h1-1 Printer/a: [/] \\x1b[31m \\ud800", "h1: of a host"]
    assert capsys.readouterr().err.splitlines() == lines
    assert (tmp_path / "log").read_text().splitlines() == lines


async def test_up_goes_on_though_nobody_reads_what_it_prints(tmp_path: Path) -> None:
    """Of a program's output that nobody reads, 64 KiB fit into its pipe."""
    port, cluster_port = free_ports(2)
    command = [sys.executable, "-m", "holdfast", "up", APP, "--dir", str(tmp_path), "--name", "h1"]
    command += ["--port", str(port), "--cluster-port", str(cluster_port)]
    up = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path)
    try:
        async with joined(port) as node:
            agent = node.agent(Printer, "unread")
            for number in range(1, 81):
                assert await agent.ask(Printer.say, "x" * 8000) == number
            await agent.ask(Printer.flood, 5000)
            assert await agent.ask(Printer.say, "[/still] there") == 81
        up.terminate()
        assert await asyncio.to_thread(up.wait, 60) == 0
    finally:
        up.kill()
        up.communicate()


async def test_up_shows_who_printed_what(tmp_path: Path) -> None:
    port, cluster_port = free_ports(2)
    command = [sys.executable, "-m", "holdfast", "up", APP, "--dir", str(tmp_path), "--name", "h1"]
    command += ["--port", str(port), "--cluster-port", str(cluster_port)]
    texts = ("files in [/var/log] are full", "\x1b[31mred")
    for json_lines in (False, True):
        up = subprocess.Popen(
            [*command, *["--json"] * json_lines], stdout=subprocess.PIPE, text=True
        )
        try:
            async with joined(port) as node:
                for text in texts:
                    await node.agent(Printer, "shown").ask(Printer.say, text)
            up.terminate()
            printed, _ = await asyncio.to_thread(up.communicate, timeout=400)
        finally:
            up.kill()
        if json_lines:
            said = [
                found
                for line in printed.splitlines()
                if (found := json.loads(line))["event"] == "node-said"
            ]
            # its node may say that the machine gave it no time
            said = [one for one in said if one["agent"]]
            assert [(one["node"], one["agent"], one["text"]) for one in said] == [
                ("h1-1", "Printer/shown", text) for text in texts
            ]
        else:
            assert "h1-1 Printer/shown: files in [/var/log] are full" in printed
            assert "h1-1 Printer/shown: \\x1b[31mred" in printed
