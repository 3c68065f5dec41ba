"""The `holdfast` command."""

from __future__ import annotations

from typing import Annotated

import typer

from holdfast import said
from holdfast.cli import agents, backup, cohort, dead_letters, messages, placement
from holdfast.cli.bench import bench
from holdfast.cli.bounds import Commands
from holdfast.cli.chaos import chaos
from holdfast.cli.doctor import doctor
from holdfast.cli.events import events
from holdfast.cli.found import found
from holdfast.cli.hosts import hosts, remove
from holdfast.cli.printing import out
from holdfast.cli.run import run_app
from holdfast.cli.scrub import scrub
from holdfast.cli.simulate import simulate
from holdfast.cli.status import status
from holdfast.cli.up import up
from holdfast.cli.upgrade import restart, upgrade
from holdfast.version import VERSION

app = Commands(
    name="holdfast",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,  # its boxes fold lines, and take what was typed for markup
    help="Durable Python agents on a cluster of identical machines.",
    epilog="Exit codes: 0 done, 1 no (never retry), 2 settings, 3 nothing was done (retry), 4 "
    "outcome unknown.",
)
app.command("run")(run_app)
app.command("up")(up)
app.command("found")(found)
app.command("chaos")(chaos)
app.add_typer(agents.app, name="agents")
app.command("call")(messages.call)
app.command("send")(messages.send)
app.add_typer(dead_letters.app, name="dead-letters")
app.add_typer(backup.app, name="backup")
app.command("restore")(backup.restore_backup)
app.command("status")(status)
app.command("events")(events)
app.command("cordon")(placement.cordon)
app.command("uncordon")(placement.uncordon)
app.command("drain")(placement.drain)
app.command("restart")(restart)
app.command("upgrade")(upgrade)
app.add_typer(placement.pools_app, name="pools")
app.command("hosts")(hosts)
app.add_typer(cohort.app, name="cohort")
app.command("remove")(remove)
app.command("scrub")(scrub)
app.command("doctor")(doctor)
app.command("simulate")(simulate)
app.command("bench")(bench)


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version, and exit.")
    ] = False,
) -> None:
    if version:
        out.print(VERSION)
        raise typer.Exit


@app.command("version")
def show_version() -> None:
    """Print the version."""
    out.print(VERSION)


def main() -> None:
    """What the console script runs."""
    said.show_warnings()
    app()


if __name__ == "__main__":
    main()
