"""`holdfast bench`: every workload gives figures that can be, and a cluster that goes on is left as
it was."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.cluster.app import Account
from tests.patience import logged

from holdfast import LocalCluster, Node
from holdfast.bench import processes, session
from holdfast.bench.measure import Load
from holdfast.bench.workloads import NAMES
from holdfast.errors import NoQuorum

APP = str(Path(__file__).parents[1] / "cluster" / "app.py")
HOLDFAST = str(Path(sys.executable).parent / "holdfast")
SMALL = ["--seconds", "0.3", "--agents", "200", "--in-flight", "32"]


def bench(*arguments: str, code: int = 0) -> Any:
    done = subprocess.run(
        [HOLDFAST, "bench", *SMALL, "--json", *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def look(found: Any) -> None:
    for one in found["figures"]:
        assert one["operations"] > 0 and one["per_second"] > 0 and one["failed"] == {}, one
        assert one["p50"] <= one["p99"] <= one["longest"], one
        assert one["resident_mb"]["client"] > 10, one
    # each counts in hundredths of a second
    assert sum(one["cores"]["client"] for one in found["figures"]) > 0


def test_what_is_done_in_a_pause_counts_neither_as_time_nor_as_processor_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    busy = 7.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    monkeypatch.setattr(
        processes, "_processes", lambda: [(SimpleNamespace(pid=1), "client", busy, 10**7)]
    )
    load = Load()
    now, busy = 102.0, 8.0
    load.note(100.0, 102.0)
    with load.paused():
        now, busy = 150.0, 40.0
    now, busy = 152.0, 41.0
    figure = load.figure("some")
    assert (figure.seconds, figure.per_second, figure.cores) == (4.0, 0.25, {"client": 0.5})


async def test_what_the_figures_wait_for_is_said_where_it_does_not_come(
    caplog: pytest.LogCaptureFixture,
) -> None:
    looks: list[bool] = []

    async def look() -> bool:
        looks.append(True)
        if len(looks) == 1:
            raise NoQuorum("no leader")
        return len(looks) == 3

    await session._until(look, 10.0, "nothing is so")
    assert len(looks) == 3 and not logged(caplog)
    await session._until(look, 0.01, "nothing is so")
    assert "nothing is so" in caplog.text


@pytest.mark.capability("E7")
@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_a_fresh_cluster_is_measured_with_all_workloads() -> None:
    found = bench()
    look(found)
    figures = {one["name"]: one for one in found["figures"]}
    assert len(figures) == 18
    for name in (
        "register",
        "ask, one at a time",
        "ask, 32 in flight",
        "ask a reader",
        "send, accepted",
    ):
        assert figures[name]["engine"] > 0 and figures[name]["engine_of"], name
    assert figures["ask, 32 in flight"]["cores"].keys() == {"client", "nodes", "servers", "hosts"}
    (killed_at,) = found["failover"]["killed_at"]
    times = [at for at, _ in found["failover"]["moments"]]
    assert min(times) < killed_at < max(times)


@pytest.mark.timeout(900)
def test_the_embedded_engine_is_measured() -> None:
    found = bench("--at", "local")
    look(found)
    assert found["failover"]["killed_at"] == [] and len(found["figures"]) == 17
    done = subprocess.run(
        [HOLDFAST, "bench", "asks", "--at", "local", *SMALL],
        capture_output=True,
        text=True,
        timeout=400,
        check=True,
    )
    assert (
        "WORKLOAD" in done.stdout
        and "ask, 32 in flight" in done.stdout
        and "CORES OF" in done.stdout
    )


@pytest.mark.timeout(900)
def test_a_workload_that_there_is_not_is_refused() -> None:
    assert "there are register, asks" in bench("juggling", code=2)["text"]
    assert "no failover" in bench("failover", "--at", "local", code=2)["text"]
    assert (
        "--nodes is for a cluster" in bench("asks", "--at", "local", "--nodes", "2", code=2)["text"]
    )
    assert set(NAMES) >= {"register", "failover"}


@pytest.mark.cluster
@pytest.mark.timeout(900)
async def test_a_cluster_that_goes_on_is_left_as_it_was(tmp_path: Path) -> None:
    async with LocalCluster(tmp_path, [APP]) as cluster, Node.join(cluster.urls) as node:
        await node.ready()
        assert await node.agent(Account, "mine").ask(Account.add, 1) == 1
        before = await node.engine.cells()  # type: ignore[attr-defined]
        look(
            await asyncio.to_thread(
                bench, "register", "asks", "timers", "failover", "--at", ",".join(cluster.urls)
            )
        )
        assert await node.engine.cells() == before  # type: ignore[attr-defined]
        await node.ready()
        assert await node.agent(Account, "mine").ask(Account.add, 1) == 2
        assert node.count() == 0
        left: list[str] = []
        for cell in node.manifest.cells:
            shown = await node.engine.log.subjects(cell, [f"{cell}.*.st.>"])
            assert shown is not None
            left += shown.subjects
        assert [subject.rpartition(".")[2] for subject in left] == ["Account/mine"]
