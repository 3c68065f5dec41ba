"""`holdfast agents`: which agents are registered, and what is stored of one."""

from __future__ import annotations

import time
from typing import Annotated, Any

import msgspec
import typer

from holdfast import ids
from holdfast.cli.bounds import Commands
from holdfast.cli.common import AgentId, At, Json, ago, execute, joined
from holdfast.cli.printing import Table, out, shown
from holdfast.cluster.facts.registry import Entry
from holdfast.errors import BadMessage, NotFound
from holdfast.node.node import Node

app = Commands(no_args_is_help=True, help="Agents: list, show, find.")

Limit = Annotated[int, typer.Option("--limit", min=1, help="Show at most so many.")]


def _print(node: Node, entries: list[Entry], total: int, as_json: bool) -> None:
    rows: list[dict[str, Any]] = [
        {
            "agent": f"{entry.kind}/{entry.name}",
            "capabilities": sorted(entry.capabilities),
            "metadata": dict(entry.metadata),
            "registered_at": entry.registered_at,
            "owner": node.describe(f"{entry.kind}/{entry.name}").owner,
        }
        for entry in entries
    ]
    if as_json:
        out.json({"total": total, "agents": rows})
        return
    names = {member.incarnation: member.name for member in node.members()}
    made = Table("AGENT", "~CAPABILITIES", "~METADATA", "NODE")
    for row in rows:
        owner = str(row["owner"])
        made.add_row(
            str(row["agent"]),
            " ".join(row["capabilities"]),
            shown(row["metadata"]),
            names.get(owner, owner or "-"),
        )
    out.print(made)
    more = f" of {total}; --limit shows more" if total > len(rows) else ""
    out.print(f"{len(rows)} agents{more}", style="dim")


@app.command("list")
def list_agents(
    at: At = "",
    kind: Annotated[str, typer.Option("--kind", help="Only of this kind.")] = "",
    limit: Limit = 100,
    as_json: Json = False,
) -> None:
    """List the registered agents."""

    async def work() -> None:
        async with joined(at, reads=True) as node:
            entries = node.registry.find(kind=kind or None, limit=limit)
            _print(node, entries, node.registry.count(kind=kind or None), as_json)

    execute(work(), as_json)


@app.command("find")
def find_agents(
    capability: Annotated[list[str], typer.Argument(metavar="CAPABILITY...", help="All of these.")],
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where",
            metavar="CONDITION",
            help='On metadata: "region eq eu", "gpus.0.memory ge 40".',
        ),
    ] = None,
    at: At = "",
    limit: Limit = 100,
    as_json: Json = False,
) -> None:
    """Find agents by what they can do."""

    async def work() -> None:
        conditions = [_condition(text) for text in where or ()]
        async with joined(at, reads=True) as node:
            found = node.registry.find(capability=capability, where=conditions)
            _print(node, found[:limit], len(found), as_json)

    execute(work(), as_json)


def _condition(text: str) -> tuple[str, str, Any]:
    parts = text.split(None, 2)
    if len(parts) != 3:
        raise BadMessage(
            f'{text!r} is no condition: write "PATH OPERATOR VALUE", for example "region eq eu"'
        )
    return parts[0], parts[1], value_of(parts[2])


def value_of(text: str) -> Any:
    """An argument as typed in a shell: JSON where it is JSON, else the text itself."""
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


@app.command("show")
def show_agent(agent: AgentId, at: At = "", as_json: Json = False) -> None:
    """Show where an agent lives, what is registered of it, and its stored state."""

    async def work() -> None:
        ids.parse_agent_id(agent)
        async with joined(at, reads=True) as node:
            info = node.describe(agent)
            try:
                stored = await node.inspect(agent)
            except NotFound:
                if not info.registered:
                    raise NotFound(
                        f"{agent} is not registered, and never finished a message"
                    ) from None
                stored = None
            if as_json:
                out.json({"agent": info, "stored": stored})
                return
            names = {member.incarnation: member.name for member in node.members()}
            made = Table("", "")
            made.show_header = False
            made.add_row("agent", agent)
            made.add_row(
                "node",
                f"{names.get(info.owner, info.owner or 'nobody now')} "
                f"{info.host and f'on {info.host}'}",
            )
            if info.standbys:
                made.add_row(
                    "standbys", ", ".join(names.get(standby, standby) for standby in info.standbys)
                )
            made.add_row("shard", f"{info.shard} in {info.cell}, epoch {info.epoch}")
            made.add_row(
                "registered", "yes" if info.registered else "no: an address needs no registration"
            )
            if info.registered:
                made.add_row("capabilities", " ".join(info.capabilities) or "-")
                made.add_row("metadata", out.cut_value(shown(info.metadata)))
            if stored is None:
                made.add_row("state", "none yet: it never finished a message")
            else:
                made.add_row(
                    "version",
                    f"{stored.version}, schema {stored.state_version}, {stored.state_bytes} bytes",
                )
                if stored.written_at:
                    made.add_row("written", f"{ago(time.time() - stored.written_at)} ago")
                made.add_row("state", out.cut_value(shown(stored.state)))
                for timer in stored.timers:
                    made.add_row(
                        "timer", f"{timer.name}: {timer.handler} in {timer.due - time.time():.1f} s"
                    )
            out.print(made)

    execute(work(), as_json)
