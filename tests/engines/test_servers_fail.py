"""The cluster's engine while its servers are killed and frozen."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path

import pytest
from tests.patience import again, keep_connections, until

from holdfast import limits
from holdfast.engines.base import Expect, Record
from holdfast.engines.nats import api, streams
from holdfast.engines.nats.engine import NatsEngine
from holdfast.errors import ConfigError, Conflict, NoQuorum, Unknown
from holdfast.host.server.nats_config import ServerSettings
from holdfast.host.server.nats_server import LocalServers, NatsServer, find_binary, free_ports

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

STOPS_MAX = 5
"""How often a cell may be without a leader just as its servers are stopped."""


@pytest.fixture
async def cohort(tmp_path: Path) -> AsyncIterator[LocalServers]:
    servers = LocalServers(tmp_path)
    await servers.start()
    yield servers
    await servers.stop()


@pytest.fixture
async def engine(cohort: LocalServers) -> AsyncIterator[NatsEngine]:
    made = NatsEngine(cohort.urls)
    await made.open()
    await made.ensure_cells(["c"], 3)
    yield made
    await made.close()


async def append(engine: NatsEngine, subject: str, payload: bytes = b"") -> None:
    """Append once, whatever happens meanwhile: an unknown outcome is settled by the expectation."""
    record = Record(subject, payload, Expect(subject, 0))
    async with asyncio.timeout(240):
        while True:
            try:
                await engine.log.append("c", [record])
                return
            except Conflict:
                return
            except (NoQuorum, Unknown):
                await asyncio.sleep(0.1)


async def follow(engine: NatsEngine, found: list[int]) -> bool:
    """Note the numbers in the inbox records of the cell, up to the last of three hundred; whether
    that was interrupted."""
    async with aclosing(engine.log.tail("c", ["c.in.>"])) as tail:  # type: ignore[type-var]
        begun = set()
        async for chunk in tail:
            begun.add(chunk.begun)
            found.extend(int(stored.payload) for stored in chunk.records)
            if found and found[-1] == 299:
                return len(begun) > 1
    raise AssertionError("the tail ended")


def read_from(cohort: LocalServers, engine: NatsEngine) -> NatsServer:
    """The server that tails read from."""
    assert engine._reading is not None
    name = engine._reading._server_info["server_name"]
    return next(server for server in cohort.servers if server.name == name)


async def test_a_tail_goes_on_without_a_gap_when_its_server_dies(
    cohort: LocalServers, engine: NatsEngine
) -> None:
    found: list[int] = []
    following = asyncio.create_task(follow(engine, found))
    for n in range(300):
        await append(engine, f"c.in.{n}", str(n).encode())
        if n == 100:
            await until(lambda: found)  # the tail has to have begun
            dead = read_from(cohort, engine)
            await dead.kill()
        if n == 200:
            await dead.start()
    async with asyncio.timeout(240):
        assert await following
    assert found == list(range(300))
    assert int(engine.statistics()["reconnections"]) >= 1


async def test_a_tail_goes_on_without_a_gap_when_only_its_connection_is_lost(
    engine: NatsEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read in bulk has a connection of its own: nobody who writes hears of its loss."""
    monkeypatch.setattr(limits, "APPEND_TIMEOUT_SECONDS", 240.0)
    keep_connections(engine)
    found: list[int] = []
    following = asyncio.create_task(follow(engine, found))
    for n in range(300):
        record = Record(f"c.in.{n}", b"%d" % n)
        await again(partial(engine.log.append, "c", [record]), NoQuorum)
        if n == 100:
            await until(lambda: found)  # the tail has to have begun
            assert engine._reading is not None
            engine._reading._transport._io_writer.transport.abort()
    async with asyncio.timeout(240):
        assert await following
    assert found == list(range(300))
    assert engine.connection.reconnections == 0 and engine.statistics()["reconnections"] == 1
    assert engine.statistics()["unknown"] == 0


async def test_a_write_that_times_out_is_unknown_and_settles(
    cohort: LocalServers, engine: NatsEngine
) -> None:
    for _ in range(STOPS_MAX):
        for server in cohort.servers[1:]:
            server.send_signal(signal.SIGCONT)
        await append(engine, "c.before")  # the cell has a leader
        for server in cohort.servers[1:]:
            server.send_signal(signal.SIGSTOP)
        with pytest.raises((Unknown, NoQuorum)) as caught:
            for n in range(10):
                batch = [Record(f"c.limbo-{n}", b""), Record(f"c.twin-{n}", b"")]
                await engine.log.append("c", batch)
        if isinstance(caught.value, Unknown):
            break
    # The first to be refused for want of a leader comes after one that nobody answered.
    assert isinstance(caught.value, Unknown)
    for server in cohort.servers[1:]:
        server.send_signal(signal.SIGCONT)
    await append(engine, "c.after")
    last = (await wait_for_record(engine, "c.after")).sequence
    subjects: list[str] = []
    async with asyncio.timeout(240), aclosing(engine.log.tail("c", ["c.>"])) as tail:  # type: ignore[type-var]
        async for chunk in tail:
            subjects += [stored.subject for stored in chunk.records]
            if any(stored.sequence == last for stored in chunk.records):
                break
    limbo = {s.rpartition("-")[2] for s in subjects if "limbo" in s}
    twins = {s.rpartition("-")[2] for s in subjects if "twin" in s}
    assert limbo == twins, "half a batch was written"


