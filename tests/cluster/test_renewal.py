"""Certificates that are renewed while a cluster works: no call fails, and whoever was connected
before comes back."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.authority import Authority
from tests.cluster.app import Account

from holdfast import ConfigError, LocalCluster, Node
from holdfast.engines.nats.engine import NatsEngine
from holdfast.host.local_cluster import Place
from holdfast.host.server.nats_server import free_ports
from holdfast.security import Security

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
APP = str(Path(__file__).parent / "app.py")


def places(security: Security) -> list[Place]:
    ports = free_ports(6)
    routes = tuple(f"127.0.0.1:{port}" for port in ports[3:])
    urls = [f"tls://127.0.0.1:{port}" for port in ports[:3]]
    return [
        Place(ports[n], ports[3 + n], routes, tuple(urls[n + 1 :] + urls[:n]), security=security)
        for n in range(3)
    ]


class Scene:
    """A cluster with certificates, a client, and work that goes on."""

    def __init__(
        self, cluster: LocalCluster, node: Node, authority: Authority, events: list[str]
    ) -> None:
        self.cluster = cluster
        self.node = node
        self.directory = authority.directory
        self.events = events
        self.done = 0
        self.stopping = False

    async def work(self, name: str) -> int:
        count = 0
        while not self.stopping:
            count += 1
            assert (
                await self.node.agent(Account, name).options(timeout_seconds=90).ask(Account.add)
                == count
            )
            self.done += 1
            await asyncio.sleep(0.01)
        return count

    async def some_calls(self) -> None:
        wanted = self.done + 40
        while self.done < wanted:
            await asyncio.sleep(0.02)

    def write(self, name: str, data: bytes) -> None:
        scratch = self.directory / f"{name}.new"
        scratch.write_bytes(data)
        scratch.replace(self.directory / name)

    async def reload(self, event: str) -> None:
        """Have every host read its certificates again, and wait until each has said what came of
        it."""
        before = self.events.count(event)
        for host in self.cluster.hosts:
            os.kill(self.cluster.pids(host)[0], signal.SIGHUP)  # as `systemctl reload` does
        while self.events.count(event) < before + 3:
            await asyncio.sleep(0.02)
        await self.some_calls()


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    authority = Authority(tmp_path / "certificates", "old")
    security = authority.security()
    events: list[str] = []
    async with (
        LocalCluster(
            tmp_path / "cluster",
            [APP],
            places=places(security),
            report=lambda event, _: events.append(event),
        ) as cluster,
        Node.join(cluster.urls[0], security=security) as node,
    ):
        await node.ready()
        yield Scene(cluster, node, authority, events)


async def test_certificates_are_renewed_under_load_and_no_call_fails(
    scene: Scene, tmp_path: Path
) -> None:
    old = (scene.directory / "authority.pem").read_bytes()
    new = Authority(tmp_path / "new", "new")
    certificate, key = new.issue()
    working = [asyncio.create_task(scene.work(f"a{n}")) for n in range(6)]
    async with asyncio.timeout(840):
        await scene.some_calls()
        scene.write("authority.pem", old + new.pem)
        await scene.reload("reloaded")
        scene.write("node.pem", certificate)  # and not its key yet: the two do not fit
        await scene.reload("reload-failed")
        scene.write("node.key", key)
        await scene.reload("reloaded")
        scene.write("authority.pem", new.pem)
        await scene.reload("reloaded")
        # everybody has to connect again, with what the files hold now
        for host in scene.cluster.hosts:
            pid = scene.cluster.server_pid(host)
            os.kill(pid, signal.SIGKILL)
            while scene.cluster.server_pid(host) in (0, pid):
                await asyncio.sleep(0.05)
            await scene.some_calls()
        await scene.some_calls()
    scene.stopping = True
    assert all(count > 10 for count in await asyncio.gather(*working))
    assert "node-ended" not in scene.events
    (tmp_path / "old.pem").write_bytes(old)
    with pytest.raises(ConfigError, match="not trusted"):
        await NatsEngine(scene.cluster.urls, Security(tls_ca=str(tmp_path / "old.pem"))).open()
