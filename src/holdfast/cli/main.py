"""The `holdfast` command."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from holdfast.cli import agents, backup, cohort, dead_letters, messages, placement
from holdfast.cli.bench import bench
from holdfast.cli.chaos import chaos
from holdfast.cli.common import At, Json, ago, execute, joined
from holdfast.cli.doctor import doctor
from holdfast.cli.events import events
from holdfast.cli.found import found
from holdfast.cli.hosts import hosts, remove
from holdfast.cli.printing import Table, bold, out
from holdfast.cli.run import run_app
from holdfast.cli.scrub import scrub
from holdfast.cli.simulate import simulate
from holdfast.cli.up import up
from holdfast.cli.upgrade import restart, upgrade
from holdfast.version import VERSION

app = typer.Typer(
    name="holdfast",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,  # its boxes fold lines, and take what was typed for markup
    help="Durable Python agents on a cluster of identical machines.",
    epilog="Exit codes: 0 done, 1 no (never retry), 2 settings, 3 nothing was done (retry), 4 outcome unknown.",
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
    version: Annotated[bool, typer.Option("--version", help="Print the version, and exit.")] = False,
) -> None:
    if version:
        out.print(VERSION)
        raise typer.Exit


@app.command("version")
def show_version() -> None:
    """Print the version."""
    out.print(VERSION)


@app.command("status")
def status(at: At = "", as_json: Json = False) -> None:
    """Show the cluster: its nodes, what they serve, and whether all of it is served."""

    async def work() -> None:
        async with joined(at) as node:
            members = [member for member in node.members() if member.incarnation != node.incarnation]
            owned = sum(member.shards for member in members)
            total = node.shards
            facts = {
                "cluster": node.manifest.cluster_id,
                "engine": node.engine.name,
                "cells": list(node.manifest.cells),
                "shards": total,
                "owned": owned,
                "registered": node.count(),
                "dead_letters": len(await node.dead_letters.all()),
                "nodes": members,
            }
            if as_json:
                out.json(facts)
                return
            local = node.engine.name == "local"
            state = "an embedded log; nobody has it open" if local else f"{owned} of {total} shards served"
            out.print("cluster ", bold(node.manifest.cluster_id), f", {state}")
            out.print(f"{facts['registered']} registered agents, {facts['dead_letters']} dead letters")
            if members:
                out.print()
                made = Table("NODE", "HOST", "~SERVES", "#SHARDS", "#AGENTS", "#UP", "VERSION", "~NOTE")
                cordoned = node.placement.table.cordoned
                for member in members:
                    serves = " ".join(member.kinds) or "-"
                    up_for = ago(time.time() - member.started_at)
                    numbers = (str(member.shards), str(member.agents), up_for)
                    stopped = {member.host, member.name} & {*cordoned}
                    note = ["cordoned"] * bool(stopped) + ["draining"] * member.draining
                    note += ["degraded"] * bool(member.degraded) + member.labels
                    made.add_row(member.name, member.host, serves, *numbers, member.version, " ".join(note))
                out.print(made)

    execute(work(), as_json)


def main() -> None:
    """What the console script runs."""
    app()


if __name__ == "__main__":
    main()
