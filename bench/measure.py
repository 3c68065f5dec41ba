"""How the benchmarks measure, and what they print."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field

from rich.console import Console
from rich.table import Table

out = Console(highlight=False)


@dataclass
class Row:
    """A figure, what it should reach, and the engine's own limit for the same shape."""

    name: str
    figure: float
    unit: str
    target: str = ""
    reached: bool | None = None
    limit: float = 0.0
    limit_of: str = ""


@dataclass
class Report:
    """All rows of a run."""

    rows: list[Row] = field(default_factory=list)

    def add(
        self,
        name: str,
        figure: float,
        unit: str,
        target: float = 0.0,
        limit: float = 0.0,
        limit_of: str = "",
    ) -> None:
        """Note a figure. A rate has a target to exceed, a time or a size one to stay under."""
        more_is_better = unit.endswith("/s")
        reached = None if not target else (figure >= target if more_is_better else figure <= target)
        shown = "" if not target else f"{'≥' if more_is_better else '≤'} {target:,g}"
        self.rows.append(Row(name, figure, unit, shown, reached, limit, limit_of))
        out.print(f"  {name}: {number(figure)} {unit}", style="dim")

    def table(self) -> Table:
        """For people."""
        made = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("", "figure", "", "target", "engine alone", "ratio", "of"):
            made.add_column(
                column, justify="right" if column in ("figure", "engine alone", "ratio") else "left"
            )
        for row in self.rows:
            mark = {True: "[green]✓[/]", False: "[red]✗[/]", None: " "}[row.reached]
            limit = number(row.limit) if row.limit else ""
            ratio = f"{row.figure / row.limit:.0%}" if row.limit else ""
            made.add_row(
                row.name,
                number(row.figure),
                row.unit,
                f"{mark} {row.target}",
                limit,
                ratio,
                row.limit_of,
            )
        return made

    def plain(self) -> list[dict[str, object]]:
        """For programs."""
        return [asdict(row) for row in self.rows]


def number(value: float) -> str:
    """A figure with as many digits as mean something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


async def rate(
    work: Callable[[int], Awaitable[object]], in_flight: int, count: int, repetitions: int = 3
) -> float:
    """Calls a second, median of some repetitions, with so many in flight. ``work`` is given the
    call's number."""
    each = count // in_flight

    async def one(worker: int) -> None:
        for step in range(each):
            await work(worker * each + step)

    rates = []
    for _ in range(repetitions):
        started = time.perf_counter()
        await asyncio.gather(*map(one, range(in_flight)))
        rates.append(each * in_flight / (time.perf_counter() - started))
    return statistics.median(rates)


async def latencies(work: Callable[[int], Awaitable[object]], count: int) -> tuple[float, float]:
    """The p50 and p99, in ms, of one call at a time."""
    times = []
    for step in range(count):
        started = time.perf_counter()
        await work(step)
        times.append((time.perf_counter() - started) * 1000)
    times.sort()
    return times[count // 2], times[int(count * 0.99)]
