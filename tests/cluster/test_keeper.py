"""A host's server between its lives: what is to be done there is done once, in time, and no failure
of it ends the host."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import StorageFailed
from holdfast.host.server import keeper as keepers
from holdfast.host.server.keeper import Keeper
from holdfast.host.server.nats_config import ServerSettings
from holdfast.host.server.nats_server import NatsServer, free_ports

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


class Kept:
    """A server with its keeper, and what was said of it."""

    def __init__(self, directory: Path) -> None:
        self.said: list[str] = []
        (port,) = free_ports(1)
        self.server = NatsServer(ServerSettings("kept", str(directory), port=port))
        self.keeper = Keeper(self.server, self._say)
        self.tasks: list[asyncio.Task[None]] = []

    def _say(self, event: str, _: dict[str, Any]) -> None:
        self.said.append(event)

    async def until(self, met: Callable[[], bool]) -> None:
        async with asyncio.timeout(240):
            while not met():
                await asyncio.sleep(0.01)

    def begun_anew(self, starts: int) -> bool:
        return self.said.count("server") == starts and self.server.pid != 0


@asynccontextmanager
async def kept(directory: Path) -> AsyncIterator[Kept]:
    made = Kept(directory)
    await made.keeper.start()
    made.tasks = made.keeper.tasks()
    try:
        yield made
    finally:
        made.keeper.stopping = True
        for task in made.tasks:
            task.cancel()
        await asyncio.gather(*made.tasks, return_exceptions=True)
        await made.server.stop()
        made.server.lock.release()


async def test_a_restart_is_done_with_its_work_wherever_the_server_is(tmp_path: Path) -> None:
    async with kept(tmp_path) as one:
        down: list[bool] = []

        def work() -> None:
            down.append(one.server.pid == 0)

        await one.keeper.restart(work)
        assert down == [True] and one.begun_anew(2)
        await one.server.kill()  # its keeper waits a moment before it starts it again
        await one.until(lambda: "server-ended" in one.said)
        await one.keeper.restart(work)
        assert down == [True] * 2, "it did not return without its work"
        starts = one.server.starts
        await one.server.kill()
        # it starts, and takes no connections yet
        await one.until(lambda: one.server.starts > starts)
        await one.keeper.restart(work)
        assert down == [True] * 3 and one.server.pid != 0
        await asyncio.gather(one.keeper.restart(work), one.keeper.restart(work))
        assert down == [True] * 5, "of two callers at once each gets its own"
        starts = one.said.count("server")
        await one.server.kill()
        await one.until(lambda: one.begun_anew(starts + 1))
        assert down == [True] * 5, "nothing is left for a later end"


async def test_a_restart_that_nobody_waits_for_does_nothing_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keepers, "longer", lambda _: 1.0)
    async with kept(tmp_path) as one:
        done: list[str] = []
        await one.server.kill()
        await one.until(lambda: "server-ended" in one.said)
        restart = asyncio.create_task(one.keeper.restart(lambda: done.append("late")))
        await asyncio.sleep(0)
        restart.cancel()
        await asyncio.gather(restart, return_exceptions=True)
        await one.until(lambda: one.begun_anew(2))
        await one.keeper.restart(lambda: done.append("asked"))
        assert done == ["asked"]


async def test_work_that_fails_is_said_and_the_server_goes_on(tmp_path: Path) -> None:
    async with kept(tmp_path) as one:

        def busy() -> None:
            raise OSError(16, "Device or resource busy", "jetstream")

        with pytest.raises(StorageFailed, match="busy"):
            await one.keeper.restart(busy)
        assert one.begun_anew(2) and one.said.count("store-unchanged") == 1
        assert not any(task.done() for task in one.tasks)
        await one.keeper.restart(lambda: None)
