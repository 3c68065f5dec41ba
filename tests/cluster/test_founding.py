"""Who may found a cluster: whoever was told so, with the number of copies that was said. Nobody
else makes anything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.cluster.app import Account

from holdfast import ConfigError, LocalCluster, Node, NotFound
from holdfast.admin import found as founding
from holdfast.admin import presence
from holdfast.admin.doctor.doctor import examine
from holdfast.admin.fleet import cohort
from holdfast.admin.found import found
from holdfast.admin.status import DOWN, Status, of_cluster
from holdfast.engines.nats import streams
from holdfast.engines.nats.engine import NatsEngine
from holdfast.errors import NoQuorum, NotDone
from holdfast.host.server.nats_server import LocalServers

pytestmark = pytest.mark.cluster
APP = str(Path(__file__).parent / "app.py")


async def made(urls: list[str]) -> dict[str, int]:
    """The streams on some servers, with their copies."""
    engine = NatsEngine(urls)
    await engine.open()
    try:
        names = await engine.cells()
        return {name: (await streams.info(engine.connection, name)).copies for name in names}
    finally:
        await engine.close()


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[LocalServers]:
    own = LocalServers(tmp_path / "servers")
    await own.start()
    yield own
    await own.stop()


async def test_only_who_was_told_to_founds_and_what_was_asked_for_is_kept(
    servers: LocalServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = servers.urls
    for serve in ([], [Account]):
        with pytest.raises(NotFound, match="holdfast found"):
            async with Node.join(urls, serve=serve):
                pass
        with pytest.raises(NotFound, match="no cluster here yet"):
            async with Node.join(urls[0], serve=serve, replicas=3):
                pass
    with pytest.raises(NoQuorum, match="within 1 s"):
        async with Node.join(urls, wait=True, timeout_seconds=1.0):
            pass
    for bad in (
        {"found": True},
        {"found": True, "replicas": 2},
        {"replicas": 0},
        {"replicas": True},
    ):
        with pytest.raises(ConfigError):
            async with Node.join(urls, **bad):  # type: ignore[arg-type]
                pass
    assert await made(urls) == {}, "somebody who was not told to made streams"

    waiting = asyncio.create_task(joined_later(urls))
    async with Node.join(urls, serve=[Account], found=True, replicas=1) as node:
        await node.ready()
        assert await node.agent(Account, "a").ask(Account.add, 3) == 3
        assert await waiting == 3
        assert set((await made(urls)).values()) == {1}
        # A cluster never runs with fewer copies than somebody who serves was told.
        with pytest.raises(ConfigError, match="keeps 1 copy of everything, and is to keep 3"):
            async with Node.join(urls, serve=[Account], found=True, replicas=3):
                pass
        async with Node.join(urls, replicas=3) as client:  # who only calls may look
            assert await client.agent(Account, "a").ask(Account.value) == 3
        engine = NatsEngine(urls)
        await engine.open()
        done = await found(engine, 3)
        assert (
            (done.copies, done.new) == (3, False)
            and "g1c0" in done.raised
            and "g1reg" in done.raised
        )
        complete, seen = founding._complete, list[tuple[str, bool]]()

        async def late(engine: NatsEngine, stream: str, replicas: int) -> bool:
            """As a stream whose copies a command before this one did not wait for: it is whole at
            the second look."""
            whole = (stream, False) in seen and await complete(engine, stream, replicas)
            seen.append((stream, whole))
            return whole

        with monkeypatch.context() as patch:
            patch.setattr(founding, "_complete", late)
            assert (await found(engine, 3)).raised == []
        assert {stream for stream, whole in seen if whole} == (await made(urls)).keys()
        await engine.close()
        assert set((await made(urls)).values()) == {3}
        async with Node.join(urls, serve=[Account], replicas=3):
            assert await node.agent(Account, "a").ask(Account.value) == 3


async def joined_later(urls: list[str]) -> int:
    """What a program gets that waits for a cluster."""
    async with Node.join(urls, wait=True) as node:
        await node.ready()
        while not (value := await node.agent(Account, "a").ask(Account.value)):
            await asyncio.sleep(0.05)
        return value


async def test_a_single_server_keeps_one_copy(tmp_path: Path) -> None:
    own = LocalServers(tmp_path, 1)
    await own.start()
    try:
        with pytest.raises(ConfigError, match="not part of a cluster"):
            async with Node.join(own.urls, found=True, replicas=3):
                pass
        assert await made(own.urls) == {}
    finally:
        await own.stop()


async def test_many_who_found_at_once_found_one_cluster(servers: LocalServers) -> None:
    async def join(number: int) -> str:
        url = servers.urls[number % 3]
        async with Node.join(url, found=True, replicas=3) as node:
            return node.manifest.cluster_id

    assert len(set(await asyncio.gather(*(join(number) for number in range(6))))) == 1
    kept = await made(servers.urls)
    assert sorted(kept) == ["g1blobs", "g1c0", "g1c1", "g1c2", "g1reg"] and set(kept.values()) == {
        3
    }


async def looked(url: str) -> Status | None:
    """The state of a cluster, by its server at this URL; None while that is not up."""
    engine = NatsEngine([url])
    try:
        await engine.open()
        return await of_cluster(engine)
    except NoQuorum:
        return None
    finally:
        await engine.close()


async def test_hosts_that_start_one_by_one_while_a_client_asks(tmp_path: Path) -> None:
    """The first host is there long before the others, and a client asks all the time."""
    cluster = LocalCluster(tmp_path, [APP])
    refused: list[Exception] = []
    asking = True

    async def ask() -> None:
        while asking:
            try:
                async with Node.join(cluster.urls[0], timeout_seconds=1.0):
                    await asyncio.sleep(0.1)
            except (NotFound, NoQuorum) as error:
                refused.append(error)
                await asyncio.sleep(0.05)

    client = asyncio.create_task(ask())
    starting = [asyncio.create_task(cluster.start_host("h1"))]
    try:
        async with asyncio.timeout(240):
            while len(refused) < 5:
                await asyncio.sleep(0.1)
        async with asyncio.timeout(240):
            while (seen := await looked(cluster.urls[0])) is None or "(h1)" not in "".join(
                seen.problems[:1]
            ):
                await asyncio.sleep(0.1)
        assert (
            seen.state == DOWN
            and "1 of the 3 hosts that found the cluster are up (h1)" in seen.problems[0]
        )
        starting += [asyncio.create_task(cluster.start_host(name)) for name in ("h2", "h3")]
        await asyncio.gather(*starting)
        asking = False
        await client
        kept = await made(cluster.urls)
        assert set(kept.values()) == {3} and {
            "g1c0",
            "g1c1",
            "g1c2",
            "g1reg",
            "g1blobs",
            "hfhosts",
        } <= set(kept)
    finally:
        asking = False
        client.cancel()
        await asyncio.gather(client, *starting, return_exceptions=True)
        await cluster.stop()


async def test_a_cluster_with_too_few_copies_gets_them_by_the_cohort_command(
    tmp_path: Path,
) -> None:
    """As it was founded by a client of older code: one copy, though three hosts vote."""
    async with LocalCluster(tmp_path, nodes=0) as cluster:
        async with Node.join(cluster.urls, serve=[Account], found=True, replicas=1) as node:
            await node.ready()
            assert await node.agent(Account, "a").ask(Account.add, 5) == 5
            async with asyncio.timeout(240):
                # who votes is written down meanwhile
                while (await presence.look(node.engine.bus)).record is None:
                    await asyncio.sleep(0.1)
        diagnosis = await examine(NatsEngine(cluster.urls))
        few = [one for one in diagnosis.findings if one.code == "too-few-copies"]
        assert [(one.severity, one.where) for one in few] == [("critical", "the cluster")]
        assert "1 copy" in few[0].seen and "holdfast cohort set h1,h2,h3" in few[0].seen
        with pytest.raises(ConfigError, match="3 hosts vote here"):
            engine = NatsEngine(cluster.urls)
            await engine.open()
            try:
                await found(engine, 1)
            finally:
                await engine.close()
        async with Node.join(cluster.urls) as operator:
            lines: list[str] = []
            async with asyncio.timeout(240):
                while True:
                    with suppress(NotDone):
                        # a host that did not answer for a moment; the command is made to be
                        # repeated
                        record = await cohort.set_members(
                            operator, ["h1", "h2", "h3"], lines.append
                        )
                        break
            assert record.members == ["h1", "h2", "h3"] and any(
                "gets 3 copies" in line for line in lines
            )
        assert set((await made(cluster.urls)).values()) == {3}
        async with Node.join(cluster.urls, serve=[Account], replicas=3) as node:
            await node.ready()
            assert await node.agent(Account, "a").ask(Account.value) == 5
