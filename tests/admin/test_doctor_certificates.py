"""Certificates that end soon, and that have ended."""

from __future__ import annotations

import asyncio
import datetime
import time
from pathlib import Path

import pytest
from tests.admin.hosts import HostProcess
from tests.authority import certificates
from tests.patience import again

from holdfast.admin.doctor.doctor import examine
from holdfast.engines.nats.engine import NatsEngine
from holdfast.host.server.nats_config import ServerSettings
from holdfast.host.server.nats_server import free_ports
from holdfast.host.settings import HostSettings

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


@pytest.mark.parametrize(
    ("lasts", "code"), [(86400, "certificate-expires"), (120, "certificate-expired")]
)
async def test_a_certificate(tmp_path: Path, lasts: int, code: str) -> None:
    security = certificates(tmp_path, datetime.timedelta(seconds=lasts))
    ends_at = time.time() + lasts
    for key in ("node.key", "authority.key"):
        (tmp_path / key).chmod(0o600)
    (port,) = free_ports(1)
    server = ServerSettings("alone", str(tmp_path / "alone"), port=port, security=security)
    host = HostProcess(HostSettings("alone", server, [], 0, [], 1, security=security))
    await host.start()
    try:
        await host.heard("server")
        if code == "certificate-expired":
            while time.time() < ends_at + 1:
                await asyncio.sleep(0.2)

        async def told() -> None:
            """A server that has just been started finds its leader first."""
            diagnosis = await examine(NatsEngine([f"tls://127.0.0.1:{port}"], security))
            found = {one.code for one in diagnosis.findings}
            assert code in found and found <= {code, "not-seen"}, diagnosis

        await again(told, AssertionError)
    finally:
        await host.kill()
