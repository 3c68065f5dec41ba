"""`holdfast cohort`: which hosts vote and keep replicas."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

import typer

from holdfast.admin.fleet import cohort
from holdfast.admin.fleet.cohort import Report
from holdfast.cli.bounds import Commands
from holdfast.cli.common import At, Json, execute, joined
from holdfast.cli.hosts import say
from holdfast.cli.printing import bold, out
from holdfast.cluster.facts.cohort import Cohort
from holdfast.node.node import Node

app = Commands(no_args_is_help=True, help="Which hosts vote and keep replicas: 3 or 5 of them.")

Host = Annotated[str, typer.Argument(metavar="HOST")]


@app.command("show")
def show(at: At = "", as_json: Json = False) -> None:
    """Show who votes, and the change that is under way, if there is one."""

    async def work() -> None:
        async with joined(at, reads=True) as node:
            record = await cohort.show(node)
            if as_json:
                out.json(cohort.plain(record))
                return
            out.print(bold(", ".join(record.members)), " vote")
            if record.target:
                out.print(f"a change to {', '.join(record.target)} is under way")
            others = sorted(set(record.hosts) - set(record.members))
            if others:
                out.print(f"{', '.join(others)} joined without a vote")

    execute(work(), as_json)


def _change(at: str, as_json: bool, work: Callable[[Node, Report], Awaitable[Cohort]]) -> None:
    async def run() -> None:
        async with joined(at) as node:
            record = await work(node, (lambda _line: None) if as_json else say)
            if as_json:
                out.json(cohort.plain(record))

    execute(run(), as_json)


@app.command("set")
def set_members(
    members: Annotated[
        str, typer.Argument(metavar="HOST,HOST,...", help="3 or 5 hosts, with commas.")
    ],
    at: At = "",
    as_json: Json = False,
) -> None:
    """Make exactly these hosts the cohort. Run again after a failure, it goes on."""
    names = [name.strip() for name in members.split(",") if name.strip()]
    _change(at, as_json, lambda node, report: cohort.set_members(node, names, report))


@app.command("add")
def add(
    hosts: Annotated[list[str], typer.Argument(metavar="HOST...")],
    at: At = "",
    as_json: Json = False,
) -> None:
    """Add hosts, so that 3 or 5 vote."""
    _change(at, as_json, lambda node, report: cohort.add(node, hosts, report))


@app.command("replace")
def replace(old: Host, new: Host, at: At = "", as_json: Json = False) -> None:
    """Put the second host in the place of the first, dead or alive."""
    _change(at, as_json, lambda node, report: cohort.replace(node, old, new, report))
