"""What all commands share: where to connect, and which exit code an error has."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import typer

from holdfast import files, signals
from holdfast.admin.presence import guarded
from holdfast.agents.agent import Agent
from holdfast.cli.bounds import COMMAND_SECONDS, CONNECT_SECONDS, bounds
from holdfast.cli.place import where
from holdfast.cli.printing import Styled, out, problems
from holdfast.engines.local import socket_engine
from holdfast.engines.nats.engine import NatsEngine
from holdfast.engines.nats.reach import reach
from holdfast.errors import (
    ConfigError,
    DeadlineExceeded,
    HandlerFailed,
    HoldfastError,
    NotDone,
    OutcomeUnknown,
    Unknown,
)
from holdfast.loops import run
from holdfast.node.loading import load_agents
from holdfast.node.node import Node
from holdfast.node.settings import Local, not_joined, parse
from holdfast.security import Security

T = TypeVar("T")

EXIT_NEVER: Final = 1
EXIT_CONFIG: Final = 2
EXIT_NOT_DONE: Final = 3
EXIT_UNKNOWN: Final = 4

_GRACE_SECONDS: Final = 0.3
"""For so long what has a deadline of its own may say better than a command what became of it."""

At = Annotated[
    str,
    typer.Option(
        "--at",
        envvar="HOLDFAST_AT",
        metavar="URL",
        help="local:FILE, or nats://HOST:PORT (several with commas). Default: what `holdfast up` "
        "runs here.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
AgentId = Annotated[
    str, typer.Argument(metavar="KIND/NAME", help="The agent, for example Reviewer/acme.")
]
Timeout = Annotated[
    float, typer.Option("--timeout", metavar="SECONDS", min=0.001, help="Give up after this long.")
]
App = Annotated[
    str,
    typer.Option(
        "--app",
        metavar="APP",
        help="Serve these agents meanwhile: for an embedded log that no program has open.",
    ),
]


def security_from_environment() -> Security:
    """Certificates and password of a client: HOLDFAST_TLS_CA, _TLS_CERT, _TLS_KEY, _USER and
    _PASSWORD_FILE."""
    get = os.environ.get
    warn_of_open_secrets(get("HOLDFAST_TLS_KEY", ""), get("HOLDFAST_PASSWORD_FILE", ""))
    return Security(
        get("HOLDFAST_TLS_CA", ""),
        get("HOLDFAST_TLS_CERT", ""),
        get("HOLDFAST_TLS_KEY", ""),
        get("HOLDFAST_USER", ""),
        read_password(get("HOLDFAST_PASSWORD_FILE", "")),
    )


def warn_of_open_secrets(*paths: str) -> None:
    """Say which of these files, of passwords and keys, every user of this machine may read or
    write."""
    for path in filter(None, paths):
        try:
            may = files.open_to_all(Path(path))
        except OSError:
            continue  # whoever reads it says so
        if may:
            problems.print(
                Styled("warning", "yellow"),
                f": every user may {may} {path}, a secret: `chmod go= {path}`",
            )


def read_password(path: str) -> str:
    """The first line of a file, empty for no file. Raises `ConfigError`.

    A byte order mark, as some editors write it, and white space around the line do not belong to
    it.
    """
    if not path:
        return ""
    try:
        password = Path(path).read_bytes().decode("utf-8-sig").partition("\n")[0].strip()
    except UnicodeDecodeError:
        raise ConfigError(
            f"the password in {path} is not text in UTF-8: save the file as UTF-8"
        ) from None
    except OSError as error:
        raise ConfigError(f"the password cannot be read from {path}: {error}") from None
    if not password:
        raise ConfigError(f"the first line of {path} is empty: it is to hold the password")
    return password


@asynccontextmanager
async def joined(at: str, app: str = "", *, reads: bool = False) -> AsyncIterator[Node]:
    """A node that serves nothing, or an application, and has heard who is there. ``reads``: it is
    to change nothing.

    Raises `NoQuorum` as soon as a majority is known to be missing, with who is gone, and `NotFound`
    without a cluster.
    """
    place = parse(where(at))
    serve: list[type[Agent[Any]]] = load_agents(app) if app else []
    bounds.reads = reads
    if isinstance(place, Local):
        if not place.path.exists() and not app:
            raise ConfigError(f"there is no file {place.path}")
        async with Node.join(f"local:{place.path}", serve=serve) as node:
            await node.settled()
            bounds.begun = True
            yield node
        return
    async with connected(at) as engine:
        async with nullcontext() if bounds.wait else guarded(engine):
            node = await Node.on(engine, serve, wait=bounds.wait)
            await node.settled()
        bounds.begun = True
        try:
            async with guarded(engine) if reads else nullcontext():
                yield node
        finally:
            await node.close()


@asynccontextmanager
async def connected(at: str) -> AsyncIterator[NatsEngine]:
    """A connection to a cluster, without joining it: it works without a majority too. Raises
    `ConfigError`, `NoQuorum`."""
    urls = cluster_urls(at)
    seconds = bounds.left(None if bounds.wait else CONNECT_SECONDS) or COMMAND_SECONDS
    security = security_from_environment()
    engine = await reach(urls, lambda some: NatsEngine(some, security, connect_seconds=seconds))
    try:
        yield engine
    finally:
        await engine.close()


def cluster_urls(at: str) -> tuple[str, ...]:
    """The servers of a cluster. Raises `ConfigError` for an embedded log."""
    found = parse(where(at))
    if isinstance(found, Local):
        raise ConfigError(
            f"{found.path} is an embedded log, which has one copy: this is for clusters"
        )
    return found.urls


def needs_app(at: str, app: str) -> None:
    """Raises `ConfigError` where messages to an embedded log's agents would find nobody who serves
    them."""
    found = parse(where(at))
    if not app and isinstance(found, Local) and not socket_engine.answers(found.path):
        raise ConfigError(
            "no program serves this embedded log now, so this very command does: say which agents, "
            "with --app app.py"
        )


def execute(work: Coroutine[Any, Any, T], as_json: bool = False) -> T:
    """Run a command's work within its time; an error of ours becomes a message and an exit code."""
    try:
        return run(_in_time(work))
    except HoldfastError as error:
        fail(error, as_json)
    except KeyboardInterrupt:
        raise typer.Exit(signals.interrupted()) from None
    raise AssertionError("not reached")


