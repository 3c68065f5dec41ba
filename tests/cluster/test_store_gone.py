"""A server whose files were removed under it is stopped by its host, which ends, instead of
acknowledging into nothing."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.app import Account

from holdfast import LocalCluster, Node, NotFound
from holdfast.errors import DataLoss
from holdfast.host import state
from holdfast.host.server.nats_server import free_ports
from holdfast.host.server.store import Store
from holdfast.host.state import NAME


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """As a server makes it."""
    for stream in ("g1c0", "g1reg"):
        made = tmp_path / "store" / "jetstream" / "HF" / "streams" / stream
        (made / "msgs").mkdir(parents=True)
        (made / "meta.inf").write_text("{}")
    return tmp_path / "store"


def test_a_store_that_grows_and_shrinks_in_order_is_there(directory: Path) -> None:
    store = Store(directory)
    streams = directory / "jetstream" / "HF" / "streams"
    assert [store.look() for _ in range(3)] == [""] * 3
    (streams / "new").mkdir()  # its sign comes later, when its server is slow or frozen
    assert [store.look() for _ in range(5)] == [""] * 5
    (streams / "new" / "meta.inf").write_text("{}")
    assert [store.look() for _ in range(2)] == [""] * 2
    (streams / "g1c0" / "meta.inf").unlink()  # it is being deleted
    assert store.look() == ""
    shutil.rmtree(streams / "g1c0")
    assert [store.look() for _ in range(3)] == [""] * 3


def test_an_empty_store_is_there(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    store = Store(tmp_path / "store")
    assert [store.look() for _ in range(2)] == [""] * 2


HARMS: list[Callable[[Path], object]] = [
    shutil.rmtree,
    lambda path: shutil.rmtree(path / "jetstream"),
    lambda path: shutil.rmtree(path / "jetstream" / "HF" / "streams"),
    lambda path: path.rename(path.parent / "other"),
    lambda path: (
        shutil.copytree(path, path.parent / "other"),
        shutil.rmtree(path),
        (path.parent / "other").rename(path),
    ),
    lambda path: [one.unlink() for one in path.rglob("meta.inf")],
    lambda path: [one.unlink() for one in path.rglob("*") if one.is_file()],
]


@pytest.mark.parametrize("number", range(len(HARMS)))
def test_what_was_removed_is_noticed(directory: Path, number: int) -> None:
    store = Store(directory)
    assert store.look() == ""
    HARMS[number](directory)
    assert "store" in (store.look() or store.look())


def begin(directory: Path, stream: str = "anew") -> None:
    """What a server makes of a directory that was removed, with another stream."""
    (made := directory / "jetstream" / "HF" / "streams" / stream).mkdir(parents=True, exist_ok=True)
    (made / "meta.inf").write_text("{}")


def test_what_a_server_began_anew_is_not_its_store(directory: Path) -> None:
    for number, removed in enumerate(
        [directory, directory / "jetstream", directory / "jetstream" / "HF"]
    ):
        (directory / NAME).write_text("h1-1a")
        store = Store(directory)
        assert store.look() == "" and not store.is_anew()
        shutil.rmtree(removed)
        if removed == directory:
            assert not store.is_anew(), "nothing is there"
        begin(directory, f"anew{number}")
        assert "replaced" in store.look() and store.is_anew()


def test_it_is_noticed_that_a_store_was_removed_before_it_held_a_stream(tmp_path: Path) -> None:
    """Its directories may have the numbers of those before; its name is not there."""
    (directory := tmp_path / "store").joinpath(NAME.parent).mkdir(parents=True)
    (directory / NAME).write_text("h1-1a")
    store = Store(directory)
    assert store.look() == "" and not store.is_anew()
    (directory / NAME).unlink()
    begin(directory)
    assert "replaced" in store.look() and store.is_anew()


def test_a_store_that_somebody_put_there_is_not_put_aside(directory: Path) -> None:
    """As a copy of it, on a larger disk: its name is in it."""
    (directory / NAME).write_text("h1-1a")
    store = Store(directory)
    assert store.look() == ""
    shutil.copytree(directory, directory.with_name("copy"))
    shutil.rmtree(directory)
    directory.with_name("copy").rename(directory)
    assert "replaced" in store.look() and not store.is_anew()


def test_what_a_server_began_anew_while_its_host_did_not_look_is_not_its_store(
    directory: Path,
) -> None:
    """It ended and was started again, or the directories have the numbers of those before."""
    (directory / NAME).write_text("h1-1a")
    store = Store(directory)
    assert store.look() == ""
    shutil.rmtree(directory)
    begin(directory)
    again = Store(directory, store)
    assert "replaced" in again.look() and again.is_anew()


def test_a_store_whose_streams_all_moved_to_others_is_there(directory: Path) -> None:
    """As when a host loses its vote in order."""
    (directory / NAME).write_text("h1-1a")
    store = Store(directory)
    assert store.look() == ""
    for stream in (directory / "jetstream" / "HF" / "streams").iterdir():
        shutil.rmtree(stream)
    for seen in (store, Store(directory, store)):
        assert [seen.look() for _ in range(3)] == [""] * 3 and not seen.is_anew()
    (directory / NAME).unlink()
    assert "replaced" in store.look(), "then nothing of it is left"


def lose(store: Path) -> None:
    """Remove what a server writes to: it may begin another file there meanwhile."""
    away = store.rename(store.with_name("away"))
    while away.exists():
        shutil.rmtree(away, ignore_errors=True)


CLUSTER_APP = str(Path(__file__).parent / "app.py")

APP = """
from holdfast import Agent, State, handler

