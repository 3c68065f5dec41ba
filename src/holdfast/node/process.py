"""A node as a process of its own: what `holdfast up` starts, once per core or so.

It tells the host through a pipe of its own when it is ready, and what its agents print. SIGTERM and
SIGINT make it let go of its shards and end. It dies with the host that started it.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import os
import signal
import sys
from typing import Any, Final

import msgspec

from holdfast import limits, loops, said
from holdfast.children import die_with_parent
from holdfast.errors import HoldfastError
from holdfast.loops import run
from holdfast.node.loading import load_agents
from holdfast.node.node import Node
from holdfast.pipes import Teller
from holdfast.security import Security
from holdfast.serving import running

_GC_THRESHOLDS: Final = (20_000, 10, 10)
"""Python's own (700, 10, 10) look through all agents in memory much too often: with 100,000 of them
it stood still for 0.5 s at a time, and a quarter of all work was that. Agents have no cycles that
outlive them; what handlers leave is found later.
"""
_ERROR_PART_CHARACTERS_MAX: Final = 4_000
"""Of what a failure says, and of each note on it: its host drops an event that is too long."""


STACKS_SIGNAL: Final = int(signal.SIGRTMIN) + 7 if hasattr(signal, "SIGRTMIN") else 0
"""Has a node write down where its threads are, also while code in C keeps the interpreter; 0: not
on this system."""


class NodeSettings(msgspec.Struct):
    """Everything that a node process is told."""

    urls: list[str]
    parent: int
    """The process that started it, and that it dies with."""
    apps: list[str] = []
    name: str = ""
    host: str = ""
    incarnation: str = ""
    found: bool = False
    """Whether it may found a cluster, of ``replicas`` copies."""
    replicas: int | None = None
    """How many copies of everything there are to be, at least."""
    labels: list[str] = []
    capacity: float = 1.0
    security: Security = Security()
    events: int = 1
    """The pipe for what the host is to know. A host of an older version reads the standard output
    instead."""

    def __repr__(self) -> str:
        return (
            f"NodeSettings(name={self.name!r}, host={self.host!r}, "
            f"incarnation={self.incarnation!r})"
        )


def _keep_stacks() -> int:
    """Have a signal write the stacks of all threads into a file of this process; return its
    descriptor, -1 for none."""
    if not STACKS_SIGNAL or not hasattr(os, "memfd_create"):
        return -1
    file = os.memfd_create("holdfast-stacks")
    faulthandler.register(STACKS_SIGNAL, file=file, all_threads=True)
    return file


class NodeFailed(Exception):
    """A task of the node ended with an error of ours."""


async def serve(settings: NodeSettings, teller: Teller) -> None:
    """Serve until told to end. Raises `NodeFailed`."""
    stop, joined = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    serving = asyncio.current_task()

    def end() -> None:
        stop.set()
        if not joined.is_set() and serving is not None:
            serving.cancel()  # it serves nothing yet

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    # it reads certificates when it connects: there is nothing to do
    loop.add_signal_handler(signal.SIGHUP, bool)
    failures: list[str] = []

    def failed(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # A part of the node ended that nothing else can do without: its host starts it anew.
        loop.default_exception_handler(context)
        if loops.PART in context:
            failures.append(str(context.get("message")))
            stop.set()

    loop.set_exception_handler(failed)
    kinds = [cls for app in settings.apps for cls in load_agents(app)]
    said.set_up_logging()
    async with Node.join(
        settings.urls,
        serve=kinds,
        name=settings.name,
        host=settings.host,
        incarnation=settings.incarnation,
        found=settings.found,
        replicas=settings.replicas,
        wait=True,
        timeout_seconds=limits.FOUND_SECONDS,
        labels=settings.labels,
        capacity=settings.capacity,
        security=settings.security,
    ) as node:
        joined.set()
        kind_names = [cls.__kind__.name for cls in kinds]
        teller.tell(
            "ready",
            {"incarnation": node.incarnation, "kinds": kind_names, "stacks": _keep_stacks()},
        )
        node._parts.stalls.tell = teller.tell
        await stop.wait()
        teller.tell("ending", {})
    if failures:
        raise NodeFailed(failures[0])
    teller.tell("ended", {})


def main() -> int:
    """``python -m holdfast.node``, with `NodeSettings` as JSON on the standard input."""
    settings = msgspec.json.decode(sys.stdin.buffer.readline(), type=NodeSettings)
    die_with_parent(settings.parent)
    teller = Teller(settings.events)
    if settings.events != sys.stdout.fileno():
        said.take_over(teller, running.agent_id)
    gc.set_threshold(*_GC_THRESHOLDS)
    try:
        run(serve(settings, teller))
    except asyncio.CancelledError:
        teller.tell("ended", {})  # it was told to end before it had joined
    except (HoldfastError, NodeFailed) as error:
        parts = [f"{type(error).__name__}: {error}", *map(str, getattr(error, "__notes__", ()))]
        teller.tell(
            "failed", {"error": "\n".join(part[:_ERROR_PART_CHARACTERS_MAX] for part in parts)}
        )
        return 2
    return 0
