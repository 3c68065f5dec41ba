"""The command line, from the outside: what it prints, for people and programs, and its exit
codes."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.patience import WAITING, again_blocking

from holdfast.cli.place import WHERE_FILE
from holdfast.host.directory import STATE_FILE, Started, remember
from holdfast.host.server import nats_server
from holdfast.host.server.nats_server import free_ports

APP = """
import asyncio
from holdfast import Agent, Node, State, handler, reader

class Number(State):
    n: int = 0

class Adder(Agent[Number], capabilities={"adding"}):
    @handler
    async def add(self, by: int = 1) -> int:
        self.state.n += by
        return self.state.n

    @handler
    async def fail(self) -> None:
        raise ValueError("as told")

    @reader
    async def value(self) -> int:
        return self.state.n
"""
MAIN = """
async def main(node: Node) -> None:
    await node.register(Adder, "made", metadata={"region": "eu"})
    print("reply", await node.agent(Adder, "made").ask(Adder.add, 5))
"""


def holdfast(directory: Path, *arguments: str, code: int = 0, **more: Any) -> str:
    """Run the command, and return what it printed; as JSON where it was asked to."""
    environment = {**os.environ, "COLUMNS": "200", **more}
    environment.pop("HOLDFAST_AT", None)
    done = subprocess.run(
        [str(Path(sys.executable).parent / "holdfast"), *arguments],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + ("" if "--json" in arguments else done.stderr)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "story.py").write_text(APP + MAIN)
    return tmp_path


def test_run_and_look_at_an_embedded_log(directory: Path) -> None:
    assert "reply 5" in holdfast(directory, "run", "story.py")
    at = ("--at", "local:.holdfast/story.db")
    assert "Adder/made" in holdfast(directory, "agents", "list", *at)
    listed = json.loads(holdfast(directory, "agents", "list", *at, "--json"))
    assert [(a["agent"], a["capabilities"], a["metadata"]) for a in listed["agents"]] == [
        ("Adder/made", ["adding"], {"region": "eu"})
    ]
    assert "Adder/made" in holdfast(
        directory, "agents", "find", "adding", "--where", "region eq eu", *at
    )
    assert (
        json.loads(
            holdfast(
                directory, "agents", "find", "adding", "--where", "region eq us", *at, "--json"
            )
        )["total"]
        == 0
    )
    shown = json.loads(holdfast(directory, "agents", "show", "Adder/made", *at, "--json"))
    assert shown["stored"]["state"] == {"n": 5}
    assert "embedded" in holdfast(directory, "status", *at)
    assert (
        holdfast(directory, "call", "Adder/made", "add", "2", *at, "--app", "app.py").strip() == "7"
    )
    assert json.loads(
        holdfast(directory, "call", "Adder/made", "value", *at, "--app", "app.py", "--json")
    ) == {"reply": 7}


def test_errors_say_what_to_do_and_have_their_codes(directory: Path) -> None:
    at = ("--at", "local:x.db")
    assert "--at" in holdfast(directory, "status", code=2)
    assert "no file x.db" in holdfast(directory, "status", *at, code=2)
    assert "KIND/NAME" in holdfast(directory, "agents", "show", "nonsense", *at, code=1)
    assert "--app" in holdfast(directory, "call", "Adder/a", "add", *at, code=2)
    assert "no file" in holdfast(directory, "run", "missing.py", code=2)
    call = ("call", "Adder/a")
    assert "as told" in holdfast(directory, *call, "fail", *at, "--app", "app.py", code=1)
    assert "by" in holdfast(directory, *call, "add", "text", *at, "--app", "app.py", code=1)
    failed = json.loads(
        holdfast(directory, *call, "add", "text", *at, "--app", "app.py", "--json", code=1)
    )
    assert failed["error"] == "BadMessage"
    assert "no scheme" not in holdfast(directory, "status", "--at", "http://x", code=2)
    (port,) = free_ports(1)
    holdfast(directory, "up", "--hosts", "2", "--port", str(port), code=2)
    (directory / "broken.py").write_text("import nothing_of_this_name")
    assert "nothing_of_this_name" in holdfast(
        directory, "up", "broken.py", "--port", str(port), code=2
    )
    assert "Usage" in holdfast(directory, "call", "--help")


def test_beyond_loopback_nothing_starts_without_tls_and_credentials(directory: Path) -> None:
    told = holdfast(directory, "up", "--listen", "0.0.0.0", code=2)
    assert "--tls-cert" in told and "--password-file" in told
    assert not (directory / ".holdfast" / "jetstream").exists()
    (directory / "secret").write_text("s3cret\n")
    holdfast(
        directory, "up", "--listen", "0.0.0.0", "--user", "u", "--password-file", "secret", code=2
    )


@pytest.mark.parametrize("capacity", ["inf", "-inf", "nan", "0", "-1", "1001"])
def test_a_capacity_that_no_plan_can_be_made_with_is_refused(
    directory: Path, capacity: str
) -> None:
    assert "give a number from 0.01 to 1000" in holdfast(
        directory, "up", f"--capacity={capacity}", code=2
    )
    assert not (directory / ".holdfast").exists()


@pytest.mark.parametrize(
    "option", [("--label", "gpu"), ("--capacity", "2"), ("--cluster-port", "7000")]
)
@pytest.mark.parametrize("hosts", [(), ("--hosts", "3")])
def test_what_several_hosts_have_no_use_for_is_refused(
    directory: Path, option: tuple[str, ...], hosts: tuple[str, ...]
) -> None:
    (directory / ".holdfast" / "h1").mkdir(parents=True)
    (directory / ".holdfast" / "h1" / STATE_FILE).write_text("{}")
    remember(directory / ".holdfast", Started(3, below=True))
    told = holdfast(directory, "up", *hosts, *option, code=2)
    assert "leave --name" in told and option[0] in told
    assert hosts or "cluster of 3 hosts" in told


def test_version(directory: Path) -> None:
    assert (
        holdfast(directory, "version").strip()
        == holdfast(directory, "--version").strip()
        == "0.1.0"
    )
    as_module = subprocess.run(
        [sys.executable, "-m", "holdfast", "version"], capture_output=True, text=True, timeout=400
    )
    assert (as_module.returncode, as_module.stdout.strip()) == (0, "0.1.0")


def free_base() -> int:
    """The first of some ports that are free, of those that this process of the tests has for
    itself."""
    while True:
        base = random.choice(nats_server.ports()[:-101])
        try:
            for port in (*range(base, base + 8), base + 100):
                with socket.socket() as one:
                    one.bind(("127.0.0.1", port))
        except OSError:
            continue
        return base


def until_ready(process: subprocess.Popen[str], directory: Path, hosts: int) -> list[str]:
    """Wait until each host has its node, and commands find the cluster; what was said until
    then."""
    assert process.stdout is not None
    said: list[str] = []
    while said.count("node-ready") < hosts:
        line = process.stdout.readline()
        assert line, said
        said.append(json.loads(line)["event"])
    while not (directory / ".holdfast" / WHERE_FILE).exists():
        assert process.poll() is None, said
        time.sleep(0.05)
    return said


@pytest.fixture(params=[1, 3])
def size(request: pytest.FixtureRequest) -> int:
    """How many hosts the cluster has, each with one node."""
    return int(request.param)


@pytest.fixture
def cluster(size: int, directory: Path) -> Iterator[subprocess.Popen[str]]:
    base = free_base()
    command = [
        str(Path(sys.executable).parent / "holdfast"),
        "up",
        "app.py",
        "--hosts",
        str(size),
        "--json",
    ]
    command += ["--port", str(base)]
    command += ["--cluster-port", str(base + 100)] if size == 1 else []
    process = subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE, text=True)
    until_ready(process, directory, size)
    yield process
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        process.wait(400)


def all_served(directory: Path, nodes: int) -> Any:
    """The status, once all is well and so many nodes are there; just after a start fewer shards are
    served, and the command ends with 1 or 3."""
    command = [str(Path(sys.executable).parent / "holdfast"), "status", "--json", *WAITING]
    deadline = time.monotonic() + 400
    while True:
        done = subprocess.run(
            command, cwd=directory, capture_output=True, text=True, timeout=400, check=False
        )
        found = json.loads(done.stdout)
        well = found.get("state") == "well"
        if well and len(found["nodes"]) == nodes:
            assert done.returncode == 0
            return found
        assert done.returncode in ((0,) if well else (1, 3)), done
        assert time.monotonic() < deadline, done


@pytest.mark.cluster
def test_up_call_and_find_it_all_again(
    directory: Path, size: int, cluster: subprocess.Popen[str]
) -> None:
    def waiting_letters() -> Any:
        found = json.loads(holdfast(directory, "dead-letters", "list", "--json", *WAITING))
        assert found
        return found

    assert holdfast(directory, "call", "Adder/a", "add", "4", *WAITING).strip() == "4"
    assert "durable" in holdfast(directory, "send", "Adder/a", "add", "5", *WAITING)
    holdfast(directory, "send", "Adder/a", "fail", *WAITING)
    status = all_served(directory, size)
    assert status["served"] == status["shards"]
    assert {node["kinds"][0] for node in status["nodes"]} == {"Adder"}
    letters = again_blocking(waiting_letters, AssertionError, seconds=400)
    assert letters[0]["handler"] == "fail"
    letter = letters[0]["id"]
    assert "as told" in holdfast(directory, "dead-letters", "show", letter, *WAITING)
    holdfast(directory, "dead-letters", "drop", letter, *WAITING)
    holdfast(directory, "dead-letters", "replay", letter, *WAITING, code=1)
    assert "UnknownKind" in holdfast(directory, "call", "Other/a", "add", *WAITING, code=1)
    assert holdfast(directory, "call", "Adder/a", "value", *WAITING).strip() == "9"
    holdfast(
        directory,
        "call",
        "Adder/a",
        "value",
        "--at",
        "nats://127.0.0.1:1",
        "--timeout",
        "1",
        code=3,
    )
    for more in ([], ["--hosts", "1"], ["--hosts", "3"], ["--dir", str(linked(directory))]):
        told = holdfast(directory, "up", "app.py", "--port", str(free_base()), *more, code=2)
        assert f"process {cluster.pid}" in told and "--dir" in told, told
    cluster.send_signal(signal.SIGINT)
    assert cluster.wait(400) == 0
    assert "--at" in holdfast(directory, "status", code=2)
    other = "--hosts", "5" if size == 1 else "1"
    assert f"holdfast up {'--name' if size == 1 else '--hosts 3'}" in holdfast(
        directory, "up", *other, code=2
    )
    starts_what_is_there(directory, size)


def linked(directory: Path) -> Path:
    """The same directory by another path."""
    link = directory / "link"
    if not link.exists():
        link.symlink_to(directory / ".holdfast")
    return link


def starts_what_is_there(directory: Path, hosts: int) -> None:
    """A start that says nothing of hosts starts those that the directory has, with their data."""
    base = str(free_base())
    command = [
        str(Path(sys.executable).parent / "holdfast"),
        "up",
        "app.py",
        "--json",
        "--port",
        base,
    ]
    process = subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE, text=True)
    said = until_ready(process, directory, hosts)
    assert said.count("again") == (hosts > 1)
    assert holdfast(directory, "call", "Adder/a", "value", *WAITING).strip() == "9"
    process.send_signal(signal.SIGINT)
    assert process.wait(400) == 0


SLOW = """
import time
from holdfast import pipes
from holdfast.cli import main, up
from holdfast.errors import StorageFailed

pipes.Writer.close.__defaults__ = (240.0,)  # the reader is slow, and so may be the machine
write = up.write_all

def slow(pipe, data):
    time.sleep(0.2)
    write(pipe, data)

async def serve(settings, say, lock):
    say("reloaded", {})
    say("stopping", {})
    raise StorageFailed("gone")

up.write_all, up.serve = slow, serve
main.main()
"""


@pytest.mark.cluster
def test_the_error_of_up_is_its_last_line_however_slowly_it_is_read(tmp_path: Path) -> None:
    client, routes = free_ports(2)
    options = ["up", "--nodes", "0", "--json", "--port", str(client), "--cluster-port", str(routes)]
    command = [sys.executable, "-c", SLOW, *options]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False
    )
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line.get("event") for line in said] == ["reloaded", "stopping", None], done
    assert (said[-1]["error"], done.returncode) == ("StorageFailed", 3)