class S(State):
    n: int = 0

class A(Agent[S]):
    @handler
    async def add(self) -> int:
        self.state.n += 1
        return self.state.n
"""


@pytest.mark.cluster
def test_a_host_ends_when_its_servers_files_are_removed(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    client, routes = free_ports(2)
    command = [sys.executable, "-m", "holdfast", "up", "app.py", "--json"]
    command += ["--port", str(client), "--cluster-port", str(routes)]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line)["event"] == "node-ready":
                lose(tmp_path / ".holdfast" / "jetstream")
                break
        events = [json.loads(line) for line in process.stdout]
        assert process.wait(60) == 3
        assert events[-1].get("error") == "StorageFailed", events[-5:]
        events.pop()
        (gone,) = [one for one in events if one["event"] == "store-gone"]
        assert "jetstream" in gone["text"]
        assert "server" not in [one["event"] for one in events], (
            "it was started again, without data"
        )
        assert not (tmp_path / ".holdfast" / "jetstream" / "jetstream" / "HF").exists()
        again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400)
        assert again.returncode == 1 and "DataLoss" in again.stdout and "a backup" in again.stdout
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk, which can be mounted on a directory, and keeps what it has when it is unmounted
    there."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=160m,mode=755", "holdfast-test", str(path)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("a small disk is mounted by root only")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.mark.cluster
def test_a_host_ends_when_its_servers_disk_is_unmounted(tmp_path: Path, disk: Path) -> None:
    """Once the disk is mounted again, the next start finds everything."""
    (tmp_path / "app.py").write_text(APP)
    directory = tmp_path / ".holdfast"
    directory.mkdir()
    client, routes = free_ports(2)
    command = [sys.executable, "-m", "holdfast", "up", "app.py", "--json"]
    command += ["--port", str(client), "--cluster-port", str(routes)]

    def mount() -> None:
        subprocess.run(["mount", "--bind", str(disk), str(directory)], check=True)

    def unmount() -> None:
        subprocess.run(["umount", "-l", str(directory)], check=True)

    def told(*arguments: str) -> str:
        call = [sys.executable, "-m", "holdfast", *arguments, "--at", f"nats://127.0.0.1:{client}"]
        return subprocess.run(
            call, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=400
        ).stdout

    mount()
    try:
        with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                next(line for line in process.stdout if json.loads(line)["event"] == "node-ready")
                assert told("call", "A/a", "add").split() == ["1"]
                unmount()
                events = [json.loads(line) for line in process.stdout]
                assert process.wait(60) == 3
            finally:
                process.kill()
        assert events[-1].get("error") == "StorageFailed", events[-5:]
        events.pop()
        (gone,) = [one for one in events if one["event"] == "store-gone"]
        assert "its disk was unmounted" in gone["text"]
        assert "server" not in [one["event"] for one in events], (
            "it was started again, without data"
        )
        assert not [path for path in directory.rglob("*") if path.is_file()], (
            "something was begun below the disk"
        )
        mount()
        with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                next(line for line in process.stdout if json.loads(line)["event"] == "node-ready")
                assert told("call", "A/a", "add").split() == ["2"]
                process.terminate()
                process.stdout.read()
                assert process.wait(60) == 0
            finally:
                process.kill()
    finally:
        if os.path.ismount(directory):
            unmount()


async def begin_anew(cluster: LocalCluster, directory: Path) -> None:
    """Servers make removed directories again where a stream is made before the hosts look."""
    hosts = [cluster._hosts[name].pid for name in cluster.hosts]
    anew = [
        directory / name / "jetstream" / "jetstream" / "HF" / "streams" / "anew"
        for name in cluster.hosts
    ]
    async with Node.join(cluster.urls) as node:
        for pid in hosts:
            os.kill(pid, signal.SIGSTOP)
        try:
            for name in cluster.hosts:
                lose(directory / name / "jetstream")
            making = asyncio.create_task(node.engine.ensure_cells(["anew"], 3))
            async with asyncio.timeout(240):
                while not all((one / "meta.inf").exists() for one in anew):
                    await asyncio.sleep(0.05)
            making.cancel()
            await asyncio.wait([making])
        finally:
            for pid in hosts:
                os.kill(pid, signal.SIGCONT)


@pytest.mark.cluster
@pytest.mark.parametrize("begun", [False, True], ids=["gone", "begun anew"])
async def test_hosts_that_all_lost_their_files_begin_no_empty_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    (tmp_path / "app.py").write_text(APP)
    directory, app = tmp_path / "hosts", str(tmp_path / "app.py")
    async with LocalCluster(directory, [app], log=tmp_path / "log") as cluster:
        if begun:
            await begin_anew(cluster, directory)
        else:
            for name in cluster.hosts:
                lose(directory / name / "jetstream")
        async with asyncio.timeout(240):
            with pytest.raises(DataLoss, match="Restore a backup"):
                await cluster.keep()
            # A host that is ended before it looked leaves what its server began, and refuses it
            # when it starts.
            while begun and not all(state.stores_aside(directory / name) for name in cluster.hosts):
                await asyncio.sleep(0.05)
    with pytest.raises(DataLoss):
        async with LocalCluster(directory, [app], log=tmp_path / "log"):
            pass

    # Hosts of several machines do not know of each other's files.
    monkeypatch.setattr(LocalCluster, "_refuse_loss", lambda *_: None)
    waiting: set[str] = set()
    told = asyncio.Event()

    def heard(event: str, facts: dict[str, Any]) -> None:
        if event == "nothing-left":
            waiting.add(facts["host"])
        if len(waiting) == 3:
            told.set()

    cluster = LocalCluster(directory, [app], log=tmp_path / "log", report=heard)
    starting = [asyncio.create_task(cluster.start_host(name, 400)) for name in cluster.hosts]
    try:
        async with asyncio.timeout(400):
            await told.wait()
        assert not any(task.done() and task.exception() is None for task in starting), (
            "an empty cluster was begun"
        )
        with pytest.raises(NotFound, match="no cluster here yet"):
            async with Node.join(cluster.urls):
                pass
    finally:
        for task in starting:
            task.cancel()
        await asyncio.gather(*starting, return_exceptions=True)
        await cluster.stop()


@pytest.mark.cluster
async def test_stores_that_are_put_back_have_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after machines began without their disks: each host took another name meanwhile."""
    monkeypatch.setattr(LocalCluster, "_refuse_loss", lambda *_: None)
    directory, waiting = tmp_path / "hosts", asyncio.Event()
    told: list[str] = []

    def heard(event: str, facts: dict[str, Any]) -> None:
        if event == "nothing-left":
            told.append(facts["host"])
            if len(told) == 3:
                waiting.set()

    async def count(cluster: LocalCluster) -> int:
        async with Node.join(cluster.urls) as node:
            return await node.agent(Account, "a").ask(Account.add, 1)

    async with LocalCluster(
        directory, [CLUSTER_APP], log=tmp_path / "log", report=heard
    ) as cluster:
        assert await count(cluster) == 1
        names = cluster.hosts
    for name in names:
        (directory / name / "jetstream").rename(directory / name / "kept")
    starting = [asyncio.create_task(cluster.start_host(name, 400)) for name in names]
    async with asyncio.timeout(240):
        await waiting.wait()
    for task in starting:
        task.cancel()
    await asyncio.gather(*starting, return_exceptions=True)
    await cluster.stop()
    for name in names:
        (directory / name / "jetstream").rename(directory / name / "empty")
        (directory / name / "kept").rename(directory / name / "jetstream")
    async with LocalCluster(
        directory, [CLUSTER_APP], log=tmp_path / "log", report=heard
    ) as cluster:
        assert await count(cluster) == 2


