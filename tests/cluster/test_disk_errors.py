"""A server that the system refuses a write stores nothing more, and tells only who asks: its host
asks, and starts it again."""

from __future__ import annotations

import asyncio
import errno
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from holdfast.engines.base import Record
from holdfast.engines.nats.engine import NatsEngine
from holdfast.errors import HoldfastError
from holdfast.host.server.keeper import (
    RESTART_SECONDS_MAX,
    RESTART_SECONDS_MIN,
    STABLE_SECONDS,
    STORING_SECONDS,
    pause,
)
from holdfast.host.server.nats_config import ServerSettings
from holdfast.host.server.nats_server import free_ports
from holdfast.host.server.server_admin import write_error_in
from holdfast.host.settings import HostSettings
from holdfast.host.supervisor import Host

CELL = "c"
FILE_BYTES = 300_000
RECORD_BYTES = 20_000


class Limited:
    """A host whose server may write no file beyond a size, nor may those that are started after
    it."""

    def __init__(self, directory: Path) -> None:
        self.limited = False
        self.said: list[tuple[str, dict[str, Any]]] = []
        (port,) = free_ports(1)
        server = ServerSettings("alone", str(directory), port=port)
        self.host = Host(HostSettings("alone", server, [], nodes=0), self._say)

    def _say(self, event: str, facts: dict[str, Any]) -> None:
        self.said.append((event, facts))
        if event == "server":
            self.apply()

    def apply(self) -> None:
        assert self.host.server is not None
        most = FILE_BYTES if self.limited else resource.RLIM_INFINITY
        if pid := self.host.server.pid:
            # it just ended: the next one is limited as it starts
            with suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))

    async def heard(self, event: str, count: int) -> dict[str, Any]:
        while len(found := [facts for name, facts in self.said if name == event]) < count:
            await asyncio.sleep(0.05)
        return found[count - 1]


async def write(engine: NatsEngine, acknowledged: list[str]) -> None:
    """Write for ever, whatever comes of it."""
    number = 0
    while True:
        number += 1
        with suppress(HoldfastError):
            await engine.log.append(CELL, [Record(f"{CELL}.{number}", bytes(RECORD_BYTES))])
            acknowledged.append(f"{CELL}.{number}")
        await asyncio.sleep(0.02)


async def stored(engine: NatsEngine, wanted: set[str]) -> set[str]:
    """What of these is in the log."""
    found: set[str] = set()
    async with asyncio.timeout(240):
        async for batch in engine.log.tail(CELL, [f"{CELL}.>"]):
            found |= {one.subject for one in batch.records} & wanted
            if found == wanted:
                break
    return found


@pytest.mark.cluster
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody can limit another process")
async def test_a_server_that_is_refused_a_write_is_named_and_started_again_until_it_stores(
    tmp_path: Path,
) -> None:
    limited = Limited(tmp_path / "alone")
    host = limited.host
    await host.start()
    assert host.server is not None
    engine = NatsEngine([host.server.url])
    await engine.open()
    acknowledged: list[str] = []
    writer: asyncio.Task[None] | None = None
    try:
        await engine.ensure_cells([CELL], 1)
        limited.limited = True
        limited.apply()
        writer = asyncio.create_task(write(engine, acknowledged))
        async with asyncio.timeout(240):
            facts = await limited.heard("server-stores-nothing", 1)
            assert facts["server"] == "alone"
            assert ".blk" in facts["why"] and facts["why"].endswith("file too large")
            await limited.heard("server-stores-nothing", 2)
            limited.limited = False
            limited.apply()
            before = len(acknowledged)
            while len(acknowledged) < before + 20:  # more than the limit lets one file have
                await asyncio.sleep(0.05)
        writer.cancel()
        assert await stored(engine, set(acknowledged)) == set(acknowledged)
        assert host.system is not None and await host.system.write_error() == ""
    finally:
        if writer is not None:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
        await engine.close()
        await host.stop()


@pytest.mark.parametrize(
    "cause",
    [
        "disk quota exceeded",
        "input/output error",
        "read-only file system",
        "file too large",
        "no space left on device",
    ],
)
def test_a_refusal_of_the_system_is_found_wherever_the_server_met_it(cause: str) -> None:
    where = f"write /d/1.blk: {cause}"
    for kind in ("JetStream stream 'HF > c' write error: ", "JetStream meta layer write error: "):
        assert write_error_in(["JetStream stream 'HF > d' is not current", kind + where]) == where
    assert (
        write_error_in([f"JetStream stream 'HF > c' is not current: node write error: {where}"])
        == where
    )


def test_nothing_else_has_a_server_started_again() -> None:
    others = [
        "JetStream stream 'HF > c' is not current: stream catching up",
        "JetStream stream 'HF > c' could not be recovered",
        "JetStream meta layer apply error: bad entry",
        "JetStream stream 'HF > c' write error: message block data missing",
        f"reading: {errno.errorcode[errno.EIO]} input/output error",
    ]
    assert write_error_in([]) == write_error_in(others) == ""


def test_a_server_that_stores_nothing_again_and_again_is_started_ever_more_slowly() -> None:
    lived = (STABLE_SECONDS + STORING_SECONDS) / 2
    pauses = [RESTART_SECONDS_MIN]
    for _ in range(10):
        pauses.append(pause(pauses[-1], lived, stored=False))
    assert pauses == sorted(pauses) and pauses[1] > pauses[0] and pauses[-1] == RESTART_SECONDS_MAX
    assert pause(RESTART_SECONDS_MAX, lived, stored=True) == RESTART_SECONDS_MIN
    assert pause(RESTART_SECONDS_MAX, STORING_SECONDS + 1, stored=False) == RESTART_SECONDS_MIN
