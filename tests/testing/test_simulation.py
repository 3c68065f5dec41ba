"""Whole clusters, a few seeds of every scenario: no checker finds anything. A night takes a
thousand others, and the long form ten thousand."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import holdfast
from holdfast.cli.main import app
from holdfast.engines.base import Record
from holdfast.errors import ConfigError
from holdfast.serving.commits.committer import Committer
from holdfast.testing import checkers
from holdfast.testing.simulation import runs
from holdfast.testing.simulation.campaign import run_all

JOBS = min(os.cpu_count() or 1, 8)
SEEDS = 5
"""Of each scenario, in every run of the tests."""

NIGHTLY_SEEDS = 1_000
"""Of all scenarios together, in one night: other ones each day."""

SOAK_SEEDS = 10_000


def judge(name: str, seeds: range) -> None:
    bad = [one.report() for one in run_all(runs.load(name), seeds, JOBS) if one.violations]
    assert not bad, "\n\n".join(bad[:3])


def share(seeds: int) -> int:
    """How many seeds one scenario gets, if all together get so many."""
    return seeds // len(runs.names()) + 1


@pytest.mark.capability("D9")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", runs.names())
def test_nothing_is_broken(name: str) -> None:
    judge(name, range(1000, 1000 + SEEDS))


@pytest.mark.night
@pytest.mark.timeout(3 * 3600)
@pytest.mark.parametrize("name", runs.names())
def test_nothing_is_broken_in_the_seeds_of_this_day(name: str) -> None:
    start = datetime.date.today().toordinal() * 1000
    judge(name, range(start, start + share(NIGHTLY_SEEDS)))


@pytest.mark.soak
@pytest.mark.timeout(12 * 3600)
@pytest.mark.parametrize("name", runs.names())
def test_nothing_is_broken_in_ten_thousand_seeds(name: str) -> None:
    judge(name, range(10_000, 10_000 + share(SOAK_SEEDS)))


DIGESTS = """
import sys
import holdfast
from holdfast.testing.simulation import runs
print(holdfast.__file__)
for name in sys.argv[1:]:
    print(name, runs.run(runs.load(name), 7).digest)
"""

VARIED = ["storm", "attempts", "poison", "rogues", "newborn", "timers"]
"""Scenarios that have, together, all that a run keeps: errors with their tracebacks as well."""


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "names", [VARIED, pytest.param(runs.names(), marks=pytest.mark.night)], ids=["varied", "all"]
)
def test_a_seed_is_the_same_run_in_every_process_and_place(
    names: list[str], tmp_path: Path
) -> None:
    here = Path(holdfast.__file__).parent
    there = tmp_path / "a directory with another name, longer than most" / "holdfast"
    shutil.copytree(here, there)
    made = []
    for hashes, place in (("1", here), ("2", there)):
        done = subprocess.run(
            [sys.executable, "-c", DIGESTS, *names],
            env={**os.environ, "PYTHONHASHSEED": hashes, "PYTHONPATH": str(place.parent)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr + done.stdout[-2000:]
        imported, *digests = done.stdout.splitlines()
        assert Path(imported).parent == place
        made.append(digests)
    assert [len(line.split()[1]) for line in made[0]] == [32] * len(names)
    assert made[0] == made[1]


def test_another_seed_is_another_run() -> None:
    scenario = runs.load("unchanged")
    assert runs.run(scenario, 1).digest != runs.run(scenario, 2).digest


def test_a_violation_is_told_with_its_story_and_ends_with_1(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build = Committer._build

    async def unfenced(self: Committer) -> Any:
        batch = await build(self)
        batch.records = [Record(one.subject, one.payload) for one in batch.records]
        return batch

    monkeypatch.setattr(Committer, "_build", unfenced)
    told = CliRunner().invoke(app, ["simulate", "late", "--seeds", "12"])
    assert told.exit_code == 1
    assert "holdfast simulate late --seed" in told.stdout
    assert "one_line: " in told.stdout and "all is well again" in told.stdout


def test_a_run_without_violations_ends_with_0(caplog: pytest.LogCaptureFixture) -> None:
    told = CliRunner().invoke(app, ["simulate", "attempts", "--seed", "20015", "--json"])
    assert told.exit_code == 0
    assert not caplog.records, "what is cut off at the end of a simulation is no news"
    assert json.loads(told.stdout)["failed"] == []


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("hosts = 'three'", "hosts"),
        ("[work]\njuggles = 1", "no 'juggles'"),
        ("[faults]\ngremlins = [1.0]", "no 'gremlins'"),
        ("[harm]\nhammer = 1", "no 'hammer'"),
        ("secnods = 3", "secnods"),
    ],
)
def test_a_scenario_with_a_mistake_is_refused(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=what):
        runs.load(str(path))


def test_a_scenario_that_is_none_names_those_there_are() -> None:
    told = CliRunner().invoke(app, ["simulate", "calm"])
    assert told.exit_code == 2
    with pytest.raises(ConfigError, match="storm"):
        runs.load("calm")


def test_every_invariant_has_a_checker() -> None:
    assert len(checkers.ALL) >= 12 and all(checker.__doc__ for checker in checkers.ALL)
