"""A host as a child process: started with its settings, heard until its end. Killed, it takes its server and nodes along."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from holdfast.errors import ConfigError
from holdfast.host.process import encode
from holdfast.host.supervisor import HostSettings, Report


class HostChild:
    """See the module. ``command``: what its command line begins with. ``report``: hears of each event, with the host's name."""

    def __init__(self, settings: HostSettings, command: Sequence[str], report: Report) -> None:
        self.settings = settings
        self.process: asyncio.subprocess.Process | None = None
        self.reader: asyncio.Task[None] | None = None
        self.nodes: dict[str, int] = {}
        """The processes of its nodes that are ready, by their names."""
        self.server_pid = 0
        self._command = command
        self._report = report
        self._error = ""
        self._changed = asyncio.Event()

    async def start(self, timeout_seconds: float, log: Path | None = None) -> None:
        """Return once its server and its nodes are ready; nothing is done where it runs. Raises `ConfigError`.

        ``log``: a file that gets what it prints on its standard error, instead of this process's own.
        """
        if self.process is not None and self.process.returncode is None:
            return
        name = self.settings.name
        self.nodes, self.server_pid, self._error = {}, 0, ""
        with (log or Path(os.devnull)).open("ab") as file:
            self.process = await asyncio.create_subprocess_exec(
                *self._command,
                sys.executable,
                "-m",
                "holdfast.host",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=file if log else None,
                start_new_session=True,
            )
        assert self.process.stdin is not None
        self.process.stdin.write(encode(self.settings))
        self.reader = asyncio.get_running_loop().create_task(self._read())
        try:
            async with asyncio.timeout(timeout_seconds):
                while not self._ready():
                    if self._error or self.reader.done():
                        raise ConfigError(f"host {name} did not start: {self._error or 'its process ended'}")
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise ConfigError(f"host {name} was not ready after {timeout_seconds} s: {self._error}") from None

    def _ready(self) -> bool:
        has_server = self.settings.server is None or self.server_pid != 0
        return has_server and len(self.nodes) >= self.settings.nodes

    async def _read(self) -> None:
        assert self.process is not None and self.process.stdout is not None
        while line := await self.process.stdout.readline():
            try:
                facts: dict[str, Any] = msgspec.json.decode(line, type=dict[str, Any])
            except msgspec.MsgspecError:
                facts = {"event": "said", "text": line.decode(errors="replace").rstrip()}
            event = str(facts.pop("event", ""))
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
        self._changed.set()

    async def stop(self) -> None:
        """End it in order, as `SIGTERM` does; it keeps its part in the cluster."""
        if self.process is None or self.process.returncode is not None:
            return
        self.process.terminate()
        try:
            async with asyncio.timeout(45):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
        if self.reader is not None:
            await asyncio.gather(self.reader, return_exceptions=True)
