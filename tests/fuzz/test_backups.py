"""Backups with nonsense in them, every checksum right: refused by name, never a traceback, never a
loop, never much memory.

Whoever can write a backup's file can give it right checksums. What is refused here would otherwise
become a cluster that loops over 2**60 shards, takes a line feed for a subject, or has another
cluster's manifest.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from msgspec.structs import replace
from tests.admin.purses import Counter, Purse
from tests.admin.restored import backup_of

from holdfast import ConfigError, DataLoss, Node, codec
from holdfast.admin.backup import archive
from holdfast.admin.backup.archive import End, Frame, Head, Item, Part
from holdfast.admin.backup.restore import restore
from holdfast.admin.backup.verify import verify
from holdfast.cluster.facts import manifest as manifests
from holdfast.core import pools
from holdfast.engines.local.engine import LocalEngine
from holdfast.records import agent_record


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> list[Frame]:
    """Those of a backup of a few agents, with a blob, messages that wait, timers and registered
    names."""

    async def make(directory: Path) -> list[Frame]:
        async with Node.join(f"local:{directory}/old.db", serve=[Purse, Counter]) as node:
            await node.ready()
            for number in range(4):
                await node.agent(Purse, f"p{number}").ask(Purse.give, "p0", number)
            await node.agent(Counter, "large").ask(Counter.grow, 600_000)
            await node.register(Purse, "p0", metadata={"a": 1})
        async with Node.join(f"local:{directory}/old.db") as node:
            await node.send_by_name("Purse/p9", "give", ["p0", 1])
        await backup_of(directory / "old.db", directory / "b.backup")
        return list(archive.read(directory / "b.backup"))

    return asyncio.run(make(tmp_path_factory.mktemp("frames")))


def written(path: Path, frames: list[Frame]) -> Path:
    """A file of these frames whose checksums and counts agree."""
    with archive.Writer(path) as writer:
        for frame in frames:
            if not isinstance(frame, End):
                writer.add(frame)
                writer.blobs += isinstance(frame, Part) and frame.offset == 0
        writer.finish()
    return path


def head(**changes: Any) -> Callable[[Frame], Frame]:
    return lambda frame: replace(frame, **changes) if isinstance(frame, Head) else frame


def item(kind: str, change: Callable[[Item], Item]) -> Callable[[Frame], Frame]:
    """Change one kind of record: ``st``, ``in``, ``ag``, ``placement``."""
    return lambda frame: (
        change(frame) if isinstance(frame, Item) and f".{kind}" in frame.subject else frame
    )


def renamed(old: str, new: str) -> Callable[[Item], Item]:
    return lambda frame: replace(frame, subject=frame.subject.replace(old, new, 1))


def agent(**changes: Any) -> Callable[[Frame], Frame]:
    return item(
        "st.",
        lambda one: replace(
            one,
            payload=agent_record.encode(replace(agent_record.decode(one.payload, ""), **changes)),
        ),
    )


def table(change: Callable[[pools.Table], pools.Table]) -> Callable[[Frame], Frame]:
    def changed(one: Item) -> Item:
        found = codec.decoder(pools.Table).decode(codec.unseal(one.payload, ""))
        return replace(one, payload=codec.seal(codec.encode_raw(change(found))))

    return item("placement", changed)


def part(**changes: Any) -> Callable[[Frame], Frame]:
    return lambda frame: (
        replace(frame, **changes) if isinstance(frame, Part) and not frame.offset else frame
    )


def twice(kind: str) -> Callable[[Frame], list[Frame]]:
    return lambda frame: (
        [frame, frame] if isinstance(frame, Item) and f".{kind}" in frame.subject else [frame]
    )


MAIN = pools.PoolRecord("main", 0, 128)
NONSENSE: dict[str, Callable[[Frame], Frame | list[Frame]]] = {
    **{f"shards {number}": head(shards=number) for number in (0, -5, 2**60, 4097, -(2**63))},
    **{
        f"records of version {number}": head(record_version=number) for number in (-1, 0, 99, 2**60)
    },
    **{f"generation {number}": head(generation=number) for number in (0, -1, 2, 2**40, 2**63)},
    **{
        f"time {number}": head(created_at=number)
        for number in (math.nan, math.inf, -math.inf, -1.0, 1e300)
    },
    **{
        f"cells {cells}": head(cells=cells)
        for cells in ([], ["g1c1"], ["g1c0", "g1c0"], ["*"], ["g1c0\r\n"], ["g1c0"] * 500)
    },
    **{
        f"cuts {cuts}": head(cuts=cuts)
        for cuts in ([], [1], [-1, -1], [2**63, 2**63], [0, 0], [9, 9, 9])
    },
    **{
        f"cluster {name!r}": head(cluster_id=name)
        for name in ("", "a b", "\x1b[2J", "x" * 100, "../x")
    },
    **{f"version {name!r}": head(version=name) for name in ("", "[/x]\n", "x" * 100)},
    "registry": head(registry="g1c0"),
    "another format": head(format=2),
    **{
        f"cell {number}": item("st.", lambda one, n=number: replace(one, cell=n))
        for number in (-1, 1, 7, 2**40)
    },  # type: ignore[misc]
    **{
        f"sequence {n}": item("st.", lambda one, n=n: replace(one, sequence=n))
        for n in (0, -1, 2**60)
    },  # type: ignore[misc]
    **{
        f"subject {new!r}": item("st.", renamed("g1c0.", new))
        for new in (
            "g2c0.",
            "g1reg.",
            "g1c0.-",
            "g1c0.0",
            "g1c0.9999999",
            "g1c0.٣",
            "g1c0..",
            "",
            "*.",
            "g1c0.\r\n",
            "x.",
        )
    },
    **{
        f"kind {new!r}": item("st.", renamed(".st.", new))
        for new in (
            ".epoch.",
            ".st",
            ".",
            ".st.x.",
            ".ST.",
            ".in.",
            ".out.",
            ".dl.",
            ".st.>",
            ".settled.",
        )
    },
    **{
        f"agent {new!r}": item("st.", renamed("Purse/", new))
        for new in (
            "Purse",
            "/",
            "9/",
            "Purse/%2",
            "Purse/ ",
            "Purse/a.b",
            "Purse/%41",
            "Purse/%ff",
        )
    },
    **{
        f"registry's {new!r}": item("ag.", renamed(".ag.", new))
        for new in (
            ".manifest",
            ".manifest.",
            ".mark.",
            ".ag.x.",
            ".ag..",
            ".rl.",
            ".life.",
            ".\n.",
            ".AG.",
        )
    },
    **{f"{kind} twice": twice(kind) for kind in ("st.", "in.", "ag.", "placement")},
    **{f"commit {n}": agent(commit=n) for n in (-1, 2**63)},
    "a blob nowhere": agent(blob="nowhere.1.Purse/x.1"),
    "a blob without a name": agent(blob="g1c0.1"),
    "written at no time": agent(at=math.nan),
    "of no version": agent(record_version=9),
    "no pools": table(lambda found: replace(found, pools=[])),
    "endless pool": table(lambda found: replace(found, pools=[pools.PoolRecord("main", 0, 2**60)])),
    "empty pool": table(lambda found: replace(found, pools=[MAIN, pools.PoolRecord("x", 128, 0)])),
    "pools that overlap": table(
        lambda found: replace(found, pools=[MAIN, pools.PoolRecord("x", 3, 5)])
    ),
    "kind in no pool": table(lambda found: replace(found, kinds={"Purse": "nowhere"})),
    "not a table": item("placement", lambda one: replace(one, payload=codec.seal(b"\xc1"))),
    "not a record": item("st.", lambda one: replace(one, payload=codec.seal(b"\x90"))),
    "an unsealed record": item("st.", lambda one: replace(one, payload=b"x")),
    **{f"blob of {size}": part(size=size) for size in (-1, 0, 1, 2**40, 2**63)},
    **{f"blob at {offset}": part(offset=offset) for offset in (-1, 1, 2**40)},
    **{
        f"blob {key!r}": part(key=key) for key in ("", "x", "g1c0.1.a.b\n", "g9c0.1.Purse/x.1", "*")
    },
    "a short part": part(data=b"x"),
    "no part": lambda frame: [] if isinstance(frame, Part) else [frame],
    "no head": lambda frame: [] if isinstance(frame, Head) else [frame],
    "two heads": lambda frame: [frame, frame] if isinstance(frame, Head) else [frame],
}


def changed(frames: list[Frame], change: Callable[[Frame], Frame | list[Frame]]) -> list[Frame]:
    found = [change(frame) for frame in frames]
    return [one for some_ in found for one in (some_ if isinstance(some_, list) else [some_])]


async def restored(target: Path, file: Path) -> None:
    engine = LocalEngine(target)
    await engine.open()
    try:
        await restore(engine, file)
    finally:
        await engine.close()


@pytest.mark.parametrize("name", NONSENSE)
async def test_nonsense_is_refused_by_name(name: str, frames: list[Frame], tmp_path: Path) -> None:
    found = changed(frames, NONSENSE[name])
    assert found != frames, "nothing was changed"
    file = written(tmp_path / "b.backup", found)
    with pytest.raises((DataLoss, ConfigError)) as raised:
        verify(file)
    assert str(file) in str(raised.value) and len(str(raised.value)) < 600
    with pytest.raises((DataLoss, ConfigError)):
        await restored(tmp_path / "new.db", file)


def test_what_was_changed_by_nobody_is_taken(frames: list[Frame], tmp_path: Path) -> None:
    facts = verify(written(tmp_path / "b.backup", frames))
    assert facts.agents >= 5 and facts.blobs == 1 and facts.messages >= 1 and facts.registered == 1


plain = some.recursive(
    some.none()
    | some.booleans()
    | some.integers(-(2**63), 2**64 - 1)
    | some.floats()
    | some.text(max_size=20)
    | some.binary(max_size=20),
    lambda inner: (
        some.lists(inner, max_size=6) | some.dictionaries(some.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=some.data())
def test_mutated_frames_are_refused_or_harmless(
    data: some.DataObject, frames: list[Frame], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One field of one frame becomes anything; the file's checksums are right."""
    place = data.draw(some.integers(0, len(frames) - 1))
    fields = msgspec.msgpack.decode(codec.encode_raw(frames[place]))
    if data.draw(some.booleans()):
        fields[data.draw(some.integers(0, len(fields) - 1))] = data.draw(plain)
    else:
        fields = data.draw(plain)
    path = tmp_path_factory.getbasetemp() / "mutated.backup"
    path.unlink(missing_ok=True)
    with archive.Writer(path) as writer:
        for number, frame in enumerate(frames[:-1]):
            if number == place:
                body = codec.seal(msgspec.msgpack.encode(fields))
                writer._write(archive._LENGTH.pack(len(body)) + body)
                writer.records += isinstance(frame, Item)
            else:
                writer.add(frame)
            writer.blobs += isinstance(frame, Part) and frame.offset == 0
        writer.finish()
    try:
        facts = verify(path)
    except (DataLoss, ConfigError):
        return
    assert 1 <= facts.shards <= 4096 and time.localtime(facts.created_at)


