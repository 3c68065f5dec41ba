"""What the status makes of what was seen."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest
from tests.admin.hosts import cohort
from tests.patience import WAITING, again

from holdfast.admin.presence import HostPresence, MissingNode, Presence
from holdfast.admin.status import DEGRADED, DOWN, WELL, Status, judged
from holdfast.cluster.facts.cohort import Cohort
from holdfast.cluster.members.beats import Beat
from holdfast.host.node_child import AWAY_SECONDS, NodeChild
from holdfast.host.server.keeper import STABLE_SECONDS

HOSTS = ["h1", "h2", "h3"]


def seen(record: Cohort | None) -> Presence:
    hosts = [HostPresence(name, True, record is not None) for name in HOSTS]
    beat = Beat("n-1", "h1", "h1-1", 1.0, ["Note"], 128, 0, "0.1.0")
    return Presence(hosts=hosts, nodes=[beat], record=record, answered=HOSTS, founders=3)


def test_nothing_is_called_well_before_it_is_known_who_votes() -> None:
    """Hosts that answer may not have read it yet, and without it too few copies would not be
    noticed."""
    found = judged(Status(shards=128, copies=3), seen(None))
    assert (found.state, found.voters) == (
        DEGRADED,
        0,
    ) and "which hosts vote is not known yet" in found.problems[0]
    found = judged(Status(shards=128, copies=3), seen(Cohort(HOSTS, {})))
    assert (found.state, found.voters, found.problems) == (WELL, 3, [])


def test_a_node_that_its_host_misses_is_named() -> None:
    looked = seen(Cohort(HOSTS, {}))
    looked.missing = [
        MissingNode("h2-1", "h2", 1.0, 3, "code 2: no such app"),
        MissingNode("h3-1", "h3", 1.0, 0, ""),
    ]
    found = judged(Status(shards=128, copies=3), looked)
    assert (found.state, found.missing) == (DEGRADED, looked.missing)
    ended, waits = found.problems
    assert ended.startswith("node h2-1 of host h2 is missing since 1970-01-01 ")
    assert ended.endswith("it ended 3 times, the last time with code 2: no such app")
    assert waits.startswith("node h3-1 of host h3 ") and waits.endswith("it has not come up yet")
    for host in looked.hosts[1:]:
        host.up = False
    found = judged(Status(), looked)
    assert (found.state, found.missing) == (DOWN, []), "no node can start without a majority"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_node_that_starts_or_ended_once_is_not_away() -> None:
    clock = Clock()
    node = NodeChild("h1-1", clock)
    clock.now += 10 * AWAY_SECONDS
    assert node.away() is None, "its host has not begun to start it"
    node.begins("n-1")
    clock.now += AWAY_SECONDS - 1
    assert node.away() is None
    clock.now += 1
    away = node.away()
    assert away is not None and (away.name, away.seconds, away.ends, away.why) == (
        "h1-1",
        AWAY_SECONDS,
        0,
        "",
    )
    node.serves()
    assert node.away() is None, "it was slow to start"
    clock.now += STABLE_SECONDS + 1
    # a restart in order, or a crash, each long after the one before
    for incarnation in ("n-2", "n-3"):
        node.ended(0)
        assert node.away() is None
        node.begins(incarnation)
        node.serves()
        clock.now += AWAY_SECONDS
        assert node.away() is None


def test_a_node_that_ends_again_and_again_is_away_also_while_it_is_ready() -> None:
    clock = Clock()
    node = NodeChild("h1-1", clock)
    node.begins("n-0")
    node.serves()
    clock.now += AWAY_SECONDS
    begun = clock.now
    for number in range(12):
        node.error = f"error {number}"
        node.ended(2)
        node.begins(f"n-{number}")
        node.serves()
        clock.now += STABLE_SECONDS / 2
        away = node.away()
        if clock.now - begun < AWAY_SECONDS:
            assert away is None
        else:
            assert away is not None and (away.seconds, away.ends) == (clock.now - begun, number + 1)
            assert away.why == f"code 2: error {number}"
    clock.now += STABLE_SECONDS
    assert node.away() is None, "it serves now"


@pytest.mark.cluster
@pytest.mark.timeout(900)
async def test_a_host_whose_node_never_comes_up_is_not_well(tmp_path: Path) -> None:
    """The two others take its shards over, so that nothing but the node itself is missing."""
    app = tmp_path / "broken.py"
    app.write_text("raise RuntimeError('nothing to import' + 100_000 * '!')\n")
    hosts = cohort(tmp_path, [str(Path(__file__).parent / "app.py")])
    hosts[2].settings.apps = [str(app)]
    at = ",".join(hosts[0].settings.urls)

    async def status(*options: str, what: str = "status") -> tuple[int | None, str]:
        command = [sys.executable, "-m", "holdfast", what, "--at", at, *WAITING, *options]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        out, _ = await process.communicate()
        return process.returncode, out.decode()

    async def the_node_is_missed() -> None:
        code, text = await status("--json")
        found = json.loads(text)
        assert found.get("missing") and found["served"] == found["shards"] == 128, text
        assert (code, found["state"]) == (1, "degraded")
        assert len(found["missing"]) == 1, text
        missing = found["missing"][0]
        assert (missing["name"], missing["host"]) == ("h3-1", "h3") and missing["ends"] > 1
        assert "nothing to import" in missing["why"]
        assert [
            one
            for one in found["problems"]
            if one.startswith("node h3-1 of host h3 is missing since ")
        ]
        assert all(host["up"] for host in found["hosts"])

    async def people_are_told() -> None:
        code, text = await status()
        assert (
            code == 1
            and "node h3-1 of host h3 is missing since " in text
            and "nothing to import" in text
        ), text

    async def its_host_has_none() -> None:
        _, text = await status(what="hosts")
        assert "0 of 1" in next((line for line in text.splitlines() if "h3" in line), ""), text

    try:
        for host in hosts:
            await host.start()
        await hosts[0].heard("node-ready")
        await hosts[1].heard("node-ready")
        for check in (the_node_is_missed, people_are_told, its_host_has_none):
            await again(check, AssertionError)
    finally:
        for host in hosts:
            await host.kill()
