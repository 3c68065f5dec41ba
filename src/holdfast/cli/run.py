"""`holdfast run`: an application in one process, on the embedded log or as one more node of a
cluster."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path
from typing import Annotated, Final

import typer

from holdfast.cli.bounds import bounds
from holdfast.cli.common import execute, security_from_environment
from holdfast.cli.place import DIRECTORY
from holdfast.cli.printing import bold, out
from holdfast.engines.nats.urls import shown
from holdfast.errors import ConfigError, StorageFailed
from holdfast.node.loading import load_agents, load_module
from holdfast.node.node import Node
from holdfast.security import Security
from holdfast.signals import Signals

_FOR_EVER_SECONDS: Final = 1e8


def run_app(
    app: Annotated[
        str,
        typer.Argument(
            metavar="APP", help="app.py or package.module, with :Class,Class behind it or not."
        ),
    ],
    at: Annotated[
        str,
        typer.Option(
            "--at",
            envvar="HOLDFAST_AT",
            metavar="URL",
            help="Default: local:.holdfast/APP.db, an embedded log.",
        ),
    ] = "",
) -> None:
    """Serve an application's agents in this process, until Ctrl-C.

    Where the application has a coroutine `main(node)`, that is run, and the command ends with it.
    """
    execute(_run(app, at))


async def _run(app: str, at: str) -> None:
    # Before anything of the application runs: the first process of a container is deaf without
    # handlers.
    with Signals() as heard:
        serving = asyncio.ensure_future(_serve(app, at))
        stopping = asyncio.ensure_future(heard.stop.wait())
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not serving.done():
            serving.cancel()
        try:
            await serving
        except asyncio.CancelledError:
            if not heard.stop.is_set():
                raise
    if heard.stop.is_set():
        out.print("ended", style="dim")


async def _serve(app: str, at: str) -> None:
    """Until its `main` ends, or until it is cancelled: what runs is finished in both cases."""
    agents = load_agents(app)
    main = getattr(load_module(app), "main", None)
    url = at or f"local:{DIRECTORY / (Path(app.partition(':')[0]).stem + '.db')}"
    security = Security() if url.startswith("local:") else security_from_environment()
    patience = _FOR_EVER_SECONDS if bounds.wait else None
    async with Node.join(
        url, serve=agents, wait=bounds.wait, timeout_seconds=patience, security=security
    ) as node:
        if main is not None:
            if (
                not inspect.iscoroutinefunction(main)
                or len(inspect.signature(main).parameters) != 1
            ):
                raise ConfigError(f"main of {app} must be `async def main(node)` to be run")
            await node.ready()
            await main(node)
            return
        names = ", ".join(cls.__kind__.name for cls in agents)
        out.print("serving ", bold(names), f" at {shown(url)}; Ctrl-C ends it")
        await node.life.over.wait()
        raise StorageFailed(node.life.failed)
