"""A running program's embedded log, looked at from another process: everything that a client can
do, and no harm done."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import pytest
from tests.patience import PATIENT_SECONDS, again_blocking, children_wait

from holdfast import (
    Agent,
    Closed,
    ConfigError,
    HandlerFailed,
    Node,
    NoQuorum,
    State,
    handler,
    limits,
    reader,
)
from holdfast.engines.local import socket_engine, wire
from holdfast.engines.local.engine import LocalEngine
from holdfast.engines.local.socket_engine import SocketEngine
from holdfast.errors import HoldfastError
from holdfast.node import checkup

APP = """
from holdfast import Agent, State, handler, reader

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


def holdfast(
    directory: Path, *arguments: str, code: int = 0, bounds: Mapping[str, str] | None = None
) -> str:
    """Run the command, and return what it printed. It is run again while the program that has the
    log open does not answer: nothing was sent to that one by then."""
    environment = {**os.environ, "HOLDFAST_AT": "local:dev.db", **(bounds or {})}
    until = time.monotonic() + PATIENT_SECONDS
    while True:
        done = subprocess.run(
            [sys.executable, "-m", "holdfast", *arguments],
            cwd=directory, env=environment, capture_output=True, text=True, timeout=400,
        )  # fmt: skip
        silent = done.returncode == 3 and "does not answer" in done.stdout + done.stderr
        if code == 3 or not silent or time.monotonic() > until:
            break
    assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture
def running(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """`holdfast run`, which serves the application."""
    (tmp_path / "app.py").write_text(APP)
    process = subprocess.Popen(
        [sys.executable, "-m", "holdfast", "run", "app.py", "--at", "local:dev.db"],
        cwd=tmp_path, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert "serving" in process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def test_commands_beside_a_running_program(tmp_path: Path, running: subprocess.Popen[str]) -> None:
    def all_is_served() -> None:
        status = holdfast(tmp_path, "status")
        assert f"open in process {running.pid}" in status and "Adder" in status, status
        assert "128 of 128" in status, status

    again_blocking(all_is_served, AssertionError)
    assert holdfast(tmp_path, "call", "Adder/a", "add", "5").strip() == "5"
    assert "durable" in holdfast(tmp_path, "send", "Adder/a", "add", "2")
    holdfast(tmp_path, "send", "Adder/b", "fail")
    assert "as told" in holdfast(tmp_path, "call", "Adder/b", "fail", code=1)
    while json.loads(holdfast(tmp_path, "call", "Adder/a", "value", "--json"))["reply"] != 7:
        pass
    assert json.loads(holdfast(tmp_path, "agents", "show", "Adder/a", "--json"))["stored"][
        "state"
    ] == {"n": 7}
    assert "open in process" in holdfast(
        tmp_path, "call", "Adder/a", "add", "--app", "app.py", code=2
    )
    assert "facts" not in holdfast(tmp_path, "backup", "create", "b.backup")
    assert f"open in process {running.pid}" in holdfast(tmp_path, "restore", "b.backup", code=2)
    assert "shards-claimed" in holdfast(tmp_path, "events")
    while not (letters := json.loads(holdfast(tmp_path, "dead-letters", "list", "--json"))):
        pass
    holdfast(tmp_path, "dead-letters", "drop", letters[0]["id"])
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert (tmp_path / "dev.db.sock").exists()
    assert "nobody has it open" in holdfast(tmp_path, "status")
    assert holdfast(tmp_path, "call", "Adder/a", "value", "--app", "app.py").strip() == "7"
    assert not (tmp_path / "dev.db.sock").exists()


def test_a_program_whose_log_is_removed_ends_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    process = subprocess.Popen(
        [sys.executable, "-m", "holdfast", "run", "app.py", "--at", "local:data/dev.db"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert "serving" in process.stdout.readline()
        for path in (tmp_path / "data").iterdir():
            path.unlink()
        _, problems = process.communicate(timeout=400)
    finally:
        process.kill()
    assert process.returncode == 3
    assert (
        "StorageFailed" in problems and "dev.db is gone" in problems and "Traceback" not in problems
    )


async def test_a_node_that_serves_nothing_is_a_client_of_the_one_that_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkup, "_WHO_SECONDS", 60.0)
    at = f"local:{tmp_path}/log.db"
    async with Node.join(at, serve=[Adder], name="owner") as owner:
        mode = (tmp_path / "log.db.sock").stat().st_mode
        assert stat.S_ISSOCK(mode) and not mode & 0o077
        async with Node.join(at) as client, Node.join(at) as other:
            assert isinstance(client.engine, SocketEngine) and client.engine.owner == os.getpid()
            assert [member.name for member in client.members() if member.kinds] == ["owner"]
            asked = (
                node.agent(Adder, "a").ask(Adder.add)
                for node in (owner, client, other)
                for _ in range(100)
            )
            assert sorted(await asyncio.gather(*asked)) == list(range(1, 301))
            with pytest.raises(HandlerFailed, match="as told"):
                await client.agent(Adder, "a").ask(Adder.fail)
            await client.register(Adder, "named", metadata={"a": 1})
            await other.registry.reach(client.registry.position)
            assert other.lookup(Adder, "named") is not None
            for number in range(20):
                await client.agent(Adder, "b").send(Adder.add, number)
            async with asyncio.timeout(240):
                while await other.agent(Adder, "b").ask(Adder.value) != sum(range(20)):
                    await asyncio.sleep(0.01)
            with pytest.raises(ConfigError, match="is open in process"):
                async with Node.join(at, serve=[Adder]):
                    pass
    assert not (tmp_path / "log.db.sock").exists()
    async with Node.join(at) as alone:
        assert isinstance(alone.engine, LocalEngine)
        assert not (tmp_path / "log.db.sock").exists(), "one that serves nothing lets nobody in"


def crowd(log: Path) -> list[socket.socket]:
    """Visitors that nobody takes in, as many as may wait."""
    waiting = []
    while True:
        try:
            waiting.append(wire.connect(log))
        except BlockingIOError:
            return waiting


@pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere the system refuses whom it has no room for"
)
@pytest.mark.timeout(900)
async def test_a_process_that_takes_nobody_in_blocks_no_visitor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CONNECT_SECONDS", 0.5)
    log = tmp_path / "log.db"
    log.touch()
    log.with_name("log.db.lock").write_text("4711\n")
    with wire.listen(wire.socket_path(log)) as listening:
        for crowded in (False, True):  # it waits to be taken in, and for a place to wait at
            waiting = crowd(log) if crowded else []
            assert socket_engine.answers(log)
            with pytest.raises(
                NoQuorum, match=r"process 4711 has .*log\.db open and does not answer"
            ):
                await SocketEngine(log).open()
            for one in waiting:
                one.close()
        while True:
            try:
                listening.accept()[0].close()
            except BlockingIOError:
                break
    assert not socket_engine.answers(log)


@pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere the system refuses whom it has no room for"
)
@pytest.mark.timeout(900)
def test_commands_beside_a_stopped_program_end_and_say_why(
    tmp_path: Path, running: subprocess.Popen[str]
) -> None:
    running.send_signal(signal.SIGSTOP)
    waiting = crowd(tmp_path / "dev.db")
    bounds = children_wait("holdfast.limits:CONNECT_SECONDS", 5.0)
    for command in (("status",), ("call", "Adder/a", "add")):
        said = holdfast(tmp_path, *command, code=3, bounds=bounds)
        assert f"process {running.pid} has" in said
    for one in waiting:
        one.close()
    running.send_signal(signal.SIGCONT)
    assert holdfast(tmp_path, "call", "Adder/a", "add").strip() == "1"


async def test_when_the_owner_ends_its_visitors_are_told(tmp_path: Path) -> None:
    owner = LocalEngine(tmp_path / "log.db")
    await owner.open()
    await owner.let_in()
    await owner.ensure_cells(["c"], 1)
    visitor = SocketEngine(tmp_path / "log.db")
    await visitor.open()
    tail = visitor.log.tail("c", ["c.>"])
    assert (await anext(tail)).caught_up
    waiting = asyncio.ensure_future(anext(tail))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    await owner.close()
    with pytest.raises(Closed):
        await waiting
    with pytest.raises(Closed, match=r"log\.db"):
        await visitor.log.read("c", "c.a")
    assert not visitor.connected()
    visitor.bus.publish("a.b", b"")
    await visitor.close()
    await visitor.close()
    with pytest.raises(ConfigError):
        await SocketEngine(tmp_path / "log.db").open()


async def test_nonsense_from_a_visitor_harms_nobody(tmp_path: Path) -> None:
    owner = LocalEngine(tmp_path / "log.db")
    await owner.open()
    await owner.let_in()
    await owner.ensure_cells(["c"], 1)
    chance = random.Random(3)
    frames = [
        b"",
        b"\x00",
        b"\xff" * 64,
        struct.pack("<I", 2**32 - 1),
        struct.pack("<I", 4) + b"\xc1\xc1\xc1\xc1",
        *(
            wire.frame(one)
            for one in (
                None,
                7,
                [],
                [1],
                [1, 2, 3],
                [1, "x", 5],
                [1, "hello", [2]],
                [1, "hello", []],
                [-1, "cells", [[]]],
                [1, "append", ["c", [["c.a", b"", ["c.a"]]]]],
                [1, "append", ["c", []]],
                [1, "next", [9]],
                [1, "tail", [1, "c", ["*bad*"], 1]],
                [1, "blob_get", ["../x"]],
                [1, "read", ["no", "no"]],
                [0, "publish", ["bad subject", b"", ""]],
                [0, "publish", [1, 2, 3]],
                [1, "__class__", []],
                [2**63, "cells", []],
                [1, "subscribe", [1, "a b", ""]],
            )
        ),
        *(chance.randbytes(chance.randrange(200)) for _ in range(50)),
    ]
    for frame in frames:
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "log.db.sock"))
        writer.write(frame)
        writer.write_eof()
        while await reader.read(4096):
            pass
        writer.close()
    visitor = SocketEngine(tmp_path / "log.db")
    await visitor.open()
    for name, arguments in (
        ("append", ["c", [["c.a", 5, None]]]),
        ("nothing", []),
        ("next", ["x"]),
        ("read", ["nowhere", "n"]),
    ):
        with pytest.raises(HoldfastError):
            await visitor._line.ask(name, *arguments)
    assert await visitor.cells() == ["c"]
    await visitor.close()
    await owner.close()


