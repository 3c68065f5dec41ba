"""How a host is told to join, and what it needs for it where certificates and a password are asked
for."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from tests.authority import certificates
from typer.testing import CliRunner

from holdfast import ConfigError, HoldfastError
from holdfast.cli.main import app
from holdfast.cli.up import _with_port
from holdfast.cluster.facts import cohort
from holdfast.cluster.facts.cohort import Cohort
from holdfast.host.server.nats_config import ServerSettings
from holdfast.host.server.nats_server import free_ports
from holdfast.host.settings import HostSettings
from holdfast.host.supervisor import Host
from holdfast.security import Security


def silent(_event: str, _facts: dict[str, object]) -> None:
    pass


def settings(
    directory: Path,
    name: str,
    ports: tuple[int, int],
    routes: tuple[str, ...],
    security: Security,
    join: str = "",
) -> HostSettings:
    server = ServerSettings(
        name,
        str(directory / name),
        "0.0.0.0",
        ports[0],
        cluster_port=ports[1],
        routes=routes,
        security=security,
    )
    return HostSettings(name, server, [], nodes=0, security=security, join=join)


async def record_of(host: Host, hosts: int) -> Cohort:
    async with asyncio.timeout(240):
        while True:
            try:
                record, _ = await cohort.read(host.engine, cohort.CELL)
            except HoldfastError:
                record = None
            if record is not None and len(record.hosts) == hosts:
                return record
            await asyncio.sleep(0.1)


@pytest.mark.cluster
@pytest.mark.capability("A3")
async def test_a_host_joins_with_certificates_and_a_password(tmp_path: Path) -> None:
    security = certificates(tmp_path)
    ports = free_ports(10)
    routes = tuple(f"127.0.0.1:{port}" for port in ports[5:8])
    founders = [
        Host(settings(tmp_path, f"a.{n}", (ports[n], ports[5 + n]), routes, security), silent)
        for n in range(3)
    ]
    join = f"127.0.0.1:{ports[1]}"
    stranger = msgspec.structs.replace(security, password="wrong")
    hosts = [*founders]
    try:
        await asyncio.gather(*(host.start() for host in founders))
        await record_of(founders[0], 3)
        with pytest.raises(HoldfastError):
            await Host(
                settings(tmp_path, "x", (ports[4], ports[9]), (), stranger, join), silent
            ).start()
        hosts.append(
            Host(settings(tmp_path, "a.3", (ports[3], ports[8]), (), security, join), silent)
        )
        await hosts[3].start()
        for host in hosts:
            record = await record_of(host, 4)
            assert record.members == ["a.0", "a.1", "a.2"]
            assert record.hosts["a.3"].url == f"tls://127.0.0.1:{ports[3]}"
            assert record.hosts["a.3"].route == f"127.0.0.1:{ports[8]}"
        with pytest.raises(ConfigError, match="another --name"):
            await Host(
                settings(tmp_path / "b", "a.0", (ports[4], ports[9]), (), security, join), silent
            ).start()
    finally:
        await asyncio.gather(*(host.stop() for host in hosts))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--join", "nats://10.0.0.1:4222"], "--servers"),
        (["--join", "10.0.0.1,10.0.0.2"], "one host"),
        (["--join", "10.0.0.1:x"], "a number"),
        (["--join", "10.0.0.1", "--cohort", "a:1,b:1,c:1"], "give one of them"),
        (["--servers", "10.0.0.1"], "give --join"),
        (["--join", "10.0.0.1", "--hosts", "3"], "leave"),
        (["--hosts", "2"], "two are no safer"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, arguments: list[str], said: str) -> None:
    found = CliRunner().invoke(app, ["up", "--dir", str(tmp_path), *arguments])
    assert found.exit_code == 2
    assert said in " ".join(found.output.split())


def test_a_port_is_added() -> None:
    assert _with_port("") == ""
    assert _with_port("a") == "a:4222" and _with_port("a:1") == "a:1"
    assert (
        _with_port("::1") == "[::1]:4222"
        and _with_port("[::1]") == "[::1]:4222"
        and _with_port("[::1]:1") == "[::1]:1"
    )
