"""What a host answers for itself, over the bus: facts, and what its server keeps."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
import pytest_asyncio
from tests.cluster.app import Account

from holdfast import BadMessage, ConfigError, LocalCluster, Node, NoResponders
from holdfast.children import PROCESSORS
from holdfast.errors import NotDone, Unknown
from holdfast.host.rpc.facts import HostFacts, Replicas
from holdfast.host.rpc.service import ask_host, ask_hosts
from holdfast.host.settings import HostSettings
from holdfast.host.supervisor import Host

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(900),
]
APP = str(Path(__file__).parent / "app.py")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalCluster]:
    async with LocalCluster(tmp_path_factory.mktemp("hosts"), [APP]) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(cluster: LocalCluster) -> AsyncIterator[Node]:
    async with Node.join(cluster.urls) as made:
        await made.ready()
        yield made


async def test_all_hosts_say_what_they_are(cluster: LocalCluster, node: Node) -> None:
    async with asyncio.timeout(240):
        while True:
            found = await ask_hosts(
                node.engine.bus, "facts", HostFacts, expected=cluster.hosts, wait_seconds=60
            )
            known = [facts for facts in found.values() if isinstance(facts, HostFacts)]
            if len(known) == 3 and all(
                facts.server is not None and not facts.server_trouble for facts in known
            ):
                break  # a server that was busy for a moment did not answer its host
    assert set(found) == {"h1", "h2", "h3"}
    for name, facts in found.items():
        assert isinstance(facts, HostFacts)
        assert facts.host == name and facts.directory.endswith(name) and facts.config_mode == 0o600
        assert 0 < facts.disk_free_bytes < facts.disk_bytes
        assert (
            facts.server is not None
            and facts.server.votes
            and facts.server.version.startswith("2.")
        )
        assert (
            facts.server.pid == facts.server_pid == cluster.server_pid(name)
            and facts.server_trouble == ""
        )
        assert [(one.name, one.pid, one.ready) for one in facts.nodes] == [
            (f"{name}-1", cluster.node_pid(f"{name}-1"), True)
        ]
        assert len(facts.cohort) == 3


async def test_servers_of_one_machine_share_its_processors(
    cluster: LocalCluster, node: Node
) -> None:
    share = f"GOMAXPROCS={os.environ.get('GOMAXPROCS', max(2, PROCESSORS // 3))}".encode()
    for name in cluster.hosts:
        assert share in Path(f"/proc/{cluster.server_pid(name)}/environ").read_bytes().split(b"\0")


async def test_each_host_says_what_its_own_server_keeps(cluster: LocalCluster, node: Node) -> None:
    for n in range(20):
        await node.agent(Account, f"a{n}").ask(Account.add, 1)

    def why_not(found: list[Replicas]) -> str:
        if len({one.server for one in found}) != 3:
            return "they do not name their servers"
        for cell in (*node.manifest.cells, "g1reg", "g1blobs"):
            kept = [
                next((one for one in own.replicas if one.stream == cell), None) for own in found
            ]
            leading = [
                own.server
                for own, one in zip(found, kept, strict=True)
                if one is not None and one.leads
            ]
            if any(one is None or [one.leader] != leading or len(one.peers) != 2 for one in kept):
                return f"{cell}: {kept}"
        return ""

    why = ""
    try:
        async with asyncio.timeout(240):  # a leader that moves is seen by all in a moment
            while True:
                with suppress(NotDone, Unknown):
                    asks = [
                        ask_host(node.engine.bus, name, "replicas", Replicas)
                        for name in cluster.hosts
                    ]
                    if not (why := why_not(await asyncio.gather(*asks))):
                        break
                await asyncio.sleep(0.2)
    except TimeoutError:
        raise AssertionError(why) from None


async def test_what_cannot_be_answered_is_a_typed_error(cluster: LocalCluster, node: Node) -> None:
    bus = node.engine.bus
    with pytest.raises(NoResponders, match="h9"):
        await ask_host(bus, "h9", "facts", HostFacts)
    with pytest.raises(BadMessage, match=r"facts, heard, .*replicas"):
        await ask_host(bus, "h1", "nonsense", HostFacts)
    with pytest.raises(BadMessage, match="facts of host h1"):
        await ask_host(bus, "h1", "facts", HostFacts, {"unknown": 1})


async def test_a_host_without_a_server_has_facts_and_no_replicas(
    cluster: LocalCluster, node: Node
) -> None:
    host = Host(
        HostSettings("guest.example", None, cluster.urls, nodes=0), lambda _event, _facts: None
    )
    await host.start()
    try:
        facts = await ask_host(node.engine.bus, "guest.example", "facts", HostFacts)
        assert facts.host == "guest.example" and facts.server is None and facts.directory == ""
        with pytest.raises(ConfigError, match="no server of its own"):
            await ask_host(node.engine.bus, "guest.example", "replicas", Replicas)
    finally:
        await host.stop()
