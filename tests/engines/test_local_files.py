"""The embedded engine and its files: removed, replaced, linked, locked twice, read by others, on a
full or read-only disk."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.patience import until
from typer.testing import CliRunner

from holdfast import Agent, Node, NoResponders, State, StorageFailed, handler, limits, reader
from holdfast.admin.doctor.local_doctor import examine_file
from holdfast.cli.main import app
from holdfast.engines.base import Record
from holdfast.engines.local.engine import LocalEngine
from holdfast.errors import ConfigError, OutcomeUnknown, Unknown


class Count(State):
    n: int = 0
    ballast: bytes = b""


class Counter(Agent[Count]):
    @handler
    async def add(self, ballast: int = 0) -> int:
        self.state.n += 1
        self.state.ballast = os.urandom(ballast)
        return self.state.n

    @reader
    async def value(self) -> int:
        return self.state.n


def remove_all(directory: Path) -> None:
    for one in directory.iterdir():
        one.unlink()


def remove_log(directory: Path) -> None:
    (directory / "log.db").unlink()


def remove_changes(directory: Path) -> None:
    (directory / "log.db-wal").unlink()


def rename_log(directory: Path) -> None:
    (directory / "log.db").rename(directory / "other.db")


def replace_log(directory: Path) -> None:
    shutil.copy(directory / "log.db", directory / "copy.db")
    (directory / "copy.db").rename(directory / "log.db")


def replace_changes(directory: Path) -> None:
    shutil.copy(directory / "log.db-wal", directory / "copy")
    (directory / "copy").rename(directory / "log.db-wal")


def rename_directory(directory: Path) -> None:
    directory.rename(directory.parent / "elsewhere")


HARMS = [
    remove_all,
    remove_log,
    remove_changes,
    rename_log,
    replace_log,
    replace_changes,
    rename_directory,
]


@pytest.fixture
def noticed_at_a_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next write notices what became of the files: an idle log does not look before it."""
    monkeypatch.setattr("holdfast.engines.local.writer._IDLE_SECONDS", 1000.0)


