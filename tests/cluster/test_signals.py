"""What a running command does when it is sent signals: `run` and `up`, as users and service
managers send them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.node.test_cli import free_base, holdfast

from holdfast import limits, signals
from holdfast.cli.place import WHERE_FILE
from holdfast.host.processes import progress_of
from holdfast.host.server.nats_server import free_ports

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
HOLDFAST = str(Path(sys.executable).parent / "holdfast")
APP = """
import asyncio, time
from pathlib import Path
from holdfast import Agent, Node, State, handler

class Number(State):
    n: int = 0

class Adder(Agent[Number]):
    @handler
    async def add(self) -> int:
        self.state.n += 1
        return self.state.n
"""
MAIN = """
async def main(node: Node) -> None:
    total = await node.agent(Adder, "a").ask(Adder.add)
    print("added", total, flush=True)
    try:
        await asyncio.sleep(600)
    finally:
        Path("cleaned").write_text("up")
"""
STUCK = """
async def main(node: Node) -> None:
    print("added", 0, flush=True)
    while True:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            print("no", flush=True)
"""


STUBBORN = """
import sys
from holdfast import limits, reader
limits.DRAIN_SECONDS = limits.CANCELLED_SECONDS = 0.1
limits.LEFT_SECONDS = float(Path("left").read_text())

class Stubborn(Agent[State]):
    async def go_on(self) -> None:
        print("began", flush=True)
        while True:
            try:
                await asyncio.sleep(600)
            except asyncio.CancelledError:
                pass

    @handler
    async def handle(self) -> None:
        await self.go_on()

    @reader
    async def read(self) -> None:
        await self.go_on()

async def main(node: Node) -> None:
    await node.agent(Stubborn, "a").ask(getattr(Stubborn, Path("method").read_text()))
"""
HOLDING = """
from holdfast import limits
limits.DRAIN_SECONDS = 1e6

class Holder(Agent[State]):
    @handler
    async def hold(self) -> None:
        print("held", flush=True)
        await asyncio.sleep(1e6)
