"""Each fault that the doctor knows of, made for real in one cluster, is found by its name; a
healthy cluster has none."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.admin.app import Note
from tests.admin.hosts import FAST_CLOCK, HostProcess, cohort, mute_tree, stale_tree
from tests.patience import WAITING, again, connect_within

from holdfast import HoldfastError, LocalCluster, Node
from holdfast.admin.doctor.doctor import Diagnosis, examine
from holdfast.engines.nats import api, streams
from holdfast.engines.nats.engine import NatsEngine, stream_settings
from holdfast.host.server.nats_server import LocalServers, free_ports
from holdfast.host.settings import HostSettings

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(900),
]
APP = Path(__file__).parent / "app.py"
OTHER = """
from holdfast import Agent, State, handler

class Empty(State):
    pass

class Other(Agent[Empty]):
    @handler
    async def nothing(self) -> None:
        pass
"""
OTHERS = tuple(f"{name} and ahead" for name in ("h1", "h2", "h3", "differs", "crashes"))
DISK_BYTES = 160 * 1024 * 1024
LASTING = frozenset(
    {
        "same-name",
        "stream-settings",
        "not-synced",
        "old-server",
        "mixed-servers",
        "mixed-versions",
        "mixed-kinds",
        "permissions",
        "certificate-expires",
        "certificate-expired",
        "cell-lost",
    }
)
"""Findings that no want of time explains: a second look would not be another one."""


class Ward:
    """The cluster, and all that was made to be wrong with it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.hosts = cohort(directory, [str(APP)])
        self.urls = list(self.hosts[0].settings.urls)
        self.small_disk = self._mount(directory / "h3")

    def _mount(self, path: Path) -> bool:
        path.mkdir()
        if os.geteuid() != 0 or shutil.which("mount") is None:
            return False
        command = [
            "mount",
            "-t",
            "tmpfs",
            "-o",
            f"size={DISK_BYTES},mode=755",
            "holdfast-test",
            str(path),
        ]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    async def end(self) -> None:
        for host in self.hosts:
            await host.kill()
        if self.small_disk:
            subprocess.run(["umount", "-l", str(self.directory / "h3")], check=True)

    def server_pid(self, index: int) -> int:
        return int(
            [one["server_pid"] for one in self.hosts[index].events if one["event"] == "server"][-1]
        )

    def fill(self, share: float) -> None:
        """Fill the small disk up to a share of it."""
        free = shutil.disk_usage(self.directory / "h3")
        filler = self.directory / "h3" / "filler"
        size = int(free.total * share) - free.used
        with suppress(OSError), filler.open("ab", buffering=0) as file:
            while size > 0:
                size -= file.write(b"x" * min(size, 65536))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ward(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Ward]:
    made = Ward(tmp_path_factory.mktemp("ward"))
    try:
        for host in made.hosts:
            await host.start()
        for host in made.hosts:
            await host.heard("node-ready")
        yield made
    finally:
        await made.end()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(ward: Ward) -> AsyncIterator[Node]:
    async with Node.join(ward.urls) as node:
        await node.ready()
        yield node


@pytest_asyncio.fixture(loop_scope="module")
async def guest(ward: Ward) -> AsyncIterator[Callable[..., Awaitable[None]]]:
    """Start a host that is wrong beside those of the ward; it ends with the test."""
    guests: list[HostProcess] = []

    async def start(
        name: str, apps: list[str], nodes: int = 1, tree: Path | None = None, prelude: str = ""
    ) -> None:
        guests.append(
            HostProcess(HostSettings(name, None, ward.urls, nodes, apps, 3), tree, prelude)
        )
        await guests[-1].start()

    yield start
    for host in guests:
        await host.kill()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def own(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalCluster]:
    """A second cluster, for faults that would hide others."""
    async with LocalCluster(tmp_path_factory.mktemp("own"), [str(APP)]) as cluster:
        yield cluster


async def look(urls: list[str]) -> Diagnosis:
    async with asyncio.timeout(240):
        diagnosis = await examine(NatsEngine(urls))
    assert all(one.seen and one.do for one in diagnosis.findings)
    return diagnosis


async def found_at(urls: list[str]) -> dict[str, list[str]]:
    """Look once; per finding where it was seen, and what."""
    found: dict[str, list[str]] = {}
    for one in (await look(urls)).findings:
        found.setdefault(one.code, []).append(f"{one.where}: {one.seen}")
    return found


