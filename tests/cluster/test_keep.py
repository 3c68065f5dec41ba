"""Hosts of one machine that end by themselves are started again, whatever stands in the way of
another one, or at first."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from holdfast import LocalCluster
from holdfast.host import local_cluster
from holdfast.host.state import STATE_FILE, State, save


class Fake:
    """A host that runs from its start on, the first one but for what the machine refuses. ``ends``:
    its first life is over."""

    def __init__(self, settings: Any, ends: bool, refusals: list[Exception]) -> None:
        self.settings = settings
        self.pid = 0
        self.started = asyncio.Event()
        self._ends = ends
        self._refusals = refusals

    async def start(self, _timeout_seconds: float) -> None:
        if self._refusals:
            raise self._refusals.pop()
        self.started.set()

    async def ended(self) -> None:
        if not self._ends or self.started.is_set():
            await asyncio.Event().wait()

    async def stop(self) -> None:
        pass


@pytest.mark.parametrize("left", ["{", None])
async def test_a_host_is_started_again_whatever_another_one_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str | None
) -> None:
    monkeypatch.setattr(local_cluster, "RESTART_SECONDS_MIN", 0.01)
    monkeypatch.setattr(local_cluster, "longer", lambda _: 0.01)
    told = list[str]()
    cluster = LocalCluster(tmp_path, report=lambda event, _: told.append(event))
    for name in cluster.hosts:
        (tmp_path / name).mkdir()
        save(tmp_path / name, State("1", True, "127.0.0.1"))
    if left is not None:
        (tmp_path / "h2" / STATE_FILE).write_text(left)
    refusals: list[Exception] = [BlockingIOError(11, "no process can be started")]
    hosts = {
        name: Fake(cluster.settings_of(name), name == "h1", refusals) for name in cluster.hosts
    }
    monkeypatch.setattr(cluster, "_hosts", hosts)
    keeping = asyncio.create_task(cluster.keep())
    started = asyncio.create_task(hosts["h1"].started.wait())
    try:
        await asyncio.wait({keeping, started}, timeout=60, return_when=asyncio.FIRST_COMPLETED)
        assert started.done() and not keeping.done(), keeping
        assert told == ["host-failed"] and not refusals
    finally:
        keeping.cancel()
        started.cancel()
        await asyncio.gather(keeping, started, return_exceptions=True)
        await cluster.stop()
