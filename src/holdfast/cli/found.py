"""`holdfast found`: a cluster on servers of your own."""

from __future__ import annotations

from typing import Annotated

import typer

from holdfast.admin.found import found as found_cluster
from holdfast.admin.presence import require_majority
from holdfast.cli.bounds import bounds
from holdfast.cli.common import At, Json, connected, execute
from holdfast.cli.printing import out


def found(
    replicas: Annotated[
        int, typer.Option("--replicas", help="How many servers keep everything: 1, 3 or 5.")
    ],
    at: At = "",
    as_json: Json = False,
) -> None:
    """Found a cluster on nats-servers of your own, or raise the copies of one; hosts of `holdfast
    up` do it by themselves."""

    async def work() -> None:
        async with connected(at) as engine:
            await require_majority(engine)
            bounds.begun = True
            done = await found_cluster(engine, replicas)
        if as_json:
            out.json(done)
            return
        text = "founded" if done.new else "there was one"
        out.print(f"cluster {done.cluster}, {done.copies} copies of everything: {text}")
        if done.raised:
            out.print(f"more copies of {' '.join(done.raised)}")

    execute(work(), as_json)