@pytest.mark.usefixtures("noticed_at_a_write")
@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
async def test_nothing_is_acknowledged_into_files_that_are_not_there(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    directory = tmp_path / "data"
    engine = LocalEngine(directory / "log.db")
    await engine.open()
    told: list[str] = []
    engine.when_failed(told.append)
    await engine.ensure_cells(["c"], 1)
    await engine.log.append("c", [Record("c.a", b"1")])
    harm(directory)
    with pytest.raises(Unknown, match=r"log\.db"):
        await engine.log.append("c", [Record("c.a", b"2")])
    for _ in range(3):
        with pytest.raises(StorageFailed, match=r"log\.db"):
            await engine.log.append("c", [Record("c.a", b"3")])
    with pytest.raises(StorageFailed):
        await engine.ensure_cells(["d"], 1)
    assert len(told) == 1 and "log.db" in told[0]
    await engine.close()


async def test_an_idle_log_notices_as_well(tmp_path: Path) -> None:
    engine = LocalEngine(tmp_path / "data" / "log.db")
    await engine.open()
    told: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    engine.when_failed(told.set_result)
    remove_all(tmp_path / "data")
    assert "log.db" in await told
    with pytest.raises(StorageFailed):
        await engine.ensure_cells(["c"], 1)
    await engine.close()


@pytest.mark.usefixtures("noticed_at_a_write")
async def test_a_node_whose_files_are_gone_refuses_everything_at_once(tmp_path: Path) -> None:
    async with Node.join(f"local:{tmp_path}/data/log.db", serve=[Counter]) as node:
        counter = node.agent(Counter, "a").options(timeout_seconds=60)
        assert await counter.ask(Counter.add) == 1
        await node.ready()
        await until(lambda: not node.events._waiting)  # nothing else is about to be written
        remove_all(tmp_path / "data")
        with pytest.raises(OutcomeUnknown, match="is gone"):
            await counter.ask(Counter.add)
        for _ in range(2):
            with pytest.raises(StorageFailed, match="is gone"):
                await counter.ask(Counter.add)
        with pytest.raises(StorageFailed, match="is gone"):
            await counter.ask(Counter.value)
        with pytest.raises(StorageFailed, match="is gone"):
            await counter.send(Counter.add)
        with pytest.raises(StorageFailed, match="is gone"):
            await node.register(Counter, "b")
        assert node.life.over.is_set()


async def test_a_full_disk_is_named_and_everything_goes_on_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Node.join(f"local:{tmp_path}/log.db", serve=[Counter]) as node:
        counter = node.agent(Counter, "a").options(timeout_seconds=60)
        done = await counter.ask(Counter.add)
        monkeypatch.setattr(limits, "ATTEMPT_SECONDS", 240.0)  # each ask has one attempt
        writer = node.engine._writer  # type: ignore[attr-defined]
        await writer.call(
            lambda connection: connection.execute("PRAGMA max_page_count = 1").fetchone()
        )
        with pytest.raises(StorageFailed, match=r"log\.db: its disk is full"):
            for _ in range(100):
                done = await counter.ask(Counter.add, 400_000)
        assert await counter.ask(Counter.value) == done
        for _ in range(2):
            with pytest.raises(StorageFailed, match="its disk is full"):
                await counter.ask(Counter.add, 400_000)
        await writer.call(
            lambda connection: connection.execute("PRAGMA max_page_count = 100000").fetchone()
        )
        assert await counter.ask(Counter.add, 400_000) == done + 1


async def test_a_disk_that_is_full_at_the_start_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    prepare = LocalEngine._prepare

    def without_room(engine: LocalEngine) -> sqlite3.Connection:
        connection = prepare(engine)
        connection.execute("VACUUM")  # no page is free then
        connection.execute("PRAGMA max_page_count = 1").fetchone()
        return connection

    async with Node.join(f"local:{tmp_path}/log.db", serve=[Counter]) as node:
        await node.ready()
        done = await node.agent(Counter, "a").ask(Counter.add)
    monkeypatch.setattr(LocalEngine, "_prepare", without_room)
    async with Node.join(f"local:{tmp_path}/log.db", serve=[Counter]) as node:
        await until(lambda: node.statistics()["recovery_failures"])
        with pytest.raises(NoResponders, match=r"log\.db: its disk is full"):
            await node.ready(1)
        said = [record.message for record in caplog.records if "cannot be served" in record.message]
        assert len(said) == 1 and "its disk is full" in said[0]
        writer = node.engine._writer  # type: ignore[attr-defined]
        await writer.call(
            lambda connection: connection.execute("PRAGMA max_page_count = 100000").fetchone()
        )
        await node.ready()
        assert node.statistics()["recovery_failures"] == {}
        assert await node.agent(Counter, "a").ask(Counter.value) == done


def readable_by_others(path: Path) -> bool:
    return bool(path.stat().st_mode & 0o077)


async def test_others_may_not_read_what_is_made(tmp_path: Path) -> None:
    kept = os.umask(0)
    try:
        async with Node.join(f"local:{tmp_path}/one/two/log.db", serve=[Counter]) as node:
            await node.agent(Counter, "a").ask(Counter.add)
            found = [tmp_path / "one", *(tmp_path / "one").rglob("*")]
            assert len(found) >= 5
            assert [path for path in found if readable_by_others(path)] == []
    finally:
        os.umask(kept)


async def test_a_log_that_an_earlier_version_made_open_to_all_is_so_no_more(tmp_path: Path) -> None:
    engine = LocalEngine(tmp_path / "log.db")
    await engine.open()
    await engine.ensure_cells(["c"], 1)
    await engine.log.append("c", [Record("c.a", b"")])
    left = tmp_path / "left"
    shutil.copytree(tmp_path, left)  # as a process that was killed leaves it
    await engine.close()
    names = ("log.db", "log.db-wal", "log.db-shm", "log.db.lock")
    for name in names:
        (left / name).chmod(0o644)
    engine = LocalEngine(left / "log.db")
    await engine.open()
    assert [name for name in names if readable_by_others(left / name)] == []
    assert await engine.log.last_sequence("c") == 1
    await engine.close()


async def test_the_lock_follows_no_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "log.db.lock").symlink_to(victim)
    with pytest.raises(ConfigError, match="symbolic link"):
        await LocalEngine(tmp_path / "log.db").open()
    (tmp_path / "log.db.lock").unlink()
    (tmp_path / "log.db.lock").symlink_to(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="symbolic link"):
        await LocalEngine(tmp_path / "log.db").open()
    assert victim.read_text() == "precious" and not (tmp_path / "nothing").exists()
    (tmp_path / "log.db.lock").unlink()
    os.mkfifo(tmp_path / "log.db.lock")
    with pytest.raises(ConfigError, match="regular file"):
        await LocalEngine(tmp_path / "log.db").open()


