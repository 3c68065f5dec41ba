"""A backup's file: whatever byte is not what was written, and wherever the file ends, it is refused
with the place."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from tests.admin.purses import Counter, Purse
from tests.admin.restored import backup_of, opened, restored_file

from holdfast import ConfigError, DataLoss, Node
from holdfast.admin.backup import archive
from holdfast.admin.backup.archive import Head, Item, Part
from holdfast.admin.backup.verify import verify
from holdfast.engines.local.engine import LocalEngine
from holdfast.errors import AlreadyExists

SERVE: list[Any] = [Purse, Counter]


@pytest.fixture
async def backup(tmp_path: Path) -> Path:
    """A backup of a few agents, one of them in a blob of two parts."""
    async with Node.join(f"local:{tmp_path / 'old.db'}", serve=SERVE) as node:
        await node.ready()
        for number in range(20):
            await node.agent(Purse, f"p{number}").ask(Purse.give, "p0", number)
        await node.agent(Counter, "large").ask(Counter.grow, 600_000)
        await node.register(Purse, "p0")
    await backup_of(tmp_path / "old.db", tmp_path / "b.backup")
    return tmp_path / "b.backup"


@pytest.mark.capability("B6")
async def test_a_changed_byte_is_found_wherever_it_is(backup: Path, tmp_path: Path) -> None:
    whole = backup.read_bytes()
    facts = verify(backup)
    assert facts.size == len(whole) and facts.agents == 21 and facts.blobs == 1
    broken = tmp_path / "broken"
    chance = random.Random(7)
    # Every byte of the beginning and the end, and some of all that is between.
    places = {
        *range(200),
        *range(len(whole) - 200, len(whole)),
        *(chance.randrange(len(whole)) for _ in range(200)),
    }
    for place in sorted(places):
        broken.write_bytes(
            whole[:place] + bytes([whole[place] ^ 1 << chance.randrange(8)]) + whole[place + 1 :]
        )
        with pytest.raises(DataLoss, match=r"broken: .*(byte|checksum)"):
            verify(broken)
    with pytest.raises(DataLoss):
        await restored_file(tmp_path / "new.db", broken)
    async with opened(LocalEngine(tmp_path / "new.db")) as engine:
        assert await engine.cells() == [], "nothing was written"


async def test_a_file_that_ends_early_is_found(backup: Path, tmp_path: Path) -> None:
    whole = backup.read_bytes()
    short = tmp_path / "short"
    chance = random.Random(7)
    for length in sorted(
        {0, 1, 20, len(whole) - 1, *(chance.randrange(len(whole)) for _ in range(100))}
    ):
        short.write_bytes(whole[:length])
        with pytest.raises(DataLoss):
            verify(short)
    short.write_bytes(whole + b"x")
    with pytest.raises(DataLoss, match="goes on behind its end"):
        verify(short)


def rewritten(backup: Path, target: Path, change: Any) -> Path:
    """A file whose checksums agree, without some of its frames, or with others."""
    with archive.Writer(target) as writer:
        for frame in archive.read(backup):
            if isinstance(frame, (Head, Item, Part)) and (changed := change(frame)) is not None:
                writer.add(changed)
                writer.blobs += isinstance(changed, Part) and changed.offset == 0
        writer.finish()
    return target


async def test_what_is_missing_is_found_where_every_checksum_agrees(
    backup: Path, tmp_path: Path
) -> None:
    assert verify(rewritten(backup, tmp_path / "same", lambda frame: frame)).agents == 21
    agents = [
        frame
        for frame in archive.read(backup)
        if isinstance(frame, Item) and ".st." in frame.subject
    ]
    for number, agent in enumerate(agents):
        found = rewritten(
            backup,
            tmp_path / str(number),
            lambda frame, lost=agent: None if frame == lost else frame,
        )
        by_shard = [
            one for one in agents if one.subject.split(".")[1] == agent.subject.split(".")[1]
        ]
        if len(by_shard) > 1:  # the only agent of a shard leaves nothing behind that could miss it
            with pytest.raises(DataLoss, match=r"shard|blob"):
                verify(found)
    no_blob = rewritten(
        backup, tmp_path / "no-blob", lambda frame: None if isinstance(frame, Part) else frame
    )
    with pytest.raises(DataLoss, match="blob"):
        verify(no_blob)
    half = rewritten(
        backup,
        tmp_path / "half",
        lambda frame: None if isinstance(frame, Part) and frame.offset else frame,
    )
    with pytest.raises(DataLoss, match="blob"):
        verify(half)


async def test_files_that_are_no_backups(backup: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no backup"):
        verify(tmp_path / "old.db")
    with pytest.raises(ConfigError, match="cannot be read"):
        verify(tmp_path / "nothing")
    later = rewritten(
        backup, tmp_path / "later", lambda f: Head(2, *_fields(f)[1:]) if isinstance(f, Head) else f
    )
    with pytest.raises(ConfigError, match="format 2"):
        verify(later)
    newer = rewritten(
        backup,
        tmp_path / "newer",
        lambda f: Head(1, f.version, 99, *_fields(f)[3:]) if isinstance(f, Head) else f,
    )
    with pytest.raises(ConfigError, match="version 99"):
        verify(newer)


def _fields(head: Head) -> list[Any]:
    return [getattr(head, name) for name in head.__struct_fields__]


async def test_a_backup_replaces_no_file_and_leaves_none_behind(
    backup: Path, tmp_path: Path
) -> None:
    whole = backup.read_bytes()
    with pytest.raises(AlreadyExists):
        await backup_of(tmp_path / "old.db", backup)
    with pytest.raises(ConfigError, match="cannot be written"):
        await backup_of(tmp_path / "old.db", tmp_path / "no" / "directory" / "b")
    assert backup.read_bytes() == whole
    (tmp_path / "some").mkdir()
    facts = await backup_of(tmp_path / "old.db", tmp_path / "some")
    assert [str(path) for path in (tmp_path / "some").iterdir()] == [facts.path]
    assert backup.stat().st_mode & 0o777 == 0o600
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".partial", ".spool")]
