"""`holdfast scrub`: are the replicas what they should be? With --repair, they are made so."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from holdfast.admin.presence import require_majority
from holdfast.admin.scrub.scrub import Damage, ScrubReport, by_hosts
from holdfast.admin.scrub.scrub import scrub as run_scrub
from holdfast.cli.bounds import bounds
from holdfast.cli.common import EXIT_NEVER, At, Json, connected, execute
from holdfast.cli.printing import Styled, bold, out, problems

_SHOWN_MAX = 10


def scrub(
    repair: Annotated[
        bool, typer.Option("--repair", help="Copy diverged replicas anew from the others.")
    ] = False,
    at: At = "",
    as_json: Json = False,
) -> None:
    """Compare the replicas of everything that is stored, record by record, while the cluster runs.

    It ends with 1 where something is wrong and was not repaired.
    """

    async def work() -> ScrubReport:
        async with connected(at) as engine:
            await require_majority(engine)
            bounds.begun, bounds.reads = True, not repair
            rebuild = by_hosts(engine) if repair else None
            return await run_scrub(engine, rebuild=rebuild, report=None if as_json else _say)

    report = execute(work(), as_json)
    if as_json:
        out.json({"clean": report.clean, "streams": report.streams})
    else:
        _show(report, repair)
    if not report.clean:
        raise typer.Exit(EXIT_NEVER)


def _say(event: str, facts: dict[str, Any]) -> None:
    texts = {
        "comparing": "comparing {stream}",
        "rebuilding": "the replica of {stream} on {server} is copied anew",
        "copying": "{stream} on {server}: {messages} of {of}",
        "rebuilt": "{stream} on {server} is there again, and is compared",
    }
    if event in texts:
        problems.print(texts[event].format_map(facts), style="dim")


def _show(report: ScrubReport, repair: bool) -> None:
    for damage in report.damages:
        _show_damage(damage)
    records = sum(scrubbed.records for scrubbed in report.streams)
    what = f"{len(report.streams)} streams, {records} records"
    if not report.damages:
        out.print(Styled("all replicas agree", "bold green"), f": {what}")
    elif report.clean:
        out.print(Styled("repaired", "bold green"), f": {what}")
    else:
        advice = "" if repair else "; `holdfast scrub --repair` copies diverged replicas anew"
        out.print(Styled("not all is well", "bold red"), f": {what}{advice}")


def _show_damage(damage: Damage) -> None:
    state = Styled("repaired", "green") if damage.repaired else Styled("wrong", "red")
    where = damage.stream + (f" on {damage.server}" if damage.server else "")
    out.block(f"{where}: {damage.text}", state, " ", bold(damage.code), " ")
    for name, values in (("sequences", damage.sequences), ("belongs to", damage.agents)):
        if values:
            more = f", … ({len(values)})" if len(values) > _SHOWN_MAX else ""
            out.print(f"  {name}: {', '.join(values[:_SHOWN_MAX])}{more}", style="dim")
