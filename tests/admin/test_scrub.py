"""A replica that lost records in silence is found by its content, copied anew, and then has
everything.

The engine's own blind spot, made for real: a byte is flipped in a file of a follower that was
killed. It starts again, calls itself healthy and current, and lacks acknowledged records.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from tests.admin.app import Note
from tests.patience import PASSING, again

from holdfast import HoldfastError, LocalCluster, Node, limits
from holdfast.admin.doctor.doctor import examine
from holdfast.admin.scrub.scrub import Damage, Scrubbed, ScrubReport, by_hosts, scrub
from holdfast.engines.nats import streams
from holdfast.engines.nats.engine import NatsEngine
from holdfast.engines.nats.replica import open_replicas, sizes
from holdfast.host.rpc.facts import HostFacts
from holdfast.host.rpc.service import ask_host

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(900),
]
APP = str(Path(__file__).parent / "app.py")
NOTES = 900
BUSY = 150
"""Notes that are written to all the while. The others stay as they are: what was lost of them is
not replaced."""

TEXT = "the quick brown fox " * 40
LONG = TEXT * (limits.PACKED_BYTES_MAX // len(TEXT) + 1)
"""Of those that stay as they are. In a pack they would leave it after a while, and what a replica
lost of them with it."""


def host_of(server: str) -> str:
    """The host of a server, whose name in the engine has more behind it."""
    return server.partition("-")[0]


class Scene:
    """A cluster with notes in it, whose texts are known."""

    def __init__(
        self, cluster: LocalCluster, directory: Path, node: Node, engine: NatsEngine
    ) -> None:
        self.cluster = cluster
        self.directory = directory
        self.node = node
        self.engine = engine
        self.acknowledged: dict[str, str] = {}

    async def write(self, names: list[str], text: str) -> None:
        """Acknowledged texts for these notes."""

        async def one(name: str) -> None:
            # while it is under way, and where its outcome stays unknown
            self.acknowledged.pop(name, None)
            await self.node.agent(Note, name).ask(Note.write, f"{name} {text}")
            self.acknowledged[name] = f"{name} {text}"

        for start in range(0, len(names), 200):
            await asyncio.gather(*(one(name) for name in names[start : start + 200]))

    async def all_read(self) -> None:
        """Everything that was acknowledged is what the agents answer."""
        names = list(self.acknowledged)
        for start in range(0, len(names), 200):
            some = names[start : start + 200]
            texts = await asyncio.gather(
                *(self.node.agent(Note, name).ask(Note.read) for name in some)
            )
            assert texts == [self.acknowledged[name] for name in some]

    async def leader_of(self, stream: str) -> str:
        """The server that leads a stream, once one does."""

        async def leader() -> str:
            found = (await streams.info(self.engine.connection, stream)).cluster.leader
            assert found, f"nobody leads {stream}"
            return found

        return await again(leader, AssertionError, *PASSING)

    async def follower_of(self, stream: str, leader: str) -> str:
        """A server that keeps a stream and does not lead it; nor is it ``leader``, which led it a
        moment ago."""
        facts = await again(lambda: streams.info(self.engine.connection, stream))
        return next(peer.name for peer in facts.cluster.replicas if peer.name != leader)

    async def text_of(self, name: str) -> Any:
        """The text of a note, as the log has it."""
        return (await again(lambda: self.node.inspect(f"Note/{name}"))).state["text"]

    async def compacted(self, server: str) -> None:
        """End a host's server in order, which has it write its snapshots; its host starts it
        again."""
        host = host_of(server)
        before = self.cluster.server_pid(host)
        os.kill(before, signal.SIGTERM)
        await until(lambda: self.cluster.server_pid(host) != before)
        await self.current()

    async def current(self) -> None:
        """Wait until every replica follows its leader."""

        async def all_current() -> bool:
            try:
                found = [
                    await streams.info(self.engine.connection, one) for one in await self.names()
                ]
            except HoldfastError:
                return False
            peers = [peer for facts in found for peer in facts.cluster.replicas]
            return len(peers) == 2 * len(found) and all(
                p.current and not p.offline and p.lag == 0 for p in peers
            )

        await until(all_current)

    async def names(self) -> list[str]:
        return await streams.names(self.engine.connection)

    async def flip(self, server: str, stream: str) -> None:
        """Kill a host, flip one bit in the first block of a stream's file, and start the host
        again."""
        host = host_of(server)
        await self.cluster.kill_host(host)
        files = self.directory.glob(f"{host}/jetstream/**/streams/{stream}/msgs/*.blk")
        path = min(files, key=lambda one: int(one.stem))
        data = bytearray(path.read_bytes())
        # In a record that is not replaced meanwhile, where there is one: else in the middle of a
        # blob.
        quiet = [
            at for n in range(BUSY, NOTES) if (at := data.find(f"n{n} the quick".encode())) > 0
        ]
        data[min(quiet, default=len(data) // 3)] ^= 0x10
        path.write_bytes(data)
        await self.cluster.start_host(host)
        await self.current()

    async def contents(self, stream: str, server: str) -> dict[int, bytes]:
        """The records of one replica, read one after the other."""
        reader = (await open_replicas(self.engine.connection, stream, [server]))[server]
        found: dict[int, bytes] = {}
        while chunk := await reader.next():
            found.update((stored.sequence, stored.payload) for stored in chunk)
        reader.close()
        return found


async def until(condition: Callable[[], Any], seconds: float = 240.0) -> None:
    async with asyncio.timeout(seconds):
        while not (await found if asyncio.iscoroutine(found := condition()) else found):
            await asyncio.sleep(0.1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    directory = tmp_path_factory.mktemp("scrub")
    async with LocalCluster(directory, [APP]) as cluster, Node.join(cluster.urls) as node:
        engine = NatsEngine(cluster.urls)
        await engine.open()
        await node.ready()
        made = Scene(cluster, directory, node, engine)
        await made.write([f"n{n}" for n in range(BUSY)], TEXT)
        await made.write([f"n{n}" for n in range(BUSY, NOTES)], LONG)
        yield made
        await engine.close()


@asynccontextmanager
async def load(scene: Scene) -> AsyncIterator[None]:
    """Writes, all the while, to notes that were there before."""
    ended = asyncio.Event()

    async def work(lane: int) -> None:
        n = 0
        while not ended.is_set():
            n += 1
            with suppress(HoldfastError):  # a takeover that has to read again and again
                await scene.write(
                    [f"n{(lane * 37 + n * 5 + k) % BUSY}" for k in range(3)], f"{TEXT} {lane} {n}"
                )

    tasks = [asyncio.create_task(work(lane)) for lane in range(4)]
    try:
        yield
    finally:
        ended.set()
        await asyncio.gather(*tasks)


def losses(scrubbed: Iterable[Scrubbed]) -> list[Damage]:
    """What is wrong, but for what stays open in a stream while one of its servers does not
    answer."""
    return [
        damage
        for one in scrubbed
        for damage in one.damages
        if damage.code == "diverged" or all(other.code != "unread" for other in one.damages)
    ]


async def compared(scene: Scene) -> ScrubReport:
    """A scrub that every server answered, or that found losses."""

    async def whole() -> ScrubReport:
        report = await scrub(scene.engine)
        assert losses(report.streams) or not report.damages, report.damages
        return report

    return await again(whole, AssertionError, *PASSING)


def was_repaired(runs: Iterable[list[Scrubbed]], stream: str, server: str) -> bool:
    """Whether this replica was copied again, and no other one was found to differ, in all the runs
    that it took."""
    found = [damage for run in runs for damage in losses(run)]
    assert {(one.stream, one.server) for one in found} == {(stream, server)}, found
    return any(one.repaired for one in found)


def command(scene: Scene, *arguments: str) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "holdfast"),
            "scrub",
            *("--wait", "--timeout", "550"),
            *arguments,
            "--at",
            ",".join(scene.cluster.urls),
        ],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert "--json" in arguments
    return done.returncode, json.loads(done.stdout)


async def test_a_healthy_cluster_under_load_is_clean(scene: Scene) -> None:
    async with load(scene):
        for _ in range(2):
            report = await compared(scene)
            assert report.damages == []
            assert all(one.copies == 3 and len(one.servers) == 3 for one in report.streams)
    # Those that were not replaced meanwhile; many of them are together in one record.
    assert sum(one.bytes for one in report.streams) > NOTES // 2 * len(TEXT)
    assert {one.stream for one in report.streams} == {
        *scene.node.manifest.cells,
        "g1reg",
        "g1blobs",
        "hfhosts",
    }


@pytest.mark.soak
@pytest.mark.timeout(900)
async def test_twenty_scrubs_under_load_raise_no_false_alarm(scene: Scene) -> None:
    async with load(scene):
        for _ in range(20):
            assert (await compared(scene)).damages == []


async def test_a_flipped_byte_is_found_and_the_replica_copied_anew_under_load(scene: Scene) -> None:
    cell = scene.node.manifest.cells[-1]  # where leaders are uneven, others are moved first
    first = await scene.leader_of(cell)
    victim = await scene.follower_of(cell, first)
    await scene.compacted(victim)
    await scene.write([f"n{n}" for n in range(30)], "after the snapshot")
    await leads(scene, cell, first)
    await scene.flip(victim, cell)
    await leads(scene, cell, first)

    async def the_engine_finds_nothing() -> None:
        facts = await ask_host(scene.engine.bus, host_of(victim), "facts", HostFacts)
        assert facts.server_trouble == ""

    async def diverged() -> list[str]:
        diagnosis = await examine(NatsEngine(scene.cluster.urls))
        found = [one.where for one in diagnosis.findings if one.code == "diverged"]
        assert found, diagnosis
        return found

    async def exactly_what_is_missing_is_told() -> None:
        """The scrub and the two replicas are read one after the other. Meanwhile nodes prove their
        lives, and another server may come to lead."""
        await leads(scene, cell, first)
        ends = await sizes(scene.engine.connection, cell, [first, victim])
        code, found = await asyncio.to_thread(command, scene, "--json")
        assert code == 1 and found.get("clean") is False, found
        damages = losses(msgspec.convert(found["streams"], list[Scrubbed]))
        assert [(one.code, one.stream, one.server) for one in damages] == [
            ("diverged", cell, victim)
        ]
        damage = damages[0]
        full, lost = await scene.contents(cell, first), await scene.contents(cell, victim)
        missing = sorted(set(full) - set(lost))
        lost_sequences = expanded(damage.sequences)
        assert (
            lost_sequences
            and lost_sequences <= set(missing)
            and (damage.missing - len(missing)) in range(-20, 21)
        )
        assert ends[victim].messages < ends[first].messages
        assert all(agent.startswith(("Note/", cell)) or agent == "…" for agent in damage.agents)
        assert await scene.leader_of(cell) == first

    runs: list[list[Scrubbed]] = []

    async def it_is_repaired() -> None:
        code, found = await asyncio.to_thread(command, scene, "--json", "--repair")
        runs.append(msgspec.convert(found.get("streams", []), list[Scrubbed]))
        assert code == 0 and found["clean"], found

    await again(the_engine_finds_nothing, AssertionError, *PASSING)
    assert await again(diverged, AssertionError) == [cell]
    await again(exactly_what_is_missing_is_told, AssertionError, *PASSING)
    async with load(scene):
        await again(it_is_repaired, AssertionError)
    assert was_repaired(runs, cell, victim)
    await leads(scene, cell, victim)
    await scene.current()
    for name, text in list(scene.acknowledged.items()):
        if scene.node.describe(f"Note/{name}").cell == cell:
            assert await scene.text_of(name) == text
    scene.cluster.kill_node("h1-1")  # what it had is recovered from the log
    await scene.all_read()


def expanded(spans: list[str]) -> set[int]:
    pairs = [span.partition("-")[::2] for span in spans if span != "…"]
    return {n for first, last in pairs for n in range(int(first), int(last or first) + 1)}


async def leads(scene: Scene, stream: str, server: str) -> None:
    async def so() -> bool:
        try:
            if (await streams.info(scene.engine.connection, stream)).cluster.leader == server:
                return True
            await streams.move_leader(scene.engine.connection, stream, server)
        except HoldfastError:
            pass
        return False

    await until(so)


async def test_a_flipped_byte_in_a_blob_is_found_and_healed(scene: Scene) -> None:
    for name in ("big1", "big2"):
        await scene.node.agent(Note, name).ask(Note.grow, 2_000_000)
    leader = await scene.leader_of("g1blobs")
    victim = await scene.follower_of("g1blobs", leader)
    await scene.compacted(victim)
    await leads(scene, "g1blobs", leader)
    await scene.flip(victim, "g1blobs")
    damages = losses((await compared(scene)).streams)
    assert [(one.code, one.stream, one.server) for one in damages] == [
        ("diverged", "g1blobs", victim)
    ]
    assert set(damages[0].agents) <= {"Note/big1", "Note/big2"}
    runs: list[list[Scrubbed]] = []

    async def it_is_repaired() -> None:
        report = await scrub(scene.engine, rebuild=by_hosts(scene.engine))
        runs.append(report.streams)
        assert report.clean, report.damages

    await again(it_is_repaired, AssertionError, *PASSING)
    assert was_repaired(runs, "g1blobs", victim)
    await leads(scene, "g1blobs", victim)
    for name in ("big1", "big2"):
        assert await scene.text_of(name) == "x" * 2_000_000
    assert (await compared(scene)).damages == []


@pytest.mark.soak
async def test_no_replica_is_thrown_away_where_no_majority_would_be_left(scene: Scene) -> None:
    cell = scene.node.manifest.cells[1]
    leader = await scene.leader_of(cell)
    servers = (await streams.info(scene.engine.connection, cell)).servers("")
    victims = [server for server in servers if server != leader]
    for victim in victims:
        await scene.compacted(victim)
        await leads(scene, cell, leader)
        await scene.write([f"n{n}" for n in range(30)], f"before {victim}")
        await scene.flip(victim, cell)
        await leads(scene, cell, leader)
    before = await sizes(scene.engine.connection, cell, servers)
    report = await scrub(scene.engine, rebuild=by_hosts(scene.engine))
    assert not report.clean and not any(one.repaired for one in report.damages)
    after: ScrubReport = await scrub(scene.engine)
    assert {one.code for one in after.damages} == {one.code for one in report.damages}
    now = await sizes(scene.engine.connection, cell, servers)
    assert {host: size.messages for host, size in now.items()} == {
        host: size.messages for host, size in before.items()
    }