async def _in_time(work: Coroutine[Any, Any, T]) -> T:
    left = bounds.left()
    try:
        async with asyncio.timeout(None if left is None else left + _GRACE_SECONDS) as bound:
            return await work
    except TimeoutError:
        if not bound.expired():
            raise
    seconds = bounds.timeout or 0.0
    if not bounds.begun:
        raise not_joined(seconds)
    if bounds.reads:
        raise DeadlineExceeded(
            f"no answer within {seconds:g} s: `holdfast status` and `holdfast doctor` say what is "
            "wrong"
        )
    raise OutcomeUnknown(
        f"it was not done within {seconds:g} s, and may be done later: look, before it is tried "
        "again"
    )


def fail(error: HoldfastError, as_json: bool) -> None:
    """Say what went wrong, and exit with 1 never, 2 settings, 3 nothing was done, 4 outcome
    unknown."""
    name = type(error).__name__
    details = (
        error.details
        if isinstance(error, HandlerFailed)
        else "\n".join(getattr(error, "__notes__", ()))
    )
    if as_json:
        out.json(
            {"error": name, "text": str(error), **({"details": details} if details else {})},
            indent=None,
        )
    else:
        problems.block(str(error), Styled(name, "bold red"), ": ")
        if details:
            problems.block(details.rstrip(), "  ", style="dim")
    if isinstance(error, ConfigError):
        raise typer.Exit(EXIT_CONFIG)
    if isinstance(error, NotDone):
        raise typer.Exit(EXIT_NOT_DONE)
    raise typer.Exit(EXIT_UNKNOWN if isinstance(error, Unknown) else EXIT_NEVER)


def ago(seconds: float) -> str:
    """A length of time as people say it."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{max(seconds, 0.0):.0f} s"