async def find(urls: list[str], *wanted: str, at: str = "") -> dict[str, list[str]]:
    """Look until these findings are there, each at a place that begins so, and return where they
    were seen."""
    found: dict[str, list[str]] = {}
    try:
        async with asyncio.timeout(240):
            while not all(
                any(one.startswith(at) for one in found.get(code, ())) for code in wanted
            ):
                found = await found_at(urls)
    except TimeoutError:
        raise AssertionError(f"not found: {wanted} at {at!r}; found: {found}") from None
    return found


def command(*arguments: str, at: str) -> tuple[int, str]:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "holdfast"), "doctor", *arguments, "--at", at],
        capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


async def test_nothing_is_found_where_all_is_well(ward: Ward, client: Node) -> None:
    await client.agent(Note, "one").ask(Note.write, "text")

    async def all_is_well() -> None:
        looking = asyncio.create_task(look(ward.urls))
        code, text = await asyncio.to_thread(command, "--json", *WAITING, at=",".join(ward.urls))
        diagnosis = await looking
        found: dict[str, Any] = json.loads(text)
        codes = {one.code for one in diagnosis.findings}
        codes |= {one["code"] for one in found.get("findings", ())}
        if codes & LASTING:
            pytest.fail(f"{diagnosis.findings}\n{text}")
        assert diagnosis.findings == []
        assert (diagnosis.hosts, diagnosis.nodes, diagnosis.streams) == (3, 4, 6)
        assert code == 0 and found["healthy"] and found["findings"] == [], text

    await again(all_is_well, AssertionError)


def owner_name(client: Node, agent_id: str) -> str:
    """The node that owns an agent; empty while none does that is known."""
    owner = client.describe(agent_id).owner
    return next((member.name for member in client.members() if member.incarnation == owner), "")


async def test_messages_that_failed_and_a_loop_that_stood_still(ward: Ward, client: Node) -> None:
    await client.send_by_name("Note/one", "fail")
    async with asyncio.timeout(240):
        while not await client.dead_letters.all():
            await asyncio.sleep(0.1)

    async def the_letter_alone_is_found() -> None:
        assert await found_at(ward.urls) == {"dead-letters": ["the cluster: 1 dead letters wait"]}

    async def the_letter_alone_is_shown() -> None:
        code, text = await asyncio.to_thread(command, *WAITING, at=",".join(ward.urls))
        assert code == 0 and "notice dead-letters" in text, text
        assert "nothing needs to be done" in text

    async def the_handler_is_named() -> None:
        """A node that got no processor meanwhile counts no stall, and forgets one after a minute.
        So each look comes after a stall of its own."""
        await client.agent(Note, "one").ask(Note.stall, 1.0)
        owner = owner_name(client, "Note/one")
        found = (await found_at(ward.urls)).get("stalled-loop", [])
        blamed = [one for one in found if "(stall)" in one]
        assert [one.partition(":")[0] for one in blamed] == [owner] and "app.py:" in blamed[0], (
            found
        )

    await again(the_letter_alone_is_found, AssertionError)
    await again(the_letter_alone_is_shown, AssertionError)
    await again(the_handler_is_named, AssertionError)


