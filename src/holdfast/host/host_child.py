"""A host as a child process: started with its settings, heard until its end. Killed, it takes its
server and nodes along."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from typing import Any

from holdfast.children import python
from holdfast.errors import ConfigError
from holdfast.host import spawn
from holdfast.host.process import encode
from holdfast.host.settings import HostSettings, Report


class HostChild:
    """See the module. ``command``: what its command line begins with. ``report``: hears of each
    event, with the host's name."""

    def __init__(self, settings: HostSettings, command: Sequence[str], report: Report) -> None:
        self.settings = settings
        self.process: asyncio.subprocess.Process | None = None
        self.reader: asyncio.Task[None] | None = None
        self.nodes: dict[str, int] = {}
        """The processes of its nodes that are ready, by their names."""
        self.server_pid = 0
        self._child: spawn.Child | None = None
        self._command = command
        self._report = report
        self._error = ""
        self._changed = asyncio.Event()
        self._told_to_end = False

    @property
    def pid(self) -> int:
        """Its process; 0 while it does not run."""
        return (
            0 if self.process is None or self.process.returncode is not None else self.process.pid
        )

    async def start(self, timeout_seconds: float) -> None:
        """Return once its server and its nodes are ready; nothing is done where it runs. Raises
        `ConfigError`."""
        if self.process is not None and self.process.returncode is None:
            return
        name = self.settings.name
        self.nodes, self.server_pid, self._error, self._told_to_end = {}, 0, "", False
        self._child = await spawn.start(
            [*self._command, *python("holdfast.host")],
            lambda events: encode(self.settings, events),
            self._heard,
            lambda text: self._report("host-said", {"host": name, "text": text}),
        )
        self.process = self._child.process
        self.reader = asyncio.get_running_loop().create_task(self._wait(self._child))
        try:
            async with asyncio.timeout(timeout_seconds):
                while not self._ready():
                    if self._error or self.reader.done():
                        raise ConfigError(
                            f"host {name} did not start: {self._error or 'its process ended'}"
                        )
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise ConfigError(
                f"host {name} was not ready after {timeout_seconds} s: {self._error}"
            ) from None

    def _ready(self) -> bool:
        has_server = self.settings.server is None or self.server_pid != 0
        return has_server and len(self.nodes) >= self.settings.nodes

    def _heard(self, event: str, facts: dict[str, Any]) -> None:
        if event == "node-ready":
            self.nodes[facts["node"]] = facts["node_pid"]
        elif event == "node-ended":
            self.nodes.pop(facts["node"], None)
            self._error = str(facts.get("error", ""))
        elif event == "server":
            self.server_pid = facts["server_pid"]
        elif event == "failed":
            self._error = str(facts.get("error", ""))
        self._changed.set()
        self._report(event, {"host": self.settings.name, **facts})

    async def _wait(self, child: spawn.Child) -> None:
        code = await child.wait()
        self.nodes, self.server_pid = {}, 0
        self._changed.set()
        if not self._told_to_end:
            self._report(
                "host-ended", {"host": self.settings.name, "code": code, "error": self._error}
            )

    async def ended(self) -> None:
        """Return when its process has ended."""
        if self.reader is not None:
            await asyncio.wait({self.reader})

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, if it runs."""
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(number)

    async def stop(self) -> None:
        """End it in order, as `SIGTERM` does; it keeps its part in the cluster."""
        if self.process is None or self.process.returncode is not None:
            return
        self._told_to_end = True
        self.process.terminate()
        try:
            async with asyncio.timeout(45):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
        if self.reader is not None:
            await asyncio.gather(self.reader, return_exceptions=True)
