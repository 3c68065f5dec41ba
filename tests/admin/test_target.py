"""What a backup may be restored into, and what an interrupted restore leaves behind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.admin.purses import Counter, Purse
from tests.admin.restored import (
    backup_of,
    created,
    local_log,
    opened,
    purses,
    restored_cluster,
    restored_file,
)
from tests.patience import again

from holdfast import ConfigError, LocalCluster, Node, NotDone
from holdfast.admin.backup import restore as restoring
from holdfast.admin.backup.restore import restore
from holdfast.engines.base import Record
from holdfast.engines.local.engine import LocalEngine
from holdfast.engines.nats.engine import NatsEngine
from holdfast.errors import InvalidName, NoQuorum, Unknown
from holdfast.host.server.nats_server import LocalServers

SERVE: list[Any] = [Purse, Counter]
NAMES = [f"p{n}" for n in range(12)]


@pytest.fixture
async def backup(tmp_path: Path) -> Path:
    """A backup of some agents, of an embedded log."""
    await local_log(tmp_path / "old.db", 1, shards=128)
    async with Node.join(f"local:{tmp_path / 'old.db'}", serve=SERVE) as node:
        await node.ready()
        for number, name in enumerate(NAMES):
            await node.agent(Purse, name).ask(Purse.give, NAMES[number - 1], number)
            await node.register(Purse, name)
        await node.agent(Counter, "large").ask(Counter.grow, 700_000)
    await backup_of(tmp_path / "old.db", tmp_path / "b.backup")
    return tmp_path / "b.backup"


async def test_a_target_that_was_used_is_refused(backup: Path, tmp_path: Path) -> None:
    before = (tmp_path / "old.db").read_bytes()
    with pytest.raises(ConfigError, match=r"not empty: it has g1"):
        await restored_file(tmp_path / "old.db", backup)
    await restored_file(tmp_path / "new.db", backup)
    with pytest.raises(ConfigError, match=r"not empty: it has g2"):
        await restored_file(tmp_path / "new.db", backup)
    async with opened(LocalEngine(tmp_path / "old.db")) as engine:
        assert await engine.cells() == ["g1c0", "g1reg"]
    assert len(before) <= (tmp_path / "old.db").stat().st_size


async def test_a_cluster_that_nobody_used_yet_is_replaced(backup: Path, tmp_path: Path) -> None:
    async with Node.join(f"local:{tmp_path / 'new.db'}", serve=SERVE) as node:
        await node.ready()
    await restored_file(tmp_path / "new.db", backup)
    async with opened(LocalEngine(tmp_path / "new.db")) as engine:
        assert await engine.cells() == ["g2c0", "g2reg"]
    async with Node.join(f"local:{tmp_path / 'new.db'}", serve=SERVE) as node:
        await purses(node, NAMES, 1200)


async def test_a_generation_only_grows(backup: Path, tmp_path: Path) -> None:
    async with opened(LocalEngine(tmp_path / "new.db")) as engine:
        for wrong in (1, 0, -3, 10**6):
            with pytest.raises(ConfigError, match="2 or higher"):
                await restore(engine, backup, generation=wrong)
        facts = await restore(engine, backup, generation=7)
    assert facts.generation == 7 and list(facts.cuts) == ["g7c0"]
    async with Node.join(f"local:{tmp_path / 'new.db'}", serve=SERVE) as node:
        await purses(node, NAMES, 1200)


class Stopped(Exception):
    """The restoring process died."""


@pytest.mark.parametrize("after", [1, 2, 3, 4, 5])
async def test_an_interrupted_restore_is_no_cluster_and_can_be_repeated(
    backup: Path, tmp_path: Path, after: int
) -> None:
    """It is stopped after each of its appends: the first manifest, each cell's records, the
    registry."""
    async with opened(LocalEngine(tmp_path / "new.db")) as engine:
        real, left = engine.log.append, after

        async def append(cell: str, records: Sequence[Record]) -> range:
            nonlocal left
            if not left:
                raise Stopped
            left -= 1
            return await real(cell, records)

        engine.log.append = append  # type: ignore[method-assign]
        try:
            await restore(engine, backup, cells=2)
        except Stopped:
            finished = False
        else:
            finished = True
    assert finished == (after == 5), "the number of appends changed: choose the places anew"
    if not finished:
        with pytest.raises(ConfigError, match=r"restore of b\.backup"):
            async with Node.join(f"local:{tmp_path / 'new.db'}", serve=SERVE):
                pass
        assert (await restored_file(tmp_path / "new.db", backup)).generation == 3
        async with opened(LocalEngine(tmp_path / "new.db")) as engine:
            assert await engine.cells() == ["g3c0", "g3reg"]
            assert await engine.blobs.keys("g2c0") == await engine.blobs.keys("g2c1") == []
    async with Node.join(f"local:{tmp_path / 'new.db'}", serve=SERVE) as node:
        await purses(node, NAMES, 1200)
        assert await node.agent(Counter, "large").ask(Counter.size) == (700_000, b"\x01")
        assert node.count(kind=Purse) == len(NAMES)


@pytest.mark.cluster
async def test_who_was_there_before_writes_nothing_into_a_restored_cluster(
    backup: Path, tmp_path: Path
) -> None:
    servers = LocalServers(tmp_path / "servers", 1)
    await servers.start()
    try:
        async with Node.join(servers.urls, found=True, replicas=1) as old:
            async with opened(NatsEngine(servers.urls)) as engine:
                await restore(engine, backup)
                cells = await engine.cells()
            assert cells == ["g1blobs", "g2c0", "g2reg"]
            # The outcome is unknown where the connection is lost meanwhile.
            agent = old.agent(Purse, "p1").options(timeout_seconds=1.0)
            with pytest.raises((NotDone, InvalidName)):
                await again(lambda: agent.send(Purse.take, "x", 1, 1), Unknown)
            new = Record("g1reg.ag.Purse/new", b"")
            with pytest.raises(NoQuorum):
                await again(lambda: old.engine.log.append("g1reg", [new]), Unknown)
            async with Node.join(servers.urls, serve=SERVE) as node:
                await node.ready()
                await purses(node, NAMES, 1200)
                assert old.incarnation not in {member.incarnation for member in node.members()}
    finally:
        await servers.stop()


@pytest.mark.cluster
@pytest.mark.timeout(900)
@pytest.mark.capability("B6")
async def test_an_embedded_log_becomes_a_cluster_of_three(
    backup: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        restored_cluster(tmp_path / "new", backup, 3) as cluster,
        Node.join(cluster.urls) as node,
    ):
        await node.ready()
        assert list(node.manifest.cells) == ["g2c0", "g2c1", "g2c2"]
        await purses(node, NAMES, 1200)
        assert await node.agent(Counter, "large").ask(Counter.size) == (700_000, b"\x01")
        async with opened(NatsEngine(cluster.urls)) as engine:
            with monkeypatch.context() as patch:
                patch.setattr(restoring, "_LISTEN_SECONDS", 20.0)  # each of the three is heard
                with pytest.raises(ConfigError, match=r"h1-1, h2-1, h3-1 serve here"):
                    await restore(engine, backup)
        await created(node, tmp_path / "second.backup")
    async with (
        LocalCluster(tmp_path / "new", hosts=3, nodes=0) as servers,
        opened(NatsEngine(servers.urls)) as engine,
    ):
        # Servers that just started have no leaders for a while.
        with pytest.raises(ConfigError, match=r"not empty: it has g2"):
            await again(lambda: restore(engine, backup))