OPEN = """
import asyncio, sys
from holdfast.engines.local.engine import LocalEngine
from holdfast.errors import ConfigError

async def main():
    try:
        await LocalEngine(sys.argv[1]).open()
    except ConfigError as error:
        print(error)

asyncio.run(main())
"""


def opened_elsewhere(path: Path) -> str:
    """What another process says that tries to open it; empty where it can."""
    done = subprocess.run(
        [sys.executable, "-c", OPEN, str(path)], capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere the lock file alone keeps others out"
)
async def test_without_its_lock_file_or_by_another_link_a_log_is_still_locked(
    tmp_path: Path,
) -> None:
    engine = LocalEngine(tmp_path / "log.db")
    await engine.open()
    (tmp_path / "log.db.lock").unlink()
    (tmp_path / "soft.db").symlink_to(tmp_path / "log.db")
    (tmp_path / "hard.db").hardlink_to(tmp_path / "log.db")
    for name in ("log.db", "soft.db", "hard.db"):
        assert "is open in process" in opened_elsewhere(tmp_path / name)
        with pytest.raises(ConfigError, match="is open in process"):
            await LocalEngine(tmp_path / name).open()
    await engine.ensure_cells(["c"], 1)  # it was not harmed by that
    assert await engine.log.append("c", [Record("c.a", b"")])
    await engine.close()
    assert opened_elsewhere(tmp_path / "log.db") == ""


async def test_a_forked_child_keeps_no_lock(tmp_path: Path) -> None:
    engine = LocalEngine(tmp_path / "log.db")
    await engine.open()
    child = os.fork()
    if not child:
        signal.pause()
        os._exit(0)
    try:
        assert "is open in process" in opened_elsewhere(tmp_path / "log.db")
        await engine.close()
        assert opened_elsewhere(tmp_path / "log.db") == ""
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A directory that this process may not write: as root it becomes somebody else for the
    test."""
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made)
        (directory / "app.py").write_text(
            "from holdfast import Agent, State\nclass S(State): pass\nclass A(Agent[S]): pass\n"
        )
        directory.chmod(0o555)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            yield directory
        finally:
            if root:
                os.seteuid(0)
            directory.chmod(0o755)


@pytest.mark.parametrize("name", ["log.db", "new/log.db"])
def test_a_directory_that_may_not_be_written_is_said_in_a_line(nobody: Path, name: str) -> None:
    done = CliRunner().invoke(
        app, ["run", str(nobody / "app.py"), "--at", f"local:{nobody}/{name}"]
    )
    assert done.exit_code == 2, done.output
    assert (
        done.output.count("\n") == 1
        and "ConfigError" in done.output
        and "must be able to write" in done.output
    )


async def test_the_doctor_holds_the_same_locks(tmp_path: Path) -> None:
    engine = LocalEngine(tmp_path / "log.db")
    await engine.open()
    (tmp_path / "log.db.lock").unlink()
    found = await examine_file(tmp_path / "log.db")
    assert "file-in-use" in [one.code for one in found.findings]
    await engine.close()
    found = await examine_file(tmp_path / "log.db")
    assert "file-in-use" not in [one.code for one in found.findings]
