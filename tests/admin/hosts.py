"""Hosts as processes of their own, each of which may be another one than the rest: older code,
another clock."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import holdfast
from holdfast.host.process import encode
from holdfast.host.server.nats_config import ServerSettings
from holdfast.host.server.nats_server import find_binary, free_ports
from holdfast.host.settings import HostSettings

SOURCE = Path(holdfast.__file__).parent
MAIN = "import sys; from holdfast.host.process import main; sys.exit(main())"
FAST_CLOCK = "import time; real = time.time; time.time = lambda: real() + 30.0; "
"""Said before `MAIN`: a machine whose clock is half a minute ahead. Every process has the kernel's
clock here, so the function that reads it is replaced, in that host's process alone; nothing of
Holdfast knows of it."""


class HostProcess:
    """One host. ``tree``: the source tree it runs from; ``prelude``: Python that runs first in its
    process."""

    def __init__(self, settings: HostSettings, tree: Path | None = None, prelude: str = "") -> None:
        self.settings = settings
        self.tree = tree
        self.prelude = prelude
        self.events: list[dict[str, Any]] = []
        self._changed = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        environment = dict(os.environ)
        if self.tree is not None:
            environment["PYTHONPATH"] = str(self.tree)
        self.events = []
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            self.prelude + MAIN,
            env=environment,
            start_new_session=True,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(encode(self.settings))
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        while line := await self._process.stdout.readline():
            self.events.append(json.loads(line))
            self._changed.set()
        self._changed.set()

    async def heard(self, event: str, count: int = 1, seconds: float = 240.0) -> dict[str, Any]:
        """Wait for an event; return its newest."""
        async with asyncio.timeout(seconds):
            while len(found := [one for one in self.events if one["event"] == event]) < count:
                assert self._reading is not None and not self._reading.done(), self.events
                self._changed.clear()
                await self._changed.wait()
        return found[-1]

    def pid_of(self, node: str) -> int:
        """The newest process of a node."""
        return int(
            [
                one["node_pid"]
                for one in self.events
                if one.get("node") == node and "node_pid" in one
            ][-1]
        )

    async def kill(self) -> None:
        """``kill -9``: all that it runs dies with it."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            await self._process.wait()
        if self._reading is not None:
            await self._reading


def cohort(
    directory: Path, apps: list[str], names: tuple[str, ...] = ("h1", "h2", "h3")
) -> list[HostProcess]:
    """Hosts that vote together, not started."""
    ports = free_ports(2 * len(names))
    routes = tuple(f"127.0.0.1:{port}" for port in ports[len(names) :])
    urls = [f"nats://127.0.0.1:{port}" for port in ports[: len(names)]]
    made = []
    for index, name in enumerate(names):
        server = ServerSettings(
            name,
            str(directory / name),
            port=ports[index],
            cluster_port=ports[len(names) + index],
            routes=routes,
        )
        made.append(HostProcess(HostSettings(name, server, urls, 1, apps, len(names))))
    return made


def stale_tree(directory: Path) -> Path:
    """A copy of the source of another time: another version, servers of 2.14 allowed, and no word
    of sync_interval.

    The nats-server that it finds is the real one, which says of itself that it is 2.14.1.
    """
    tree = directory / "stale"
    shutil.copytree(SOURCE, tree / "holdfast", ignore=shutil.ignore_patterns("__pycache__"))
    binary = directory / "nats-server"
    binary.write_bytes(find_binary().resolve().read_bytes().replace(b"2.15.1", b"2.14.1"))
    binary.chmod(0o755)
    (tree / "holdfast" / "version.py").write_text('"""Of another time."""\n\nVERSION = "0.0.9"\n')
    for path, old, new in (
        ("host/server/nats_config.py", '"  sync_interval: always",', ""),
        (
            "host/server/nats_server.py",
            "VERSION_MIN: Final = (2, 15, 0)",
            "VERSION_MIN: Final = (2, 14, 0)",
        ),
        (
            "host/server/nats_server.py",
            "    for directory in (",
            f"    return Path({str(binary)!r})\n    for directory in (",
        ),
        ("engines/nats/engine.py", "SERVER_MIN: Final = (2, 15)", "SERVER_MIN: Final = (2, 14)"),
    ):
        change(tree, path, old, new)
    return tree


def mute_tree(directory: Path) -> Path:
    """A copy of the source whose hosts know of no facts."""
    tree = directory / "mute"
    shutil.copytree(SOURCE, tree / "holdfast", ignore=shutil.ignore_patterns("__pycache__"))
    change(tree, "host/operations.py", '"facts": Operation', '"stories": Operation')
    return tree


def change(tree: Path, path: str, old: str, new: str) -> None:
    file = tree / "holdfast" / path
    text = file.read_text()
    assert old in text, path
    file.write_text(text.replace(old, new))
