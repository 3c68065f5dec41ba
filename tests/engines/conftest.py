"""The conformance suite also runs on an embedded log that another engine has open, over its
socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.patience import keep_connections, wait_for_answers

from holdfast.engines.base import Engine
from holdfast.engines.local.engine import LocalEngine
from holdfast.engines.local.socket_engine import SocketEngine
from holdfast.engines.nats.engine import NatsEngine
from holdfast.host.server.nats_server import LocalServers


class Visiting(SocketEngine):
    """As a client of the engine that has the log open, which alone makes and removes cells."""

    owning: LocalEngine

    async def open(self) -> None:
        self.owning = LocalEngine(self.path)
        await self.owning.open()
        await self.owning.let_in()
        await super().open()
        self.ensure_cells = self.owning.ensure_cells  # type: ignore[method-assign]
        self.drop_cells = self.owning.drop_cells  # type: ignore[method-assign]

    async def close(self) -> None:
        await super().close()
        await self.owning.close()


@pytest.fixture(params=["local", "socket", "nats"])
def closed_engine(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Engine:
    """An engine of each kind. Not a coroutine: the servers are started by a loop of their own."""
    if request.param == "nats":
        wait_for_answers(monkeypatch)
        servers: LocalServers = request.getfixturevalue("servers")
        return NatsEngine(servers.urls)
    return (LocalEngine if request.param == "local" else Visiting)(tmp_path / "log.db")


@pytest.fixture
async def engine(closed_engine: Engine) -> AsyncIterator[Engine]:
    """An open engine of each kind."""
    await closed_engine.open()
    if isinstance(closed_engine, NatsEngine):
        keep_connections(closed_engine)
    yield closed_engine
    await closed_engine.close()
