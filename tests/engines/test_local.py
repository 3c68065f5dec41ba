"""What the embedded engine promises beyond the suite: one process, and what was acknowledged
outlives it."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import threading
from contextlib import aclosing
from pathlib import Path

import pytest

from holdfast.engines.base import Record
from holdfast.engines.local.engine import LocalEngine
from holdfast.errors import Closed, ConfigError, DataLoss

WRITER = """
import asyncio, resource, sys
from holdfast.engines.base import Record
from holdfast.engines.local.engine import LocalEngine

async def main(path, most):
    if most:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    engine = LocalEngine(path)
    await engine.open()
    await engine.ensure_cells(["c"], 1)
    number = 0
    while True:
        number += 1
        try:
            both = [Record(f"c.{number}", bytes(2000)), Record(f"c.twin-{number}", b"")]
            await engine.log.append("c", both)
        except Exception as error:
            print(type(error).__name__, flush=True)
            return
        print(number, flush=True)

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


async def written(path: Path) -> tuple[set[int], set[int]]:
    engine = LocalEngine(path)
    await engine.open()
    subjects: list[str] = []
    async with aclosing(engine.log.tail("c", ["c.>"])) as tail:  # type: ignore[type-var]
        async for chunk in tail:
            subjects += [stored.subject.removeprefix("c.") for stored in chunk.records]
            if chunk.caught_up:
                break
    await engine.close()
    return (
        {int(s) for s in subjects if not s.startswith("twin")},
        {int(s.removeprefix("twin-")) for s in subjects if s.startswith("twin")},
    )


async def test_what_was_acknowledged_outlives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    acknowledged = 0
    for _ in range(3):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", WRITER, str(path), "0", stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        for _ in range(150):
            acknowledged = max(acknowledged, int(await process.stdout.readline()))
        process.kill()
        rest = (await process.stdout.read()).split()
        acknowledged = max([acknowledged, *map(int, rest)])
        await process.wait()
        there, twins = await written(path)
        assert there == twins
        assert set(range(1, acknowledged + 1)) <= there


async def test_a_full_disk_is_said_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WRITER, str(path), "400000", stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    *numbers, error = out.split()
    assert error.decode() in ("StorageFailed", "Unknown")
    there, twins = await written(path)
    assert there == twins
    assert set(map(int, numbers)) <= there
    assert len(numbers) > 20


async def test_a_second_process_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WRITER, str(path), "0", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    await process.stdout.readline()
    with pytest.raises(ConfigError, match=f"process {process.pid}"):
        await LocalEngine(path).open()
    process.kill()
    await process.communicate()
    engine = LocalEngine(path)
    await engine.open()
    await engine.close()


async def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE mine (x)")
    with pytest.raises(ConfigError, match="something else"):
        await LocalEngine(path).open()
    text = tmp_path / "notes.txt"
    text.write_text("not a database at all, but long enough to be read as one " * 20)
    with pytest.raises(ConfigError):
        await LocalEngine(text).open()
    assert text.read_text().startswith("not a database")


async def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    engine = LocalEngine(path)
    await engine.open()
    await engine.close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(ConfigError, match="newer"):
        await LocalEngine(path).open()


async def test_a_damaged_blob_is_told(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    engine = LocalEngine(path)
    await engine.open()
    await engine.ensure_cells(["c"], 1)
    await engine.log.append("c", [Record("c.a", b"")])
    await engine.blobs.put("k", b"value")
    await engine.close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE blobs SET value = ?", (b"valuf",))
    engine = LocalEngine(path)
    await engine.open()
    with pytest.raises(DataLoss):
        await engine.blobs.get("k")
    await engine.close()


async def test_replicas_cannot_be_had(tmp_path: Path) -> None:
    engine = LocalEngine(tmp_path / "log.db")
    await engine.open()
    with pytest.raises(ConfigError):
        await engine.ensure_cells(["c"], 3)
    await engine.close()


async def test_whoever_closes_waits_for_what_is_written(tmp_path: Path) -> None:
    engine = LocalEngine(tmp_path / "log.db")
    await engine.open()
    await engine.ensure_cells(["c"], 1)
    writer = engine._writer
    assert writer is not None
    goes_on = threading.Event()
    begun = threading.Event()

    def slow(connection: sqlite3.Connection) -> None:
        begun.set()
        goes_on.wait(240)
        connection.execute("INSERT INTO blobs (key, checksum, value) VALUES ('k', 0, x'')")

    work = writer.call(slow)
    assert await asyncio.to_thread(begun.wait, 240)
    cancelled = asyncio.create_task(engine.close())
    await asyncio.sleep(0)
    cancelled.cancel()
    closes = [asyncio.create_task(engine.close()) for _ in range(3)]
    done, _ = await asyncio.wait(closes, timeout=0.1)
    assert not done
    assert not engine.connected()
    with pytest.raises(Closed):
        await engine.ensure_cells(["d"], 1)
    goes_on.set()
    await asyncio.gather(work, *closes)
    assert cancelled.cancelled()
    await engine.open()
    assert await engine.cells() == ["c"]
    assert await engine.blobs.keys("k") == ["k"]
    await engine.close()
