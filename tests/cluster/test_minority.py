"""A node that no majority of the servers can hear answers nobody from its memory."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest
from tests.cluster.app import Account

from holdfast import Node, NoQuorum, NotDone, Unknown, limits
from holdfast.host.nats_server import LocalServers

pytestmark = pytest.mark.cluster


async def test_without_a_majority_nothing_is_read_from_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    servers = LocalServers(tmp_path)
    await servers.start()
    try:
        async with Node.join(servers.urls, serve=[Account]) as node:
            await node.ready()
            agent = node.agent(Account, "a")
            assert await agent.ask(Account.add, 1) == 1
            for server in servers.servers[1:]:
                server.send_signal(signal.SIGSTOP)
            await asyncio.sleep(limits.ISOLATE_SECONDS + 0.5)
            for _ in range(3):
                with pytest.raises((NotDone, Unknown)):
                    await agent.options(timeout_seconds=0.5).ask(Account.value)
            monkeypatch.setattr(limits, "QUORUM_WAIT_SECONDS", 3.0)
            with pytest.raises(NoQuorum):
                await node.dead_letters.all()
            for server in servers.servers[1:]:
                server.send_signal(signal.SIGCONT)
            assert await agent.options(timeout_seconds=60).ask(Account.value) == 1
            assert await agent.options(timeout_seconds=60).ask(Account.add, 1) == 2
    finally:
        await servers.stop()
