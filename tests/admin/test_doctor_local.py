"""An embedded log that was damaged is found to be; one that is whole, or open elsewhere, is said to
be that."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.admin.app import Note

from holdfast import ConfigError, Node
from holdfast.admin.doctor.findings import KINDS
from holdfast.admin.doctor.local_doctor import examine_file


@pytest.fixture
async def log(tmp_path: Path) -> Path:
    path = tmp_path / "log" / "app.db"
    async with Node.join(f"local:{path}", serve=[Note]) as node:
        names = [f"n{n}" for n in range(300)]
        await asyncio.gather(*(node.agent(Note, name).ask(Note.write, name * 50) for name in names))
        await node.agent(Note, "big").ask(Note.grow, 700_000)
    return path


async def codes(path: Path) -> set[str]:
    found = (await examine_file(path)).findings
    assert all(one.seen and one.do == KINDS[one.code].do for one in found)
    # the disk that the tests run on is not theirs
    return {one.code for one in found} - {"disk-low"}


def change(path: Path, statement: str, *values: object) -> None:
    with sqlite3.connect(path) as connection:
        assert connection.execute(statement, values).rowcount == 1
    connection.close()


async def test_a_whole_file(log: Path) -> None:
    assert await codes(log) == set()
    # nothing of it was changed, and the lock is free
    async with Node.join(f"local:{log}", serve=[Note]) as node:
        assert await node.agent(Note, "n7").ask(Note.read) == "n7" * 50
        assert await codes(log) == {"file-in-use"}
    with pytest.raises(ConfigError, match="no file"):
        await examine_file(log.with_name("other.db"))


async def test_a_record_that_was_changed(log: Path) -> None:
    with sqlite3.connect(log) as connection:
        sequence, payload = connection.execute(
            "SELECT sequence, payload FROM records WHERE subject LIKE '%.st.Note/n7'"
        ).fetchone()
    connection.close()
    flipped = bytearray(payload)
    flipped[20] ^= 1
    change(log, "UPDATE records SET payload = ? WHERE sequence = ?", bytes(flipped), sequence)
    found = (await examine_file(log)).findings
    damaged = next(one for one in found if one.code == "record-damaged")
    assert str(sequence) in damaged.seen


async def test_a_blob_that_was_changed(log: Path) -> None:
    change(log, "UPDATE blobs SET value = zeroblob(length(value))")
    assert await codes(log) == {"record-damaged"}


async def test_a_record_that_is_missing(log: Path) -> None:
    with sqlite3.connect(log) as connection:
        subjects = [
            row[0]
            for row in connection.execute("SELECT subject FROM records WHERE subject LIKE '%.st.%'")
        ]
    connection.close()
    shards = [subject.partition(".st.")[0] for subject in subjects]
    # The newest batch of a shard says what was there before it: one of an older batch is taken.
    assert any(shards.count(shard) > 1 for shard in shards)
    missing = 0
    for subject, shard in zip(subjects, shards, strict=True):
        if shards.count(shard) > 1:
            copied = log.with_name(f"copy-{missing}.db")
            shutil.copy(log, copied)
            change(copied, "DELETE FROM records WHERE subject = ?", subject)
            missing += "shard-digest" in await codes(copied)
            if missing:
                break
    assert missing


async def test_a_file_that_is_damaged(log: Path) -> None:
    data = bytearray(log.read_bytes())
    for at in range(3 * 4096, len(data), 4096):
        data[at : at + 64] = b"\xff" * 64
    log.write_bytes(data)
    assert "file-damaged" in await codes(log)
    log.write_bytes(b"no database at all" * 1000)
    assert await codes(log) == {"file-damaged"}


async def test_a_file_that_cannot_be_opened(log: Path, tmp_path: Path) -> None:
    directory = tmp_path / "directory.db"
    directory.mkdir()
    assert await codes(directory) == {"file-unreadable"}
    if os.geteuid() != 0:
        log.chmod(0)
        assert await codes(log) == {"file-unreadable"}


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "small"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "holdfast-test", str(path)]
    if (
        os.geteuid() != 0
        or subprocess.run(command, check=False, capture_output=True).returncode != 0
    ):
        pytest.skip("a small disk is mounted by root only")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


async def test_a_disk_without_room(log: Path, small: Path) -> None:
    shutil.copy(log, small / "app.db")
    free = shutil.disk_usage(small).free
    (small / "filler").write_bytes(b"x" * (free - 1_000_000))
    assert {one.code for one in (await examine_file(small / "app.db")).findings} == {"disk-low"}
    (small / "more").write_bytes(b"x" * (shutil.disk_usage(small).free - 100_000))
    assert {one.code for one in (await examine_file(small / "app.db")).findings} == {"disk-full"}
