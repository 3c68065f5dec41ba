"""`holdfast chaos`: break a real cluster on this machine while clients work with it, and judge what
came of it."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from holdfast.cli.common import EXIT_NEVER, Json, execute
from holdfast.cli.printing import Styled, Table, out
from holdfast.errors import ConfigError
from holdfast.testing.chaos.faults import KINDS
from holdfast.testing.chaos.run import WORK, Chaos, Outcome, Settings

_SHOWN_MAX = 20


def chaos(
    seconds: Annotated[
        float, typer.Option("--seconds", min=1, help="How long harm is done.")
    ] = 60.0,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Decides what is done, when. Default: drawn.")
    ] = None,
    hosts: Annotated[int, typer.Option("--hosts", help="3 or 5.")] = 3,
    harm: Annotated[
        str,
        typer.Option(
            "--harm",
            metavar="KIND,...",
            help=f"Of {', '.join(KINDS)}. Default: all that work here.",
        ),
    ] = "",
    work: Annotated[
        str,
        typer.Option(
            "--work",
            metavar="KIND[=COUNT],...",
            help="What each client does, in so many tasks; see the docs.",
        ),
    ] = "",
    together: Annotated[
        int, typer.Option("--together", min=1, help="Harms at once, on different hosts.")
    ] = 1,
    network: Annotated[
        str,
        typer.Option(
            "--network",
            help="namespaces (Linux, root), proxy (anywhere), or auto: the first that works.",
        ),
    ] = "auto",
    directory: Annotated[
        Path | None,
        typer.Option(
            "--dir", help="Keep everything in this new directory. Default: a temporary one."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Start a cluster here, work with it, break it, heal it, and count what was promised and not
    kept.

    It touches nothing but what it starts itself. Exits with 1 where a promise was not kept.
    """

    async def run() -> Outcome:
        settings = Settings(
            seconds=seconds,
            seed=seed,
            hosts=hosts,
            harms=tuple(part.strip() for part in harm.split(",") if part.strip()),
            work=_parse_work(work),
            together=together,
            network=network,
            directory=str(directory or ""),
        )
        line = _Line()
        made = Chaos(settings, line.say)
        line.chaos = made
        with nullcontext() if as_json else out.live(line.text):
            return await made.run()

    outcome = execute(run(), as_json)
    kept = bool(outcome.violations) or directory is not None
    if not kept:
        shutil.rmtree(outcome.directory, ignore_errors=True)
    if as_json:
        out.json({**msgspec.to_builtins(outcome), "directory": outcome.directory if kept else None})
    else:
        _show(outcome, kept)
    if outcome.violations:
        raise typer.Exit(EXIT_NEVER)


def _parse_work(text: str) -> dict[str, int]:
    """``adds=3,sends`` as counts. Raises `ConfigError`."""
    found = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, count = part.partition("=")
        if equals and not count.isdecimal():
            raise ConfigError(f"--work {part}: write KIND or KIND=COUNT")
        found[name] = int(count) if equals else 1
    return found or dict(WORK)


class _Line:
    """One line that says what is being done, and how operations go."""

    def __init__(self) -> None:
        self.chaos: Chaos | None = None
        self._doing = "building a network"
        self._began = time.monotonic()
        self._seen: list[tuple[float, int]] = []

    def say(self, text: str) -> None:
        """The next thing is done."""
        self._doing = text

    def text(self) -> str:
        """The line as it is now."""
        now = time.monotonic()
        operations = [] if self.chaos is None else self.chaos.history.operations
        counts = Counter(operation.fate for operation in operations)
        self._seen = [*(seen for seen in self._seen if now - seen[0] < 5), (now, counts["done"])]
        span = now - self._seen[0][0]
        rate = (counts["done"] - self._seen[0][1]) / span if span > 0.5 else 0.0
        fates = ", ".join(f"{count} {fate}" for fate, count in counts.items())
        return f"{now - self._began:6.1f} s  {self._doing:<28} {rate:6.0f} done/s  {fates}"


def _show(outcome: Outcome, kept: bool) -> None:
    out.print(f"seed {outcome.seed}, {outcome.network}, {outcome.seconds:.0f} s of harm")
    out.print()
    shown = Table(
        "operation", "#done", "#refused", "#not done", "#unknown", "#open", "#longest stall"
    )
    for kind, fates in outcome.operations.items():
        cells = [
            str(fates.get(fate, 0)) for fate in ("done", "refused", "not done", "unknown", "open")
        ]
        shown.add_row(kind, *cells, _seconds(outcome.stalls[kind]))
    out.print(shown)
    shown = Table(
        "harm",
        "host",
        "#at",
        "#for",
        "#all answer after",
        "#refused there after",
        "#last answer there after",
    )
    for harm in outcome.harms:
        shown.add_row(
            harm.kind,
            harm.host,
            _seconds(harm.at),
            _seconds(harm.seconds),
            *(
                _seconds(value)
                for value in (harm.answered_after, harm.refused_after, harm.last_done_after)
            ),
        )
    out.print()
    out.print(shown)
    for kind, why in outcome.not_available.items():
        out.print(Styled(f"{kind} was not done", "yellow"), f": {why}")
    out.print()
    if not outcome.violations:
        out.print(
            Styled("0 violations", "bold green"),
            f"; all lies in {outcome.directory}" if kept else "",
        )
        return
    out.print(
        Styled(f"{len(outcome.violations)} violations", "bold red"),
        f"; logs lie in {outcome.directory}",
    )
    for violation in outcome.violations[:_SHOWN_MAX]:
        out.print(f"  {violation}")
    if len(outcome.violations) > _SHOWN_MAX:
        out.print(f"  … and {len(outcome.violations) - _SHOWN_MAX} more: --json shows all")


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} s"