PATIENT = """
from holdfast.host.rpc import service
from holdfast.host.voting import voter
voter._PEEK_SECONDS = 240.0
service.ask_host.__defaults__ = (None, 240.0)
"""
"""For a host that is to hear the others when it starts, however long they take."""


@pytest.mark.cluster
async def test_a_store_that_the_cluster_replaced_is_put_aside_when_it_comes_back(
    tmp_path: Path,
) -> None:
    """Its host began elsewhere, with an empty disk; then the machine with the old one is there
    again."""
    directory, old = tmp_path / "hosts", tmp_path / "old"

    def server() -> str:
        kept = state.load(directory / "h2")
        return "" if kept is None or kept.record is None else kept.record.hosts["h2"].server

    async with (
        LocalCluster(directory, [CLUSTER_APP], log=tmp_path / "log") as cluster,
        Node.join(cluster.urls) as node,
    ):
        agent = node.agent(Account, "a")
        assert await agent.ask(Account.add, 1) == 1
        async with asyncio.timeout(840):
            while not (first := server()):
                await asyncio.sleep(0.1)
            await cluster.stop_host("h2")
            (directory / "h2").rename(old)
            await cluster.start_host("h2")
            while server() in ("", first):
                await asyncio.sleep(0.1)
            second = server()
            await cluster.stop_host("h2")
            shutil.rmtree(directory / "h2")
            old.rename(directory / "h2")
            host = "from holdfast.host.process import main\nraise SystemExit(main())"
            cluster._hosts["h2"]._command = (sys.executable, "-c", PATIENT + host)
            await cluster.start_host("h2")
            while server() in (first, second):
                await asyncio.sleep(0.1)
        assert (directory / "h2" / "jetstream-left" / NAME).read_text() == first
        assert await agent.ask(Account.add, 1) == 2


