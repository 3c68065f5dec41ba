"""Hosts that listen with certificates and a password: who has them gets in, nobody else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from tests.authority import certificates

from holdfast import ConfigError, HoldfastError
from holdfast.engines.base import Record
from holdfast.engines.nats.engine import NatsEngine
from holdfast.host.addresses import is_loopback
from holdfast.host.server.nats_config import ServerSettings, check
from holdfast.host.server.nats_server import NatsServer, free_ports
from holdfast.security import Security

pytestmark = pytest.mark.cluster


@pytest.fixture
async def secured(tmp_path: Path) -> AsyncIterator[tuple[list[NatsServer], Security]]:
    security = certificates(tmp_path)
    ports = free_ports(6)
    routes = tuple(f"127.0.0.1:{port}" for port in ports[3:])
    servers = [
        NatsServer(
            ServerSettings(
                f"s{n}",
                str(tmp_path / f"s{n}"),
                "0.0.0.0",
                ports[n],
                cluster_port=ports[3 + n],
                routes=routes,
                security=security,
            )
        )
        for n in range(3)
    ]
    for server in servers:
        await server.start()
    yield servers, security
    for server in servers:
        await server.kill()


def engine(servers: list[NatsServer], security: Security, **other: str) -> NatsEngine:
    shown = msgspec.structs.replace(security, **other)
    return NatsEngine([server.url for server in servers], shown)


async def test_a_cluster_beyond_loopback(secured: tuple[list[NatsServer], Security]) -> None:
    servers, security = secured
    assert all(server.url.startswith("tls://") for server in servers)
    one = engine(servers, security)
    await one.open()
    await one.ensure_cells(["c"], 3)
    assert list(await one.log.append("c", [Record("c.a", b"x")])) == [1]
    await one.close()
    for other in (
        {"password": "wrong"},
        {"user": "", "password": ""},
        {"tls_cert": "", "tls_key": ""},
        {"tls_ca": ""},
    ):
        with pytest.raises(HoldfastError):
            await engine(servers, security, **other).open()
    with pytest.raises(ConfigError, match="no file"):
        await engine(servers, security, tls_ca="/nowhere.pem").open()


@pytest.mark.parametrize("missing", ["tls_ca", "tls_cert", "tls_key", "user", "password"])
def test_beyond_loopback_everything_is_needed(tmp_path: Path, missing: str) -> None:
    whole = certificates(tmp_path)
    parts = {
        name: "" if name == missing else getattr(whole, name) for name in whole.__struct_fields__
    }
    for address in ("0.0.0.0", "192.168.1.5", "::", "example.org"):
        with pytest.raises(ConfigError):
            check(ServerSettings("s", str(tmp_path), address, security=Security(**parts)))
    check(ServerSettings("s", str(tmp_path), "0.0.0.0", security=whole))


def test_loopback() -> None:
    assert all(map(is_loopback, ["127.0.0.1", "::1", "localhost", "127.5.5.5"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "10.0.0.1", "example.org", ""]))


def test_an_even_cohort_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="even"):
        check(ServerSettings("s", str(tmp_path), routes=("a:1", "b:1")))
