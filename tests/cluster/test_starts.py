"""Processes that a host starts: where the machine has none left, while it ends, and where one takes
long to begin."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from holdfast import limits
from holdfast.errors import ConfigError
from holdfast.host import spawn
from holdfast.host.heard import Heard
from holdfast.host.server import nats_server
from holdfast.host.server.nats_config import ServerSettings
from holdfast.host.server.nats_server import NatsServer, check_version, free_ports
from holdfast.host.settings import HostSettings
from holdfast.host.supervisor import Host

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
STARTED = spawn.start


async def until(met: Callable[[], bool]) -> None:
    async with asyncio.timeout(240):
        while not met():
            await asyncio.sleep(0.01)


async def test_a_machine_without_processes_left_does_not_end_a_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[str, dict[str, Any]]] = []
    (port,) = free_ports(1)
    server = ServerSettings("full", str(tmp_path / "full"), port=port)
    host = Host(
        HostSettings("full", server, [], nodes=1, replicas=1),
        lambda event, facts: said.append((event, facts)),
    )
    refused: list[str] = []

    async def refuse(*_: Any, **__: Any) -> Any:
        refused.append("a process")
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    async def refuse_the_server(*command: Any, **options: Any) -> Any:
        return await (refuse() if "-c" in command else execute(*command, **options))

    execute = asyncio.create_subprocess_exec

    def ready() -> int:
        return sum(event == "node-ready" for event, _ in said)

    await host.start()
    try:
        await until(lambda: ready() == 1)
        child = host.children[0]
        monkeypatch.setattr(spawn, "start", refuse)
        assert child.process is not None and host.server is not None
        child.process.kill()
        await until(lambda: len(refused) >= 2)
        ends = [facts for event, facts in said if event == "node-ended"]
        assert "no process can be started" in str(ends[-1]["error"]) and child.incarnation == ""
        monkeypatch.setattr(spawn, "start", STARTED)
        await until(lambda: ready() == 2)
        with monkeypatch.context() as patch:
            patch.setattr(asyncio, "create_subprocess_exec", refuse_the_server)
            await host.server.kill()
            await until(lambda: sum(event == "server-failed" for event, _ in said) >= 2)
        await until(lambda: sum(event == "server" for event, _ in said) == 2)
        assert not any(task.done() for task in host._tasks)
    finally:
        await host.stop()


async def test_no_node_is_started_while_its_host_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    (port,) = free_ports(1)
    server = ServerSettings("ends", str(tmp_path / "ends"), port=port)
    stopping: list[asyncio.Task[None]] = []

    def hear(event: str, _facts: dict[str, Any]) -> None:
        said.append(event)
        if event == "node-ended":  # at once: after a pause the node would be started again
            stopping.append(asyncio.get_running_loop().create_task(host.stop()))

    host = Host(HostSettings("ends", server, [], nodes=2, replicas=1), hear)
    started: list[spawn.Child] = []

    async def note(*args: Any) -> spawn.Child:
        started.append(await STARTED(*args))
        return started[-1]

    stopped = 0
    await host.start()
    try:
        await until(lambda: said.count("node-ready") == 2)
        monkeypatch.setattr(spawn, "start", note)
        first, second = (child.process for child in host.children)
        assert first is not None and second is not None
        stopped = second.pid
        # so the end of the host takes longer than the pause of the other
        os.kill(stopped, signal.SIGSTOP)
        first.kill()
        await until(lambda: bool(stopping))
        keeping = next(task for task in host._tasks if "_keep_node" in repr(task.get_coro()))
        await until(keeping.done)
        assert not stopping[0].done() and started == []
        os.kill(stopped, signal.SIGCONT)
        await stopping[0]
    finally:
        with suppress(ProcessLookupError):
            if stopped:
                os.kill(stopped, signal.SIGCONT)
        await host.stop()


SERVER = """#!{python}
import sys, time
if "--version" in sys.argv:
    print("nats-server: v2.99.0", flush=True)
    {version}
else:
    while not {met}:
        {work}
    import os
    os.execv({real!r}, [{real!r}, *sys.argv[1:]])
"""


def server(directory: Path, **parts: str) -> Path:
    """A nats-server that takes long over something."""
    path = directory / "slow-server"
    known = {"version": "pass", "met": "True", "work": "pass", **parts}
    path.write_text(
        SERVER.format(python=sys.executable, real=str(nats_server.find_binary()), **known)
    )
    path.chmod(0o700)
    return path


async def test_a_server_that_works_before_it_listens_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SERVER_IDLE_SECONDS", 2.0)
    go_on = tmp_path / "go on"
    met = f"__import__('pathlib').Path({str(go_on)!r}).exists()"
    working = server(tmp_path, met=met, work="sum(range(10000))")
    monkeypatch.setattr(nats_server, "find_binary", lambda: working)
    (port,) = free_ports(1)
    one = NatsServer(ServerSettings("slow", str(tmp_path / "slow"), port=port))
    starting = asyncio.create_task(one.start())
    try:
        looks: list[int] = []
        look = nats_server.progress_of

        def counted(pid: int) -> Any:
            looks.append(pid)
            return look(pid)

        monkeypatch.setattr(nats_server, "progress_of", counted)
        await until(lambda: len(looks) >= 4)  # a second or more apart
        assert not starting.done()
        go_on.touch()
        await starting
        assert set(looks) == {one.pid} and one.starts == 1
    finally:
        starting.cancel()
        await one.kill()
        one.lock.release()


async def test_a_server_that_does_nothing_before_it_listens_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SERVER_IDLE_SECONDS", 1.0)
    idle = server(tmp_path, met="False", work="time.sleep(600)")
    monkeypatch.setattr(nats_server, "find_binary", lambda: idle)
    (port,) = free_ports(1)
    one = NatsServer(ServerSettings("idle", str(tmp_path / "idle"), port=port))
    try:
        with pytest.raises(ConfigError, match="takes no connections"):
            await one.start()
        assert one.pid == 0
    finally:
        one.lock.release()


async def test_a_program_that_says_no_version_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nats_server, "_VERSION_SECONDS", 0.5)
    with pytest.raises(ConfigError, match="does not say its version"):
        await check_version(server(tmp_path, version="time.sleep(600)"))


def test_hosts_that_are_gone_for_long_are_forgotten_and_there_are_never_too_many() -> None:
    now = [0.0]
    heard = Heard(lambda: now[0])
    for number in range(limits.HOSTS_HEARD_MAX + 5):
        heard.note(f"h{number}")
    assert len(heard.ago()) == limits.HOSTS_HEARD_MAX and "h0" in heard.ago()
    now[0] = limits.HOST_REMEMBERED_SECONDS
    heard.note("h0")
    heard.note("late")
    assert "late" not in heard.ago()
    now[0] += 1.0
    heard.note("late")
    assert heard.ago() == {"h0": 1.0, "late": 0.0}
