"""`holdfast simulate`: whole clusters on a virtual clock, with faults, judged by checkers; each run
is a seed."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Annotated

import typer

from holdfast import signals
from holdfast.cli.common import Json, fail
from holdfast.cli.printing import bold, out
from holdfast.errors import HoldfastError
from holdfast.testing.simulation import runs
from holdfast.testing.simulation.campaign import run_all
from holdfast.testing.simulation.runs import Outcome

Which = Annotated[
    str,
    typer.Argument(
        metavar="[SCENARIO]", help="One that comes with Holdfast (see --list), or a .toml file."
    ),
]
Seed = Annotated[
    int, typer.Option("--seed", metavar="N", min=0, help="The seed, or the first of several.")
]
Seeds = Annotated[
    int, typer.Option("--seeds", metavar="N", min=1, help="How many seeds, from --seed on.")
]
Jobs = Annotated[
    int,
    typer.Option("--jobs", metavar="N", min=0, help="Processes; 0: as many as there are cores."),
]


def simulate(
    scenario: Which = "storm",
    seed: Seed = 0,
    seeds: Seeds = 1,
    jobs: Jobs = 1,
    listed: Annotated[bool, typer.Option("--list", help="Show the scenarios, and exit.")] = False,
    as_json: Json = False,
) -> None:
    """Run a cluster in a simulation, and say whether a promise was broken; then the exit code is
    1."""
    try:
        if listed:
            _list(as_json)
            return
        found = runs.load(scenario)
        outcomes = run_all(found, range(seed, seed + seeds), jobs or os.cpu_count() or 1)
        if not _show(outcomes, scenario, seeds, as_json):
            raise typer.Exit(1)
    except HoldfastError as error:
        fail(error, as_json)
    except KeyboardInterrupt:
        raise typer.Exit(signals.interrupted()) from None


def _list(as_json: bool) -> None:
    names = {name: runs.about(name) for name in runs.names()}
    if as_json:
        out.json(names)
        return
    for name, text in names.items():
        out.print(bold(f"{name:10}"), f" {text}")


def _show(outcomes: Iterable[Outcome], scenario: str, seeds: int, as_json: bool) -> bool:
    """Print what comes, as it comes; return whether all went well."""
    bad: list[Outcome] = []
    kept: list[Outcome] = []
    operations = 0
    for number, outcome in enumerate(outcomes, 1):
        operations += sum(outcome.counts.values())
        kept += [outcome] if as_json else []
        if outcome.violations:
            bad.append(outcome)
            if not as_json:
                out.block(outcome.report(), indent="")
        if not as_json and seeds > 1 and number % 25 == 0 and number < seeds:
            out.print(f"{number} of {seeds} seeds, {len(bad)} with violations", style="dim")
    if as_json:
        out.json(
            {
                "scenario": scenario,
                "seeds": seeds,
                "failed": [one.seed for one in bad],
                "runs": kept,
            }
        )
    else:
        text = f"{scenario}: {seeds} seeds, {operations} operations, {len(bad)} with violations"
        out.print(text, style="red" if bad else "green")
    return not bad