@settings(max_examples=200, deadline=None)
@given(some.binary(max_size=200))
def test_any_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.backup"
    for whole in (data, archive._MAGIC + data):
        path.write_bytes(whole)
        with pytest.raises((DataLoss, ConfigError)):
            verify(path)


@pytest.mark.parametrize(
    "changes",
    [{"shards": n} for n in (0, -5, 2**60)]
    + [{"generation": n} for n in (0, 2**60)]
    + [{"cells": c} for c in ([], ["x"], ["g1c0\n"])]
    + [
        {"created_at": math.nan},
        {"record_version": -1},
        {"record_version": 2**50},
        {"cluster_id": "\x1b"},
    ],
    ids=str,
)
async def test_a_log_with_such_a_manifest_is_not_opened(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    engine = LocalEngine(tmp_path / "log.db")
    await engine.open()
    await engine.ensure_cells(["g1reg", "g1c0"], 1)
    await manifests.write(
        engine,
        "g1reg",
        replace(manifests.Manifest.new(cells=["g1c0"], shards=128, now=1.0), **changes),
        0,
    )
    await engine.close()
    with pytest.raises((DataLoss, ConfigError)):
        async with Node.join(f"local:{tmp_path}/log.db", serve=[Counter]):
            pass


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    for path in (Path("/dev/zero"), tmp_path):
        with pytest.raises(ConfigError):
            verify(path)