"""


class Program:
    """A command that runs, and what it says."""

    def __init__(self, directory: Path, *command: str) -> None:
        self.process = subprocess.Popen(
            command,
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.said: list[str] = []

    def until(self, text: str) -> str:
        """Read until a line has this text, and return that."""
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            self.said.append(line)
            if text in line:
                return line
        raise AssertionError(
            f"it ended ({self.process.wait()}) without {text!r}:\n{''.join(self.said)}"
        )

    def event(self, name: str, **wanted: Any) -> dict[str, Any]:
        """Read until this event."""
        while True:
            facts: dict[str, Any] = json.loads(self.until(f'"{name}"'))
            if facts["event"] == name and all(
                facts.get(key) == value for key, value in wanted.items()
            ):
                return facts

    def end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "story.py").write_text(APP + MAIN)
    (tmp_path / "stuck.py").write_text(APP + STUCK)
    return tmp_path


@pytest.fixture
def programs() -> Iterator[list[Program]]:
    made: list[Program] = []
    yield made
    for program in made:
        program.end()


def test_run_ends_its_main_in_order(directory: Path, programs: list[Program]) -> None:
    cleaned = directory / "cleaned"
    for starts, number in enumerate((signal.SIGTERM, signal.SIGINT, signal.SIGHUP), 1):
        programs.append(program := Program(directory, HOLDFAST, "run", "story.py"))
        program.until(f"added {starts}")  # the log was closed before, and has what was acknowledged
        program.process.send_signal(number)
        assert program.process.wait(60) == 0, number
        assert cleaned.read_text() == "up", number
        cleaned.unlink()
    programs.append(again := Program(directory, HOLDFAST, "run", "story.py"))
    again.until("added 4")


def test_a_second_ctrl_c_ends_at_once_and_says_so(directory: Path, programs: list[Program]) -> None:
    programs.append(program := Program(directory, HOLDFAST, "run", "stuck.py"))
    program.until("added 0")
    program.process.send_signal(signal.SIGINT)
    program.until("no")
    # a second one that comes sooner is the first one, passed on by a wrapper
    time.sleep(signals._TWICE_SECONDS + 0.1)
    program.process.send_signal(signal.SIGINT)
    program.until("second Ctrl-C")
    assert program.process.wait(60) == 128 + signal.SIGINT


@pytest.mark.parametrize("hosts", [1, 3])
def test_a_second_ctrl_c_to_up_ends_its_servers_and_nodes_as_well(
    directory: Path, programs: list[Program], hosts: int
) -> None:
    (directory / "holding.py").write_text(APP + HOLDING)
    base = free_base()
    ports = ["--port", str(base), *(["--cluster-port", str(base + 100)] if hosts == 1 else [])]
    command = (HOLDFAST, "up", "holding.py", "--hosts", str(hosts), *ports, "--json")
    programs.append(program := Program(directory, *command))
    for _ in range(hosts):
        program.event("node-ready")
    _, *children = family(program.process.pid)
    assert len(children) >= (2 if hosts == 1 else 9)  # servers, nodes, and three hosts
    while not (directory / ".holdfast" / WHERE_FILE).exists():
        assert program.process.poll() is None
        time.sleep(0.05)
    holdfast(directory, "send", "Holder/a", "hold")
    program.until("held")
    os.killpg(program.process.pid, signal.SIGINT)  # as a terminal does
    program.event("stopping")
    time.sleep(signals._TWICE_SECONDS + 0.1)
    os.killpg(program.process.pid, signal.SIGINT)
    program.until("second Ctrl-C")
    assert program.process.wait(60) == 128 + signal.SIGINT
    deadline = time.monotonic() + 60
    while left := still_there(children):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


@pytest.mark.parametrize("method", ["handle", "read"])
@pytest.mark.parametrize("left", ["0.2", "1e6"])
def test_code_that_swallows_its_cancellation_keeps_no_program(
    directory: Path, programs: list[Program], method: str, left: str
) -> None:
    (directory / "stubborn.py").write_text(APP + STUBBORN)
    (directory / "method").write_text(method)
    (directory / "left").write_text(left)
    programs.append(program := Program(directory, HOLDFAST, "run", "stubborn.py"))
    program.until("began")
    program.process.send_signal(signal.SIGINT)
    program.until("ended")
    if left == "0.2":
        program.until(f"Stubborn/a: {method} goes on though it was cancelled")
        assert program.process.wait(60) == 0
        return
    deadline = time.monotonic() + 60
    while program.process.poll() is None and time.monotonic() < deadline:
        # one that comes as its main ends is the first one's
        program.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    assert program.process.stdout is not None
    assert program.process.poll() in (128 + signal.SIGINT, -signal.SIGINT), (
        program.process.stdout.read()
    )
    # A shell shows both as 130.


@pytest.mark.skipif(
    shutil.which("unshare") is None or os.getuid() != 0, reason="it needs a namespace of processes"
)
def test_the_first_process_of_a_container_hears_signals_and_reaps(
    directory: Path, programs: list[Program]
) -> None:
    (directory / "orphans.py").write_text(APP + ORPHANS)
    unshare = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("namespaces are not to be had here")
    programs.append(program := Program(directory, *unshare, HOLDFAST, "run", "orphans.py"))
    program.until("pid 1")
    program.until("reaped")
    children = (
        Path(f"/proc/{program.process.pid}/task/{program.process.pid}/children").read_text().split()
    )
    os.kill(int(children[0]), signal.SIGTERM)
    assert program.process.wait(60) == 0
    assert (directory / "cleaned").read_text() == "up"


ORPHANS = """
import os, subprocess, sys
from holdfast import signals
# Three of the looks below; its first wait has begun, and is as long as ever.
signals._REAP_SECONDS = 0.3

async def main(node: Node) -> None:
    print("pid", os.getpid(), flush=True)
    program = "import subprocess; subprocess.Popen(['sleep', '0.1'])"
    subprocess.run([sys.executable, "-c", program], check=True)
    saw = False
    while True:
        await asyncio.sleep(0.1)
        zombies = [one for one in Path("/proc").glob("[0-9]*/stat") if " Z 1 " in one.read_text()]
        saw = saw or bool(zombies)
        if saw and not zombies:
            break
    print("reaped", flush=True)
    try:
        await asyncio.sleep(600)
    finally:
        Path("cleaned").write_text("up")
