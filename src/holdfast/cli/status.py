"""`holdfast status`: who is there, who is gone, and what is served. It answers in any state of the
cluster."""

from __future__ import annotations

import time

import msgspec
import typer

from holdfast.admin import status as admin
from holdfast.admin.presence import gone_text
from holdfast.admin.status import DEGRADED, DOWN, WELL, Status
from holdfast.cli.bounds import bounds
from holdfast.cli.common import EXIT_NEVER, EXIT_NOT_DONE, At, Json, ago, connected, execute, joined
from holdfast.cli.place import where
from holdfast.cli.printing import Styled, Table, bold, out
from holdfast.node.settings import Local, parse

_EXIT = {WELL: 0, DEGRADED: EXIT_NEVER, DOWN: EXIT_NOT_DONE}
_COLOURS = {DEGRADED: "yellow", DOWN: "bold red"}


def status(at: At = "", as_json: Json = False) -> None:
    """Show the cluster: the hosts that are up and gone, the nodes, and whether all is served. It
    needs no majority.

    It ends with 0 where all is well, 1 where something is missing, 3 where nothing is served or no
    majority is there.
    """

    async def work() -> Status:
        if isinstance(parse(where(at)), Local):
            async with joined(at, reads=True) as node:
                found = await admin.of_node(node)
            found.state = WELL
            return found
        async with connected(at) as engine:
            return await admin.of_cluster(engine, bounds.left() if bounds.wait else None)

    found = execute(work(), as_json)
    if as_json:
        out.json(msgspec.structs.asdict(found))
    else:
        _show(found)
    if found.state != WELL:
        raise typer.Exit(_EXIT[found.state])


def _show(found: Status) -> None:
    total = "?" if found.shards is None else str(found.shards)
    local = found.engine == "local"
    state = f"{found.served} of {total} shards served"
    if local:
        who = f"open in process {found.process}; {state}" if found.process else "nobody has it open"
        state = f"an embedded log; {who}"
    out.print("cluster ", bold(found.cluster or "?"), f", {state}")
    if not local:
        out.print(_hosts(found))
    if found.registered is not None:
        out.print(f"{found.registered} registered agents, {found.dead_letters} dead letters")
    said = {gone_text(host) for host in found.hosts if not host.up}
    for problem in (one for one in found.problems if one not in said):
        out.print(Styled(problem, _COLOURS[found.state]))
    if found.nodes:
        out.print()
        made = Table("NODE", "HOST", "~SERVES", "#SHARDS", "#AGENTS", "#UP", "VERSION", "~NOTE")
        for member in found.nodes:
            serves = " ".join(member.kinds) or "-"
            numbers = (str(member.shards), str(member.agents), ago(time.time() - member.started_at))
            note = ["cordoned"] * bool({member.host, member.name} & {*found.cordoned}) + [
                "draining"
            ] * member.draining
            note += ["degraded"] * bool(member.degraded) + member.labels
            made.add_row(member.name, member.host, serves, *numbers, member.version, " ".join(note))
        out.print(made)


def _hosts(found: Status) -> str:
    copies = (
        ""
        if found.copies is None
        else f"; {found.copies} cop{'y' if found.copies == 1 else 'ies'} of everything"
    )
    if not found.hosts:
        # Who ought to be there stands in the log.
        unheard = found.copies is None
        return "no host answers" if unheard else f"the servers are run by no Holdfast host{copies}"
    up = sum(host.up for host in found.hosts)
    gone = [gone_text(host) for host in found.hosts if not host.up]
    return "; ".join([f"hosts {up} of {len(found.hosts)} up", *gone]) + copies
