"""A row per figure: what was measured, its target, and what the engine alone does with the same shape of work."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from rich.console import Console
from rich.table import Table

from bench.suite.measure import Rate

out = Console(highlight=False)


@dataclass
class Row:
    """``limit``: the engine's own figure, 0 where the engine has no part in it; ``limit_of``: what it was measured of."""

    name: str
    figure: float
    unit: str
    target: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    limit: float = 0.0
    limit_of: str = ""

    @property
    def reached(self) -> bool | None:
        """A rate is to be at least its target, a time or a size at most. None: it has no target."""
        if not self.target:
            return None
        return self.figure >= self.target if self.unit == "/s" else self.figure <= self.target

    @property
    def ratio(self) -> float:
        """The figure as a part of the limit."""
        return self.figure / self.limit if self.limit else 0.0


@dataclass
class Report:
    """The rows of a run, printed as they come."""

    rows: list[Row] = field(default_factory=list)

    def add(
        self, name: str, figure: float, unit: str, target: float = 0.0, limit: float = 0.0, limit_of: str = ""
    ) -> Row:
        """Note a figure."""
        row = Row(name, figure, unit, target, limit=limit, limit_of=limit_of)
        self.rows.append(row)
        beside = f", engine alone {number(limit)}" if limit else ""
        out.print(f"  {name}: {number(figure)} {unit}{beside}", style="dim")
        return row

    def add_rate(self, name: str, rate: Rate, target: float = 0.0, limit: float = 0.0, limit_of: str = "") -> None:
        """Note a rate, with the latencies under its load."""
        row = self.add(name, rate.per_second, "/s", target, limit, limit_of)
        row.p50_ms, row.p99_ms = rate.p50_ms, rate.p99_ms

    def table(self) -> Table:
        """For people."""
        made = Table(box=None, pad_edge=False, header_style="bold")
        columns = ("", "figure", "", "p50/p99 ms", "", "target", "engine alone", "ratio", "shape")
        for column in columns:
            made.add_column(column, justify="left" if column in ("", "shape") else "right")
        for row in self.rows:
            mark = {True: "[green]✓[/]", False: "[red]✗[/]", None: ""}[row.reached]
            made.add_row(
                row.name,
                number(row.figure),
                row.unit,
                f"{number(row.p50_ms)} / {number(row.p99_ms)}" if row.p50_ms else "",
                mark,
                f"{'≥' if row.unit == '/s' else '≤'} {row.target:,g}" if row.target else "",
                number(row.limit) if row.limit else "",
                f"{row.ratio:.0%}" if row.limit else "",
                row.limit_of,
            )
        return made

    def plain(self) -> list[dict[str, object]]:
        """For programs."""
        return [asdict(row) | {"reached": row.reached, "ratio": row.ratio} for row in self.rows]


def number(value: float) -> str:
    """A figure with as many digits as mean something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
