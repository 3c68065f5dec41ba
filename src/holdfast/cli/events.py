"""`holdfast events`: what happened in the cluster, in order."""

from __future__ import annotations

from collections import deque
from typing import Annotated

import typer

from holdfast.cli.common import At, Json, execute, joined
from holdfast.cli.printing import Styled, bold, moment, out, shown
from holdfast.cluster.facts.events import Event


def events(
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with those to come, until Ctrl-C.")
    ] = False,
    limit: Annotated[
        int, typer.Option("--limit", min=1, help="At most so many, the newest.")
    ] = 100,
    after: Annotated[
        int, typer.Option("--after", min=0, metavar="POSITION", help="Only those behind this one.")
    ] = 0,
    at: At = "",
    as_json: Json = False,
) -> None:
    """Show what happened: nodes and hosts that came and went, shards that moved, cordons. One JSON
    object a line with --json."""

    def show(event: Event) -> None:
        if as_json:
            out.json(_plain(event), indent=None)
            return
        clock = moment(event.at)
        facts = " ".join(f"{name}={shown(value)}" for name, value in event.facts.items())
        out.print(Styled(clock, "dim"), f"  {event.what:<18} ", bold(event.who), f"  {facts}")

    async def work() -> None:
        async with joined(at, reads=not follow) as node:
            newest: deque[Event] = deque(maxlen=limit)
            position = after
            async for event in node.events.read(after=after):
                newest.append(event)
                position = event.position
            for event in newest:
                show(event)
            if follow:
                async for event in node.events.read(after=position, follow=True):
                    show(event)

    execute(work(), as_json)


def _plain(event: Event) -> dict[str, object]:
    return {name: getattr(event, name) for name in event.__struct_fields__}
