"""`holdfast run`: an application in one process, on the embedded log or as one more node of a cluster."""

from __future__ import annotations

import asyncio
import inspect
import signal
from pathlib import Path
from typing import Annotated, Final

import typer
from msgspec.structs import asdict

from holdfast.cli.bounds import bounds
from holdfast.cli.common import DIRECTORY, execute, security_from_environment
from holdfast.cli.printing import bold, out
from holdfast.errors import ConfigError
from holdfast.host.nats_config import Security
from holdfast.node.loading import load_agents, load_module
from holdfast.node.node import Node

_FOR_EVER_SECONDS: Final = 1e8


def run_app(
    app: Annotated[
        str, typer.Argument(metavar="APP", help="app.py or package.module, with :Class,Class behind it or not.")
    ],
    at: Annotated[
        str,
        typer.Option(
            "--at", envvar="HOLDFAST_AT", metavar="URL", help="Default: local:.holdfast/APP.db, an embedded log."
        ),
    ] = "",
) -> None:
    """Serve an application's agents in this process, until Ctrl-C.

    Where the application has a coroutine `main(node)`, that is run, and the command ends with it.
    """
    execute(_run(app, at))


async def _run(app: str, at: str) -> None:
    agents = load_agents(app)
    main = getattr(load_module(app), "main", None)
    url = at or f"local:{DIRECTORY / (Path(app.partition(':')[0]).stem + '.db')}"
    security = Security() if url.startswith("local:") else security_from_environment()
    patience = _FOR_EVER_SECONDS if bounds.wait else None
    async with Node.join(url, serve=agents, wait=bounds.wait, timeout_seconds=patience, **asdict(security)) as node:
        if main is not None:
            if not inspect.iscoroutinefunction(main) or len(inspect.signature(main).parameters) != 1:
                raise ConfigError(f"main of {app} must be `async def main(node)` to be run")
            await node.ready()
            await main(node)
            return
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        names = ", ".join(cls.__kind__.name for cls in agents)
        out.print("serving ", bold(names), f" at {url}; Ctrl-C ends it")
        await stop.wait()
    out.print("ended", style="dim")