async def test_faults_of_hosts_nodes_and_streams(
    ward: Ward, client: Node, guest: Callable[..., Awaitable[None]]
) -> None:
    directory = ward.directory
    third = ward.hosts[2]
    await third.kill()
    third.tree = stale_tree(directory)
    await third.start()
    (directory / "other.py").write_text(OTHER)
    (directory / "crash.py").write_text("raise SystemExit('as told')\n")
    await guest("ahead", [], nodes=0, prelude=FAST_CLOCK)
    await guest("h1", [], nodes=0)
    await guest("mute", [], nodes=0, tree=mute_tree(directory))
    await guest("differs", [str(directory / "other.py")])
    await guest("crashes", [str(directory / "crash.py")])
    (directory / "h2" / "nats-server.conf").chmod(0o644)
    (directory / "h1").chmod(0o777)
    connection = client.engine.connection  # type: ignore[attr-defined]
    await one_copy(client)
    changed = {**stream_settings("g1c8", 3), "duplicate_window": 60_000_000_000}
    # The server of the third host just starts.
    await again(lambda: api.call(connection, "STREAM.CREATE.g1c8", changed, 10), HoldfastError)
    await third.heard("node-ready")
    wanted = [
        "clock-skew",
        "same-name",
        "host-silent",
        "mixed-kinds",
        "node-restarts",
        "permissions",
        "too-few-copies",
        "stream-settings",
        "mixed-versions",
        "mixed-servers",
        "old-server",
        "not-synced",
    ]
    if ward.small_disk:
        ward.fill(0.95)
        wanted.append("disk-low")

    async def all_are_named() -> None:
        found = await find(ward.urls, *wanted)
        assert found["clock-skew"] and all(
            one.startswith(("ahead and ", *OTHERS)) for one in found["clock-skew"]
        )
        assert (
            max(float(one.split(" at least ")[1].removesuffix(" s")) for one in found["clock-skew"])
            > 20
        )
        assert len(found["same-name"]) == 1 and found["same-name"][0].startswith("h1: process ")
        assert [one.partition(":")[0] for one in found["host-silent"]] == ["mute"]
        assert "differs-1: it serves Other, and not Note" in found["mixed-kinds"]
        assert found["node-restarts"][0].startswith("crashes-1: ")
        assert {one.partition(" has mode ")[2] for one in found["permissions"]} == {"644", "777"}
        assert found["too-few-copies"] == [
            "the cluster: 1 copy of g1c7, though 3 hosts vote: `holdfast cohort set h1,h2,h3`"
        ]
        assert [one.partition(":")[0] for one in found["stream-settings"]] == ["g1c8"]
        assert "duplicate_window" in found["stream-settings"][0]
        assert "0.0.9 on h3, h3-1" in found["mixed-versions"][0]
        assert "2.14.1 on h3" in found["mixed-servers"][0]
        assert [one.partition(":")[0] for one in found["old-server"]] == ["h3"]
        assert [one.partition(":")[0] for one in found["not-synced"]] == ["h3"]

    await again(all_are_named, AssertionError)


async def test_a_disk_that_is_full(ward: Ward, client: Node) -> None:
    if not ward.small_disk:
        pytest.skip("a small disk is mounted by root only")
    ward.fill(1.0)
    found = await find(ward.urls, "disk-full")
    assert found["disk-full"][0].startswith("h3: ")
    (ward.directory / "h3" / "filler").unlink()


async def test_agents_that_cannot_be_taken_over(ward: Ward, client: Node) -> None:
    """A record is taken away from all copies at once, and then the node ends that knew of it."""
    await client.ready()
    names = [f"lost-{n}" for n in range(40)]
    await asyncio.gather(*(client.agent(Note, name).ask(Note.write, name) for name in names))
    agent = next(
        info for name in names if (info := client.describe(f"Note/{name}")).host in ("h1", "h2")
    )
    subject = f"{agent.cell}.{agent.shard}.st.{agent.agent_id}"
    # and so in no pack
    await client.agent(Note, agent.agent_id.rpartition("/")[2]).ask(Note.write, "alone")
    # A second agent in the same shard remembers how many there were.
    other = next(
        name
        for n in range(10_000)
        if client.describe(f"Note/{(name := f'kept-{n}')}").shard == agent.shard
    )
    await client.agent(Note, other).ask(Note.write, "kept")
    log = client.engine.log
    await again(lambda: log.purge(agent.cell, subject, 1 << 60))
    last = await again(lambda: log.last_sequence(agent.cell))
    killed: set[str] = set()

    async def its_loss_is_found() -> None:
        """End the node that owned the shard when the record was taken away: the shard may have
        moved just before. A node that claims the shard later cannot read the agent, and is left
        alone."""
        now = client.describe(agent.agent_id)
        for host in ward.hosts:
            if host.settings.name == now.host and now.epoch <= last and now.owner not in killed:
                killed.add(now.owner)
                with suppress(ProcessLookupError):
                    os.kill(host.pid_of(f"{now.host}-1"), signal.SIGKILL)
        found = await found_at(ward.urls)
        assert {"recovery-failure", "unowned-shards"} <= found.keys(), found
        shard = f"shard {agent.cell}.{agent.shard}"
        assert any(shard in one for one in found["recovery-failure"]), found

    await again(its_loss_is_found, AssertionError)


