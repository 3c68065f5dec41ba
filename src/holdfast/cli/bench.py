"""`holdfast bench`: measure a cluster, beside its engine alone."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated, Final

import msgspec
import typer

from holdfast.bench.measure import Figure
from holdfast.bench.processes import ROLES
from holdfast.bench.session import Outcome, Settings, measure
from holdfast.bench.workloads import NAMES, Moments
from holdfast.cli.common import Json, execute, security_from_environment
from holdfast.cli.printing import Table, out
from holdfast.errors import ConfigError

_BUCKET_SECONDS: Final = 0.1


def bench(
    workloads: Annotated[
        list[str] | None,
        typer.Argument(metavar="[WORKLOAD]...", help=f"Of {', '.join(NAMES)}. Default: all."),
    ] = None,
    at: Annotated[
        str,
        typer.Option(
            "--at",
            metavar="URL",
            help="Servers of a cluster (nats://HOST:PORT), or `local` for the embedded engine. "
            "Default: a fresh one here.",
        ),
    ] = "",
    nodes: Annotated[
        int | None,
        typer.Option(
            "--nodes", min=1, help="The benchmark's own nodes, on this machine. Default: 3."
        ),
    ] = None,
    agents: Annotated[
        int, typer.Option("--agents", min=100, help="Among which messages are spread.")
    ] = 10_000,
    in_flight: Annotated[
        int, typer.Option("--in-flight", min=1, max=10_000, help="Operations at a time.")
    ] = 256,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="Of each load.")] = 3.0,
    as_json: Json = False,
) -> None:
    """Measure what a cluster does in a second, and what is left of its engine's own rate.

    Nodes of its own serve the agents, in a pool of their own; what they wrote is removed at the
    end.
    """
    settings = Settings(
        tuple(part for part in at.split(",") if part),
        tuple(workloads or NAMES),
        nodes,
        agents,
        in_flight,
        seconds,
        security_from_environment(),
    )
    outcome = execute(_run(settings, as_json), as_json)
    if as_json:
        out.json(msgspec.to_builtins(outcome))
        return
    out.print()
    out.print(_rates(outcome.figures))
    out.print()
    out.print(_costs(outcome.figures))
    if outcome.failover.killed_at:
        out.print()
        out.block(_picture(outcome.failover), indent="")


async def _run(settings: Settings, as_json: bool) -> Outcome:
    def report(figure: Figure) -> None:
        if not as_json:
            out.print(f"  {figure.name}: {_number(figure.per_second)}/s", style="dim")

    for name in ("plotext", "psutil"):
        if find_spec(name) is None:
            raise ConfigError(f"{name} is not installed: pip install 'holdfast[bench]'")
    return await measure(settings, report)


def _rates(figures: list[Figure]) -> Table:
    made = Table("WORKLOAD", "#PER S", "#P50 MS", "#P99", "#MAX", "#ENGINE", "#RATIO")
    for figure in figures:
        shown = [
            _number(value) if value else ""
            for value in (figure.p50, figure.p99, figure.longest, figure.engine)
        ]
        ratio = f"{figure.ratio:.0%}" if figure.engine else ""
        made.add_row(figure.name, _number(figure.per_second), *shown, ratio)
    return made


def _costs(figures: list[Figure]) -> Table:
    roles = [role for role in ROLES if any(one.cores.get(role, 0) >= 0.005 for one in figures)]
    made = Table("CORES OF", *(f"#{role.upper()}" for role in roles), "NOTE")
    for figure in figures:
        cores = [f"{figure.cores.get(role, 0):.2f}" for role in roles]
        failed = [f"{count} {name}" for name, count in figure.failed.items()]
        engine = f"engine: {figure.engine_of}" if figure.engine else ""
        made.add_row(figure.name, *cores, ", ".join(filter(None, [*failed, engine, figure.note])))
    most = {role: max(one.resident_mb.get(role, 0) for one in figures) for role in roles}
    made.add_row("most memory, MB", *(f"{most[role]:,.0f}" for role in roles), "")
    return made


def _number(value: float) -> str:
    """A figure with as many digits as mean something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:,.2f}" if value >= 0.1 else f"{value:,.4f}"


def _picture(seen: Moments) -> str:
    """Latency over time: of each tenth of a second the median and the longest, and where a process
    was killed."""
    import plotext  # type: ignore[import-untyped]  # of the extra `bench`

    buckets: dict[int, list[float]] = {}
    for at, ms in seen.moments:
        buckets.setdefault(int(at / _BUCKET_SECONDS), []).append(ms)
    times = [bucket * _BUCKET_SECONDS for bucket in sorted(buckets)]
    found = [sorted(buckets[bucket]) for bucket in sorted(buckets)]
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plot_size(min(out.room or 100, 100), 16)
    plotext.plot(times, [one[len(one) // 2] for one in found], label="median")
    plotext.plot(times, [one[-1] for one in found], label="longest")
    for at in seen.killed_at:
        plotext.vline(at)
    plotext.yscale("log")
    plotext.title("ms of an ask that ended in each tenth of a second; the line: kill -9 of a node")
    built: str = plotext.uncolorize(plotext.build())
    return built
