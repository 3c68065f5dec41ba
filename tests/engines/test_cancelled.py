"""Whoever is cancelled ends: also when the answer that it waits for arrives in the same moment."""

from __future__ import annotations

import asyncio

import pytest

from holdfast import limits
from holdfast.engines.nats.engine import NatsEngine
from holdfast.host.server.nats_server import LocalServers


async def test_a_subscription_that_is_cancelled_as_its_answer_comes(
    servers: LocalServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "APPEND_TIMEOUT_SECONDS", 240.0)
    engine = NatsEngine(servers.urls)
    await engine.open()
    connection = engine.connection
    loop = asyncio.get_running_loop()
    process_pong = connection._process_pong

    async def pong_and_cancel() -> None:
        await process_pong()
        task.cancel()  # before the task had a turn: the answer is there, and so is the end

    connection._process_pong = pong_and_cancel  # type: ignore[method-assign]
    try:
        task = loop.create_task(connection.listen("some.subject", lambda *_: None))
        await asyncio.wait({task}, timeout=240)
        assert task.cancelled()
    finally:
        connection._process_pong = process_pong  # type: ignore[method-assign]
        await engine.close()
