"""`holdfast hosts` and `holdfast remove`: the machines of the cluster."""

from __future__ import annotations

from typing import Annotated

import typer

from holdfast.admin.fleet import cohort
from holdfast.admin.fleet.hosts import GONE, HostView, list_hosts
from holdfast.admin.presence import Presence, no_majority
from holdfast.cli.common import EXIT_NOT_DONE, At, Json, ago, connected, execute, fail, joined
from holdfast.cli.printing import Part, Styled, Table, out


def hosts(at: At = "", as_json: Json = False) -> None:
    """List the hosts: who votes, what their servers keep, their disks, and who is gone."""

    async def work() -> tuple[list[HostView], Presence]:
        async with connected(at) as engine:
            return await list_hosts(engine)

    found, seen = execute(work(), as_json)
    if as_json:
        out.json(found)
    else:
        made = Table("HOST", "STATE", "SERVER", "#NODES", "#REPLICAS", "#DISK FREE", "SEEN", "~")
        for host in found:
            made.add_row(
                host.name, _state(host), host.server, *_numbers(host), _seen(host), host.trouble
            )
        out.print(made)
    if seen.lost and not as_json:
        fail(no_majority(seen), as_json)
    if seen.lost:
        raise typer.Exit(EXIT_NOT_DONE)


def _state(host: HostView) -> Part:
    if host.state == GONE:
        return Styled(f"gone, a {'member' if host.member else 'host without a vote'}", "red")
    return host.state


def _numbers(host: HostView) -> tuple[str, str, str]:
    if host.state == GONE:
        return "", "", ""
    replicas = f"{host.replicas}, {host.behind} behind" if host.behind else str(host.replicas)
    share = 100 * host.disk_free_bytes // max(host.disk_bytes, 1)
    return (
        f"{host.nodes_ready} of {host.nodes}",
        replicas,
        f"{share} % of {host.disk_bytes / 1e9:.0f} GB",
    )


def _seen(host: HostView) -> str:
    if host.seen_ago is None:
        return "never by those there"
    return "now" if host.state != GONE else f"{ago(host.seen_ago)} ago"


def remove(
    host: Annotated[str, typer.Argument(metavar="HOST", help="A host that is gone for good.")],
    at: At = "",
    as_json: Json = False,
) -> None:
    """Forget a host that is gone for good; one that joined without a vote takes its place, where
    there is one."""

    async def work() -> None:
        async with joined(at) as node:
            record = await cohort.remove(node, host, _silent if as_json else say)
            if as_json:
                out.json(cohort.plain(record))
            elif len(record.members) % 2 == 0:
                out.print(
                    f"{len(record.members)} hosts vote: add one with `holdfast cohort add HOST`",
                    style="yellow",
                )

    execute(work(), as_json)


def say(line: str) -> None:
    """One line of what a change does."""
    out.print(line)


def _silent(_line: str) -> None:
    pass
