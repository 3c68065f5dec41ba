"""`holdfast restart` and `holdfast upgrade`: one host at a time, without a failed call."""

from __future__ import annotations

from typing import Annotated

import typer

from holdfast.admin.fleet import upgrade as admin
from holdfast.cli.common import At, Json, execute, joined
from holdfast.cli.printing import Table, out

Timeout = Annotated[
    float, typer.Option("--timeout", metavar="SECONDS", min=1, help="For each host.")
]


def restart(
    hosts: Annotated[
        list[str] | None, typer.Argument(metavar="[HOST]...", help="All, if none is named.")
    ] = None,
    timeout: Timeout = 180,
    at: At = "",
    as_json: Json = False,
) -> None:
    """Restart hosts one after the other, with the code that is installed on them now; no call
    fails."""

    async def work() -> None:
        async with joined(at) as node:
            done = await admin.restart_hosts(node, hosts or (), _progress(as_json), timeout)
        if as_json:
            out.json({"restarted": done})

    execute(work(), as_json)


def upgrade(
    finalize: Annotated[
        bool,
        typer.Option(
            "--finalize", help="Write records in the new version from now on: no way back."
        ),
    ] = False,
    timeout: Timeout = 180,
    at: At = "",
    as_json: Json = False,
) -> None:
    """Restart all hosts with the code that is installed on them now, and say who runs what;
    `--finalize` when all is well."""

    async def work() -> None:
        async with joined(at) as node:
            if finalize:
                await admin.finalize(node)
            else:
                await admin.restart_hosts(node, (), _progress(as_json), timeout)
                await node.settled()
            found = admin.versions(node)
            members = [one for one in node.members() if one.kinds]
        if as_json:
            out.json({**found._asdict(), "versions": {one.name: one.version for one in members}})
            return
        made = Table("NODE", "VERSION", "#READS RECORDS UP TO")
        for one in members:
            made.add_row(one.name, one.version, str(one.record_version))
        out.print(made)
        text = f"records are written in version {found.written}"
        if found.written < found.known:
            text += (
                f"; this code knows {found.known}: `holdfast upgrade --finalize` when you are sure"
            )
        out.print(text)

    execute(work(), as_json)


def _progress(as_json: bool) -> admin.Report | None:
    def say(host: str, text: str) -> None:
        out.print(f"{host}: {text}")

    return None if as_json else say
