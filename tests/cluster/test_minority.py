"""A node that no majority of the servers can hear answers nobody from its memory."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.cluster.app import Account

from holdfast import Node, NoQuorum, limits
from holdfast.host.server.nats_server import LocalServers

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


async def test_without_a_majority_nothing_is_read_from_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = LocalServers(tmp_path)
    await servers.start()
    try:
        async with Node.join(servers.urls, serve=[Account], found=True, replicas=3) as node:
            await node.ready()
            agent = node.agent(Account, "a")
            assert await agent.ask(Account.add, 1) == 1
            for server in servers.servers[1:]:
                server.send_signal(signal.SIGSTOP)
            async with asyncio.timeout(240):
                while not node.life.isolated():
                    await asyncio.sleep(0.02)
            patient = agent.options(timeout_seconds=600)
            # refused at once, and not when the time of each is over
            async with asyncio.timeout(240):
                for ask in (
                    patient.ask(Account.value),
                    patient.ask(Account.add, 1),
                    patient.ask(Account.value),
                ):
                    with pytest.raises(NoQuorum):
                        await ask
            assert node.statistics()["shards"] == 0
            monkeypatch.setattr(limits, "QUORUM_WAIT_SECONDS", 3.0)
            with pytest.raises(NoQuorum):
                await node.dead_letters.all()
            for server in servers.servers[1:]:
                server.send_signal(signal.SIGCONT)
            assert await _retried(lambda: agent.ask(Account.value)) == 1
            assert await _retried(lambda: agent.ask(Account.add, 1)) == 2
    finally:
        await servers.stop()


async def _retried(ask: Callable[[], Awaitable[int]]) -> int:
    async with asyncio.timeout(240):
        while True:
            try:
                return await ask()
            except NoQuorum:
                await asyncio.sleep(0.2)
