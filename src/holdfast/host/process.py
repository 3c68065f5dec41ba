"""A host as a process of its own: what `holdfast up` and `LocalCluster` start.

It is told its `HostSettings` as JSON on the standard input, and says what happens through the pipe
that it was given, one JSON object a line. SIGTERM and SIGINT make it end in order, and SIGHUP has
it read its settings again. Its children die with it, whatever way it dies.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any, NoReturn

import msgspec

from holdfast import pipes, said
from holdfast.children import die_with_parent
from holdfast.errors import HoldfastError
from holdfast.host.directory import DirectoryLock
from holdfast.host.settings import HostSettings, Report
from holdfast.host.supervisor import Host
from holdfast.loops import run
from holdfast.signals import Signals


class _Told(msgspec.Struct):
    parent: int
    settings: HostSettings
    events: int = 1


def encode(settings: HostSettings, events: int = 1) -> bytes:
    """What to write to the standard input of a host's process started by this one. ``events``: the
    pipe for what it says."""
    return msgspec.json.encode(_Told(os.getpid(), settings, events)) + b"\n"


async def serve(settings: HostSettings, report: Report, lock: DirectoryLock | None = None) -> bool:
    """Run a host until SIGTERM or SIGINT, or until it is to begin again: whether it is. ``lock``:
    on its directory.

    Raises `ConfigError`, `NoQuorum` where it cannot start.
    """
    loop = asyncio.get_running_loop()
    host = Host(settings, report, lock)
    with Signals(host.reload, host.kill) as heard:
        starting = loop.create_task(host.start())
        stopping = loop.create_task(heard.stop.wait())
        again = loop.create_task(host.wants_restart.wait())
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                failing = loop.create_task(host.failed())
                await asyncio.wait({failing, stopping, again}, return_when=asyncio.FIRST_COMPLETED)
                if failing.done():
                    failing.result()
                failing.cancel()
            report("stopping", {})
        finally:
            for task in (starting, stopping, again):
                task.cancel()
            await asyncio.gather(starting, stopping, again, return_exceptions=True)
            await host.stop()
    report("stopped", {})
    return host.wants_restart.is_set() and not heard.stop.is_set()


def begin_again(told: bytes = b"", events: int = 1) -> NoReturn:
    """Become a new process with the same number and the same command; ``told``: what it is to read
    on its standard input.

    ``events``: the pipe for what it says, which it is to inherit.
    """
    if told:
        reading, writing = os.pipe()
        os.write(writing, told)
        os.close(writing)
        os.dup2(reading, 0)
    os.set_inheritable(events, True)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def main() -> int:
    """``python -m holdfast.host``."""
    line = sys.stdin.buffer.readline()
    told = msgspec.json.decode(line, type=_Told)
    die_with_parent(told.parent)
    writer = pipes.Writer(
        lambda text: pipes.write_all(2, f"{text}\n".encode(errors="backslashreplace"))
    )
    events = pipes.Writer(
        lambda text: pipes.write_all(1, f"{text}\n".encode(errors="backslashreplace"))
    )
    teller = pipes.Teller(told.events) if told.events != 1 else None

    dropped = 0

    def report(event: str, facts: dict[str, Any]) -> None:
        nonlocal dropped
        if teller is not None:
            is_print = event == "node-said"
            if (
                is_print
                and dropped
                and teller.tell(
                    event, {**facts, "text": pipes.dropped_text(dropped)}, may_drop=True
                )
            ):
                dropped = 0
            if not teller.tell(event, facts, may_drop=is_print) and is_print:
                dropped += 1
        else:
            events.put(json.dumps({"event": event, "pid": os.getpid(), **facts}))

    try:
        said.log_to(writer)
        if run(serve(told.settings, report)):
            begin_again(line, told.events)
    except HoldfastError as error:
        report("failed", {"error": f"{type(error).__name__}: {error}"})
        return 2
    finally:
        writer.close()
        events.close()
    return 0