async def _keep_frozen(cluster: LocalCluster, host: str) -> None:
    """Freeze a host's server and node; also the ones that it starts in the place of those that it
    ends for it."""
    try:
        while True:
            for pid in (cluster.server_pid(host), *cluster._hosts[host].nodes.values()):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(0.05)
    finally:
        for pid in (cluster.server_pid(host), *cluster._hosts[host].nodes.values()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


async def test_servers_and_nodes_that_do_not_answer(own: LocalCluster) -> None:
    freezing = asyncio.create_task(_keep_frozen(own, "h2"))
    wanted = {("server-trouble", "h2"), ("node-silent", "h2-1")}
    seen: set[tuple[str, str]] = set()
    try:
        # Each is seen for a while, until its host ends what stands still.
        with suppress(TimeoutError):
            async with asyncio.timeout(480):
                while not wanted <= seen:
                    seen |= {(one.code, one.where) for one in (await look(own.urls)).findings}
        assert wanted <= seen
    finally:
        freezing.cancel()
        await asyncio.gather(freezing, return_exceptions=True)
    kills = 0
    async with asyncio.timeout(180):
        while kills < 3:
            # Its host may be about to replace it already, and names the old one until then.
            if before := own.server_pid("h2"):
                with suppress(ProcessLookupError):
                    os.kill(before, signal.SIGKILL)
                    kills += 1
            while own.server_pid("h2") in (0, before):
                await asyncio.sleep(0.05)
    await find(own.urls, "server-restarts", at="h2: ")


async def test_without_a_majority_the_doctor_still_answers(own: LocalCluster) -> None:
    urls = dict(zip(own.hosts, own.urls, strict=True))
    async with Node.join(own.urls) as node:
        alone = await one_copy(node)
    gone = next(host for host in urls if alone.startswith(f"{host}-"))
    # Hosts remember for minutes what tests before did to them.
    known = {"stalled-loop", "not-seen"} | {
        one.code for one in (await look(list(urls.values()))).findings
    }
    await own.kill_host(gone)
    del urls[gone]

    async def one_is_lost() -> None:
        """One host that is lost is one finding, once elections are over; the streams hang on it."""
        diagnosis = await look(list(urls.values()))
        down = [one for one in diagnosis.findings if one.code == "host-down"]
        others = {one.code for one in diagnosis.findings if one.where != "g1c7"}
        assert not others - known - {"host-down", "too-few-copies"}, diagnosis
        assert ("no-leader", "g1c7") in {(one.code, one.where) for one in diagnosis.findings}
        assert [one.where for one in down] == [gone] and "it is gone since" in down[0].seen
        assert {"g1reg", "g1c0", "hfhosts"} <= {
            one.where for one in down[0].then if one.code == "under-replicated"
        }
        assert all("2 of 3 copies are current" in one.seen for one in down[0].then)

    await again(one_is_lost, AssertionError)
    second = next(iter(urls))
    await own.kill_host(second)
    del urls[second]

    async def most_are_lost() -> None:
        diagnosis = await look(list(urls.values()))
        causes = [one for one in diagnosis.findings if one.code == "no-quorum"]
        assert len(causes) == 1, diagnosis
        cause = causes[0]
        assert {"isolated-node", "not-seen", "no-leader"} <= {one.code for one in cause.then}
        assert {one.code for one in diagnosis.findings} - known <= {"no-quorum", "too-few-copies"}
        assert all(f"{name} is gone since" in cause.seen for name in (gone, second)), cause
        assert not any("2 of 3" in one.seen for one in cause.then), (
            "copies were counted that are not there"
        )

    async def most_are_said_to_be_lost() -> None:
        code, text = await asyncio.to_thread(command, *WAITING, at=next(iter(urls.values())))
        assert code == 1 and "critical no-quorum" in text, text
        assert "do: start the hosts" in text

    await again(most_are_lost, AssertionError)
    await again(most_are_said_to_be_lost, AssertionError)


async def one_copy(client: Node) -> str:
    """Make a stream with one copy, on one of the three, if there is none, and return the server
    that has it; servers that just started are waited for."""
    connection = client.engine.connection  # type: ignore[attr-defined]
    async with asyncio.timeout(240):
        while True:
            with suppress(HoldfastError):
                await api.call(connection, "STREAM.CREATE.g1c7", stream_settings("g1c7", 1), 5)
                if leader := (await streams.info(connection, "g1c7")).cluster.leader:
                    return leader
            await asyncio.sleep(0.2)


async def test_no_server_takes_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    connect_within(monkeypatch, 5.0)
    (port,) = free_ports(1)
    looking = asyncio.create_task(look([f"nats://127.0.0.1:{port}"]))
    code, text = await asyncio.to_thread(command, at=f"nats://127.0.0.1:{port}")
    diagnosis = await looking
    assert [one.code for one in diagnosis.findings] == ["unreachable"]
    assert code == 1 and "critical unreachable" in text


async def test_servers_that_no_host_runs(tmp_path: Path) -> None:
    cohort = LocalServers(tmp_path, 1)
    await cohort.start()
    try:
        diagnosis = await look(cohort.urls)
    finally:
        await cohort.stop()
    assert "no-hosts" in [one.code for one in diagnosis.findings]