async def test_what_is_in_the_sockets_place_is_left_alone_but_for_a_socket(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    place = tmp_path / "log.db.sock"
    for make in (
        lambda: place.symlink_to(victim),
        lambda: place.write_text("mine"),
        lambda: place.mkdir(),
    ):
        make()
        engine = LocalEngine(tmp_path / "log.db")
        await engine.open()
        await engine.let_in()
        await engine.ensure_cells(["c"], 1)  # it is used all the same
        assert not socket_engine.answers(tmp_path / "log.db")
        await engine.close()
        assert place.is_symlink() or place.is_dir() or place.read_text() == "mine"
        place.rmdir() if place.is_dir() and not place.is_symlink() else place.unlink()
    assert victim.read_text() == "precious"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(place))  # nobody listens
    assert not socket_engine.answers(tmp_path / "log.db")
    engine = LocalEngine(tmp_path / "log.db")
    await engine.open()
    await engine.let_in()
    assert socket_engine.answers(tmp_path / "log.db")
    await engine.close()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere such a log is not looked at")
async def test_a_long_path_has_a_socket_as_well(tmp_path: Path) -> None:
    log = tmp_path / ("d" * 100) / ("e" * 100) / "log.db"
    async with Node.join(f"local:{log}", serve=[Adder]), Node.join(f"local:{log}") as client:
        assert isinstance(client.engine, SocketEngine)
        assert await client.agent(Adder, "a").ask(Adder.add) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="it needs root to become somebody else")
async def test_another_user_is_not_let_in(tmp_path: Path) -> None:
    for path in (tmp_path, *tmp_path.parents):
        if str(path).startswith("/tmp/"):
            path.chmod(path.stat().st_mode | 0o055)
    async with Node.join(f"local:{tmp_path}/log.db", serve=[Adder]):
        socket_path = tmp_path / "log.db.sock"
        socket_path.chmod(0o666)  # even so
        assert await asyncio.to_thread(_as_nobody, socket_path) == b""


def _as_nobody(path: Path) -> bytes:
    """What another user hears there who asks for the cells."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setuid(65534)
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(path))
                connection.sendall(wire.frame([1, "cells", []]))
                os.write(writing, connection.recv(100))
        except ConnectionError:
            pass
        except BaseException as error:
            os.write(writing, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as file:
        return file.read()


def test_frames_have_a_bound() -> None:
    async def read(data: bytes) -> object:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        return await wire.read(reader)

    assert asyncio.run(read(wire.frame([1, "a", b"b"]))) == [1, "a", b"b"]
    with pytest.raises(HoldfastError):
        asyncio.run(read(struct.pack("<I", wire.FRAME_BYTES_MAX + 1)))
    with pytest.raises(EOFError):
        asyncio.run(read(wire.frame("x")[:-1]))
    assert msgspec.msgpack.decode(wire.frame(7)[4:]) == 7
