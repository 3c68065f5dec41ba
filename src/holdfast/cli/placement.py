"""`holdfast cordon`, `uncordon`, `drain`, `pools`: where agents may live."""

from __future__ import annotations

from typing import Annotated

import typer

from holdfast.admin.fleet import nodes
from holdfast.cli.bounds import Commands
from holdfast.cli.common import At, Json, execute, joined
from holdfast.cli.printing import Table, out
from holdfast.core import pools

Name = Annotated[
    str,
    typer.Argument(metavar="NAME", help="A host (all its nodes) or a node, as `status` shows it."),
]
pools_app = Commands(no_args_is_help=True, help="Pools: list, set.")


def cordon(name: Name, at: At = "", as_json: Json = False) -> None:
    """Have a host or node own no agents any more, until `uncordon`; those that it has move away."""

    async def work() -> None:
        async with joined(at) as node:
            await nodes.cordon(node, name)
        _say(as_json, {"cordoned": name}, f"{name} is cordoned: its agents move to others")

    execute(work(), as_json)


def uncordon(name: Name, at: At = "", as_json: Json = False) -> None:
    """Let a host or node own agents again."""

    async def work() -> None:
        async with joined(at) as node:
            await nodes.uncordon(node, name)
        _say(as_json, {"uncordoned": name}, f"{name} may own agents again")

    execute(work(), as_json)


def drain(
    name: Name,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0.1, help="Give up after this.")
    ] = 120,
    at: At = "",
    as_json: Json = False,
) -> None:
    """Cordon a host or node, and wait until all its agents live elsewhere; no call fails."""

    async def work() -> None:
        def report(left: int) -> None:
            if not as_json and left:
                out.print(f"{left} shards left", style="dim")

        async with joined(at) as node:
            await nodes.drain(node, name, timeout, report)
        _say(
            as_json, {"drained": name}, f"{name} is drained: stop it, or `holdfast uncordon {name}`"
        )

    execute(work(), as_json)


@pools_app.command("list")
def list_pools(at: At = "", as_json: Json = False) -> None:
    """List the pools, with the kinds that live in them."""

    async def work() -> None:
        async with joined(at, reads=True) as node:
            found = node.placement.table
        rows = [
            {
                "pool": pool.name,
                "shards": pool.shards,
                "standbys": pool.standbys,
                "labels": pool.labels,
                "kinds": sorted(found.kinds_of(pool.name)),
            }
            for pool in found.pools
        ]
        if as_json:
            out.json({"pools": rows, "cordoned": found.cordoned})
            return
        made = Table("POOL", "#SHARDS", "#STANDBYS", "LABELS", "KINDS")
        for pool in found.pools:
            kinds = " ".join(sorted(found.kinds_of(pool.name))) or "-"
            made.add_row(
                pool.name, str(pool.shards), str(pool.standbys), " ".join(pool.labels) or "-", kinds
            )
        out.print(made)
        if found.cordoned:
            out.print(f"cordoned: {', '.join(found.cordoned)}")

    execute(work(), as_json)


@pools_app.command("set")
def set_pool(
    name: Annotated[str, typer.Argument(metavar="POOL")],
    standbys: Annotated[
        int | None, typer.Option("--standbys", help="Nodes that keep its agents warm: 0 to 2.")
    ] = None,
    labels: Annotated[
        str | None, typer.Option("--labels", metavar="A,B", help="What its nodes must have.")
    ] = None,
    at: At = "",
    as_json: Json = False,
) -> None:
    """Change what a pool asks for. A node whose application declares something else changes it back
    when it joins."""

    async def work() -> None:
        wanted = (
            None
            if labels is None
            else [label.strip() for label in labels.split(",") if label.strip()]
        )
        async with joined(at) as node:
            await node.placement.change(
                lambda now: pools.change_pool(now, name, labels=wanted, standbys=standbys)
            )
            pool = node.placement.table.pool(name)
            node.events.say("pool-changed", name)
        assert pool is not None
        facts = {"pool": name, "standbys": pool.standbys, "labels": pool.labels}
        _say(
            as_json,
            facts,
            f"pool {name}: {pool.standbys} standbys, labels {' '.join(pool.labels) or '-'}",
        )

    execute(work(), as_json)


def _say(as_json: bool, facts: dict[str, object], text: str) -> None:
    if as_json:
        out.json(facts)
    else:
        out.print(text)