@pytest.mark.cluster
async def test_a_copy_of_a_hosts_directory_is_not_started_beside_it(tmp_path: Path) -> None:
    directory = tmp_path / "hosts"
    async with (
        LocalCluster(directory, [CLUSTER_APP], log=tmp_path / "log") as cluster,
        Node.join(cluster.urls) as node,
    ):
        agent = node.agent(Account, "a")
        assert await agent.ask(Account.add, 1) == 1
        while json.loads((directory / "h2" / "host.json").read_text())["urls"] == []:
            await asyncio.sleep(0.1)
        await cluster.stop_host("h2")
        shutil.copytree(directory / "h2", tmp_path / "copy")
        await cluster.start_host("h2")
        client, routes = free_ports(2)
        known = cluster._hosts["h2"].settings.server
        assert known is not None
        command = [sys.executable, "-c", f"{PATIENT}\nfrom holdfast.cli.main import main\nmain()"]
        command += ["up", CLUSTER_APP, "--json", "--name", "h2", "--dir", "copy"]
        ports = [
            "--port",
            str(client),
            "--cluster-port",
            str(routes),
            "--cohort",
            ",".join(known.routes),
        ]
        process = await asyncio.create_subprocess_exec(
            *command, *ports, cwd=tmp_path, stdout=-1, stderr=-2
        )
        async with asyncio.timeout(240):
            said, _ = await process.communicate()
        assert process.returncode == 2 and b"there is a host 'h2' in the cluster already" in said, (
            said.decode()
        )
        assert await agent.ask(Account.add, 1) == 2


@pytest.mark.cluster
def test_a_wrong_name_puts_no_store_aside(tmp_path: Path) -> None:
    """The directory is as the version before left it: what it was started as is not noted, nor who
    its host is."""
    (tmp_path / "app.py").write_text(APP)
    client, routes = free_ports(2)
    kept = tmp_path / ".holdfast" / "host.json"

    def command(name: str) -> list[str]:
        return [sys.executable, "-m", "holdfast", "up", "app.py", "--json", "--name", name, *ports]

    def run(name: str) -> None:
        """Until its node is ready, and the record is known."""
        with subprocess.Popen(
            command(name), cwd=tmp_path, stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    if json.loads(line)["event"] == "node-ready":
                        break
                while process.poll() is None and json.loads(kept.read_text()).get("record") is None:
                    time.sleep(0.05)
                process.terminate()
                process.stdout.read()
                assert process.wait(60) == 0
            finally:
                process.kill()

    ports = ["--port", str(client), "--cluster-port", str(routes)]
    run("right")
    state = json.loads(kept.read_text())
    kept.write_text(
        json.dumps({key: state[key] for key in ("identity", "votes", "address", "sequence")})
    )
    (tmp_path / ".holdfast" / "started.json").unlink()
    (tmp_path / ".holdfast" / "jetstream" / NAME).unlink()
    run("wrong")
    assert list(kept.parent.glob("jetstream*")) == [kept.parent / "jetstream"]
    assert json.loads(kept.read_text())["identity"] == state["identity"]
    again = subprocess.run(
        command("wrong"), cwd=tmp_path, capture_output=True, text=True, timeout=400
    )
    assert again.returncode == 2 and "--name right" in again.stdout
    run("right")