async def test_who_waits_for_a_batch_hears_of_a_new_leader(
    cohort: LocalServers, engine: NatsEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that a leader took and did not pass on is answered by nobody: that is said long
    before the timeout."""
    elected = asyncio.Event()
    subject = "$JS.EVENT.ADVISORY.STREAM.LEADER_ELECTED.c"
    await engine.connection.listen(subject, lambda *_: elected.set())
    names = {server.settings.name for server in cohort.servers}
    async with asyncio.timeout(240):
        while not elected.is_set():
            # A cell may have no leader for a moment, and an answer may be late.
            with suppress(NoQuorum, Unknown, TimeoutError):
                leader = (await streams.info(engine.connection, "c")).cluster.leader
                await streams.move_leader(engine.connection, "c", min(names - {leader}))
                async with asyncio.timeout(10):
                    await elected.wait()

    # Somebody listens to this subject, who is no stream.
    monkeypatch.setattr(limits, "APPEND_TIMEOUT_SECONDS", 600.0)
    sent = asyncio.Event()
    await engine.bus.subscribe("limbo.>", lambda _message: sent.set())
    waiting = asyncio.create_task(engine.log.append("limbo", [Record("limbo.x", b"")]))
    async with asyncio.timeout(240):
        await sent.wait()
        engine.connection.send(f"PUB {subject[:-1]}limbo 0\r\n\r\n".encode())
        with pytest.raises(Unknown):
            await waiting


async def wait_for_record(engine: NatsEngine, subject: str):  # type: ignore[no-untyped-def]
    async with asyncio.timeout(240):
        while True:
            try:
                stored = await engine.log.read("c", subject)
            except NoQuorum:
                stored = None
            if stored is not None:
                return stored
            await asyncio.sleep(0.1)


async def test_without_servers_nothing_is_written(cohort: LocalServers, engine: NatsEngine) -> None:
    await append(engine, "c.before")
    for server in cohort.servers:
        await server.kill()
    async with asyncio.timeout(240):
        while engine.connected():
            await asyncio.sleep(0.05)
    with pytest.raises(NoQuorum):
        await engine.log.append("c", [Record("c.never", b"")])
    engine.bus.publish("nobody", b"")
    await cohort.start()
    await append(engine, "c.after")
    assert await again(lambda: engine.log.read("c", "c.never"), NoQuorum) is None
    assert (await wait_for_record(engine, "c.before")).sequence == 1


async def test_a_server_alone_keeps_one_copy(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    server = NatsServer(ServerSettings("alone", str(tmp_path / "s"), port=port))
    await server.start()
    engine = NatsEngine([server.url])
    await engine.open()
    await engine.ensure_cells(["c"], 1)
    await append(engine, "c.a")
    await server.kill()
    await server.start()
    assert (await wait_for_record(engine, "c.a")).sequence == 1
    await engine.close()
    await server.stop()


async def test_a_server_without_jetstream_is_refused(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    server = NatsServer(ServerSettings("plain", str(tmp_path / "s"), port=port))
    await server.start()
    path = tmp_path / "s" / "nats-server.conf"
    await server.kill()
    path.write_text(f"listen: 127.0.0.1:{port}\nserver_name: plain\n")
    process = await asyncio.create_subprocess_exec(
        str(find_binary()), "-c", str(path), stderr=asyncio.subprocess.DEVNULL
    )
    try:
        with pytest.raises(ConfigError, match="JetStream"):
            await NatsEngine([server.url]).open()
    finally:
        process.kill()
        await process.wait()


async def test_nobody_there_is_no_quorum() -> None:
    (port,) = free_ports(1)
    with pytest.raises(NoQuorum, match=str(port)):
        await NatsEngine([f"nats://127.0.0.1:{port}"], connect_seconds=1.0).open()


async def test_a_stream_with_other_settings_is_refused(
    cohort: LocalServers, engine: NatsEngine
) -> None:

    assert engine._connection is not None
    config = {
        "name": "other",
        "subjects": ["other.>"],
        "storage": "file",
        "retention": "limits",
        "num_replicas": 3,
    }
    await api.call(engine._connection, "STREAM.CREATE.other", config, 240)
    with pytest.raises(ConfigError, match="other"):
        await engine.ensure_cells(["other"], 3)
