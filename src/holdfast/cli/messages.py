"""`holdfast call` and `holdfast send`: messages to an agent from a shell."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer

from holdfast import ids, limits
from holdfast.cli.agents import value_of
from holdfast.cli.bounds import bounds
from holdfast.cli.common import AgentId, App, At, Json, Timeout, execute, joined, needs_app
from holdfast.cli.printing import out, shown
from holdfast.errors import BadMessage

Method = Annotated[
    str, typer.Argument(metavar="HANDLER", help="A handler (or, to call, a reader) of the agent.")
]
Values = Annotated[
    list[str] | None,
    typer.Argument(metavar="[ARGUMENT]...", help="In order; JSON, or else plain text."),
]
Named = Annotated[
    str, typer.Option("--arguments", metavar="JSON", help="By name: '{\"count\": 2}'.")
]


def _arguments(values: list[str] | None, named: str) -> Any:
    if not named:
        return [value_of(value) for value in values or ()]
    if values:
        raise BadMessage("give the arguments in order, or by name with --arguments, not both")
    try:
        found = msgspec.json.decode(named)
    except msgspec.DecodeError as error:
        raise BadMessage(f"--arguments is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise BadMessage("--arguments is a JSON object: names and values")
    return found


def call(
    agent: AgentId,
    handler: Method,
    arguments: Values = None,
    named: Named = "",
    timeout: Timeout = limits.ASK_TIMEOUT_SECONDS,
    at: At = "",
    app: App = "",
    as_json: Json = False,
) -> None:
    """Ask an agent, and print its reply: then what it changed is durable."""

    async def work() -> None:
        ids.parse_agent_id(agent)
        given = _arguments(arguments, named)
        needs_app(at, app)
        async with joined(at, app) as node:
            reply = await node.ask_by_name(
                agent, handler, given, timeout_seconds=bounds.left() or timeout
            )
            if as_json:
                out.json({"reply": reply})
            elif reply is not None:
                out.block(out.cut_value(shown(reply)), indent="")

    execute(work(), as_json)


def send(
    agent: AgentId,
    handler: Method,
    arguments: Values = None,
    named: Named = "",
    timeout: Timeout = limits.ASK_TIMEOUT_SECONDS,
    at: At = "",
    as_json: Json = False,
) -> None:
    """Put a message into an agent's durable inbox; it is handled when a node serves the agent."""

    async def work() -> None:
        ids.parse_agent_id(agent)
        given = _arguments(arguments, named)
        async with joined(at) as node:
            await node.send_by_name(agent, handler, given, timeout_seconds=bounds.left() or timeout)
            if as_json:
                out.json({"sent": agent})
            else:
                out.print(f"sent to {agent}: it is durable")

    execute(work(), as_json)
