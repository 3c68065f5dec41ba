"""Real clusters at work while they are broken; then every promise is counted. The CLI's `holdfast
chaos` is the same.

Found so far: a second claim skipped inbox messages; a recovery misread a replica that lagged; a
full disk cost a copy for good; a client took a lost host's nodes for living ones.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast import BadMessage, ConfigError, DeadlineExceeded, NoQuorum, Unknown
from holdfast.testing.chaos import measures
from holdfast.testing.chaos.measures import Harmed
from holdfast.testing.chaos.run import Chaos, Outcome, Settings
from holdfast.testing.history import Operation

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


async def run(path: Path, **settings: object) -> tuple[Chaos, Outcome]:
    chaos = Chaos(Settings(directory=str(path), **settings), print)  # type: ignore[arg-type]
    outcome = await chaos.run()
    print(
        f"\n{outcome.network}, seed {outcome.seed}, {outcome.seconds:.0f} s: "
        f"{outcome.operations}\n{outcome.stalls}"
    )
    for harm in outcome.harms:
        print(harm)
    assert outcome.violations == []
    return chaos, outcome


def refusals_in_a_partition(chaos: Chaos, outcome: Outcome) -> None:
    """On the side that was cut off for long callers were refused, and told so by the right
    errors."""
    for harm in outcome.harms:
        if harm.kind == "partition" and harm.seconds > 4.5:
            assert harm.refused_after is not None, harm
    for operation in chaos.history.operations:
        if operation.fate in ("not done", "unknown"):
            assert isinstance(operation.result, (NoQuorum, DeadlineExceeded, Unknown)), operation


@pytest.mark.capability("B11")
@pytest.mark.capability("F8")
async def test_a_partition_and_then_the_loss_of_another_host(tmp_path: Path) -> None:
    # Of this seed: h3 is cut off for 12 s; 1 s after it is back h2 is killed with all that it runs.
    chaos, outcome = await run(
        tmp_path,
        seed=0,
        harms=("partition", "kill-host"),
        harm_count=2,
        harm_seconds=(12, 13),
        harm_pause=(0.5, 1.5),
        rest_seconds=5,
    )
    assert [(harm.kind, harm.host) for harm in outcome.harms] == [
        ("partition", "h3"),
        ("kill-host", "h2"),
    ]
    refusals_in_a_partition(chaos, outcome)


def holdfast_chaos(*options: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "holdfast"), "chaos", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=840, check=False)


@pytest.mark.capability("D9")
@pytest.mark.capability("F3")
def test_the_command_with_all_kinds_of_harm(tmp_path: Path) -> None:
    done = holdfast_chaos(
        "--seconds", "40", "--seed", "3", "--json", "--dir", str(tmp_path / "run")
    )
    assert done.returncode == 0, done.stdout + done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["violations"] == [] and outcome["seed"] == 3 and len(outcome["harms"]) >= 2
    for kind in ("add", "send", "read", "spread", "remind"):
        assert outcome["operations"][kind]["done"]
    assert (tmp_path / "run" / "h1" / "nats-server.log").exists()
    assert any((tmp_path / "run" / "marks").iterdir())


@pytest.mark.soak
def test_the_command_behind_proxies(tmp_path: Path) -> None:
    done = holdfast_chaos(
        *(
            "--network",
            "proxy",
            "--harm",
            "partition,one-way",
            "--seconds",
            "20",
            "--seed",
            "1",
            "--json",
        ),
        *("--work", "adds=2,reads", "--dir", str(tmp_path / "run")),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["network"] == "proxies" and outcome["violations"] == []
    assert outcome["operations"].keys() == {"add", "read"} and outcome["operations"]["add"]["done"]


@pytest.mark.parametrize(
    "options",
    [
        ("--hosts", "2"),
        ("--harm", "flood"),
        ("--work", "sings"),
        ("--work", "adds=x"),
        ("--network", "bus"),
    ],
)
def test_options_that_cannot_be(options: tuple[str, str]) -> None:
    done = holdfast_chaos(*options, "--json")
    assert done.returncode == 2 and json.loads(done.stdout)["error"] == "ConfigError"


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(6))
async def test_every_promise_is_kept_in_chaos(tmp_path: Path, seed: int) -> None:
    await run(tmp_path, seed=seed, together=1 + seed % 2)


@pytest.mark.soak
@pytest.mark.timeout(3000)
@pytest.mark.capability("F8")
async def test_a_hundred_partitions_under_load(tmp_path: Path) -> None:
    chaos, outcome = await run(
        tmp_path,
        seed=7,
        harms=("partition",),
        harm_count=100,
        harm_seconds=(1, 8),
        harm_pause=(0.5, 3),
    )
    assert len(outcome.harms) == 100
    refusals_in_a_partition(chaos, outcome)


@pytest.mark.parametrize(
    "wrong",
    [
        {"hosts": 1},
        {"harms": ("flood",)},
        {"work": {"sings": 1}},
        {"seconds": 0},
        {"pause": (2, 1)},
        {"together": 0},
    ],
)
def test_settings_that_cannot_be(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Settings(**wrong)  # type: ignore[arg-type]


async def test_a_directory_of_another_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "marks").mkdir()
    (tmp_path / "marks" / "1-1").touch()
    with pytest.raises(ConfigError, match="another run"):
        await Chaos(Settings(directory=str(tmp_path)), print).run()


def test_what_is_measured() -> None:
    def add(
        agent: str, began: float, ended: float, fate: str = "done", result: object = 1
    ) -> Operation:
        return Operation("add", agent, "x", began, ended, fate, result, client="h1")  # type: ignore[arg-type]

    harm = Harmed("partition", "h1", at=10.0, seconds=5.0)
    operations = [
        add("a", 109.9, 111.0),
        add("a", 111.0, 114.0, "not done", NoQuorum("x")),
        add("b", 111.5, 118.0),
        add("a", 115.5, 116.0),
        add("c", 114.2, 114.3, "not done", NoQuorum("x")),
        add("c", 116.5, 116.6, "refused", BadMessage("x")),
        add("c", 119.0, 121.1),
        add("d", 300.0, 309.0),  # another harm's
    ]
    measures.measure(harm, operations, 100.0)
    assert (harm.answered_after, harm.refused_after, harm.last_done_after) == (8.0, 4.0, 1.0)
    assert measures.stalls(operations, 100.0, 120.0) == {"add": 11.0}
    assert measures.fates(operations) == {"add": {"done": 5, "not done": 2, "refused": 1}}
    measures.measure(harm, [*operations, add("e", 112.0, 119.0, "unknown", NoQuorum("x"))], 100.0)
    assert harm.answered_after == 10.0
