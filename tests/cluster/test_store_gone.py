"""A server whose files were removed under it is stopped by its host, which ends, instead of acknowledging into nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.host.nats_server import free_ports
from holdfast.host.store import Store


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


APP = "from holdfast import Agent, State\nclass S(State): pass\nclass A(Agent[S]): pass\n"


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
                shutil.rmtree(tmp_path / ".holdfast" / "jetstream")
                break
        events = [json.loads(line) for line in process.stdout]
        assert process.wait(60) == 3
        assert events.pop()["error"] == "StorageFailed"
        (gone,) = [one for one in events if one["event"] == "store-gone"]
        assert "jetstream" in gone["text"]
        assert "server" not in [one["event"] for one in events], "it was started again, without data"
        assert not (tmp_path / ".holdfast" / "jetstream" / "jetstream" / "HF").exists()
        again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert again.returncode == 1 and "DataLoss" in again.stdout and "restore a backup" in again.stdout
    finally:
        process.kill()
        process.wait()