"""


def nodes_of_three(program: Program) -> dict[str, int]:
    """The processes of the nodes, by host, once all three hosts are up."""
    found: dict[str, int] = {}
    while len(found) < 3:
        ready = program.event("node-ready")
        found[ready["host"]] = ready["node_pid"]
    program.event("up")
    return found


def test_a_host_that_is_killed_is_said_and_started_again(
    directory: Path, programs: list[Program]
) -> None:
    port = free_base()
    command = (HOLDFAST, "up", "app.py", "--hosts", "3", "--port", str(port), "--json")
    programs.append(program := Program(directory, *command))
    pids = nodes_of_three(program)
    os.kill(parent_of(pids["h2"]), signal.SIGKILL)
    assert program.event("host-ended", host="h2")["code"] == -signal.SIGKILL
    assert program.event("node-ready", host="h2")["node_pid"] != pids["h2"]
    program.process.send_signal(signal.SIGHUP)
    assert {program.event("reloaded")["host"] for _ in range(3)} == {"h1", "h2", "h3"}
    for host in ("h1", "h2", "h3"):
        log = directory / ".holdfast" / host / "nats-server.log"
        deadline = time.monotonic() + 90
        while "Reloaded server configuration" not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.1)
    program.process.send_signal(signal.SIGTERM)
    program.event("stopped")
    assert program.process.wait(60) == 0


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def family(pid: int) -> list[int]:
    """A process and all that it and its children started."""
    found, parents = [pid], {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(path.name)] = parent_of(int(path.name))
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def still_there(pids: list[int]) -> list[int]:
    """Those of these processes that have not ended."""
    return [pid for pid in pids if (found := progress_of(pid)) is not None and found.state != "Z"]


def test_a_frozen_host_is_said_and_started_again(directory: Path, programs: list[Program]) -> None:
    """Where all of it was frozen, as on a machine that is suspended, nothing is ended."""
    command = (HOLDFAST, "up", "app.py", "--hosts", "3", "--port", str(free_base()), "--json")
    programs.append(program := Program(directory, *command))
    nodes = nodes_of_three(program)

    def add() -> str:
        call = (HOLDFAST, "call", "Adder/a", "add", "--timeout", "240")
        end = time.monotonic() + 240
        while True:
            done = subprocess.run(
                call, cwd=directory, check=False, capture_output=True, text=True, timeout=400
            )
            # 3: no majority for a moment, nothing was done
            if done.returncode != 3 or time.monotonic() > end:
                assert done.returncode == 0, done.stderr
                return done.stdout

    assert add().split() == ["1"]
    pids = family(program.process.pid)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(limits.SERVER_FROZEN_LOOKS_MAX + 2)  # longer than a frozen process is given
    finally:
        for pid in pids:  # who looks after the others wakes first
            os.kill(pid, signal.SIGCONT)
    assert add().split() == ["2"]
    host_pid = parent_of(nodes["h2"])
    before = family(host_pid)
    read = len(program.said)
    os.kill(host_pid, signal.SIGSTOP)
    frozen = program.event("host-frozen")
    assert (frozen["host"], frozen["host_pid"]) == ("h2", host_pid) and "SIGSTOP" in frozen["why"]
    events = [json.loads(line)["event"] for line in program.said[read:]]
    assert not {"host-ended", "node-ended", "server-ended", "server-frozen"} & {*events}, (
        "the machine was suspended"
    )
    assert program.event("host-ended", host="h2")["code"] == -signal.SIGKILL
    assert program.event("node-ready", host="h2")["node_pid"] != nodes["h2"]
    assert not still_there(before), "left over"
    assert add().split() == ["3"]


def test_a_start_can_be_ended(directory: Path, programs: list[Program]) -> None:
    ports = free_ports(2)
    cohort = f"127.0.0.1:{ports[1]},127.0.0.2:6222,127.0.0.3:6222"  # the others never come
    command = (
        HOLDFAST,
        "up",
        "app.py",
        "--cohort",
        cohort,
        "--port",
        str(ports[0]),
        "--cluster-port",
        str(ports[1]),
    )
    programs.append(program := Program(directory, *command, "--json", "--name", "a"))
    program.event("server")
    program.process.send_signal(signal.SIGTERM)
    program.event("stopped")
    assert program.process.wait(60) == 0
    assert not any("did not end in time" in line for line in program.said)
