"""The operations that a host answers: one table, see `holdfast.host.service`."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from holdfast.engines.nats.streams import OURS
from holdfast.errors import ConfigError, HoldfastError, InvalidName, NotFound
from holdfast.host import voting
from holdfast.host.facts import Certificate, HostFacts, NodeFacts, Replicas
from holdfast.host.service import Nothing, Operation
from holdfast.host.system import System
from holdfast.version import VERSION

if TYPE_CHECKING:
    from holdfast.host.supervisor import Host


class Rebuild(msgspec.Struct, forbid_unknown_fields=True):
    """Which replica to throw away: the stream, and the name of its Raft group."""

    stream: str
    raft_group: str


class Operations:
    """What one host can be asked."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def table(self) -> dict[str, Operation]:
        """All of them, by name."""
        return {
            "facts": Operation(Nothing, self.facts),
            "replicas": Operation(Nothing, self.replicas),
            "restart": Operation(Nothing, self.restart),
            **voting.operations(self._host),
            "rebuild": Operation(Rebuild, self.rebuild),
        }

    async def facts(self, _: Nothing) -> HostFacts:
        """Itself: processes, disk, clock, server."""
        host = self._host
        server = host.server
        facts = HostFacts(
            host.settings.name,
            os.getpid(),
            VERSION,
            host.started_at,
            time.time(),
            [] if server is None else list(server.settings.routes),
            [
                NodeFacts(
                    child.name,
                    child.incarnation,
                    child.process.pid if child.process is not None else 0,
                    child.ready,
                    child.starts,
                    child.error,
                    child.last_end,
                    child.ends_recent(),
                )
                for child in host.children
            ],
        )
        if server is not None and host.system is not None:
            disk = shutil.disk_usage(server.settings.directory)
            facts.directory = server.settings.directory
            facts.disk_bytes, facts.disk_free_bytes = disk.total, disk.free
            facts.config_mode = server.config_path.stat().st_mode & 0o777
            paths = [server.settings.directory, str(server.config_path), host.settings.security.tls_key]
            facts.modes = {path: Path(path).stat().st_mode & 0o777 for path in paths if path and Path(path).exists()}
            facts.server_pid, facts.server_starts = server.pid, server.starts
            try:
                facts.server = await host.system.facts()
                facts.server.pid = server.pid
                facts.server_trouble = await host.system.health()
            except HoldfastError as error:
                facts.server_trouble = str(error)
        if host.seat is not None:
            facts.entry, facts.seat_trouble = host.seat.entry, host.seat.trouble
            facts.votes = host.seat.votes
        facts.certificates = self._certificates()
        return facts

    def _certificates(self) -> list[Certificate]:
        host = self._host
        security = host.settings.security
        found = []
        if host.system is not None and (expires := host.system.certificate_expires()):
            found.append(Certificate(security.tls_cert, expires))
        if security.tls_ca and Path(security.tls_ca).is_file():
            context = ssl.create_default_context(cafile=security.tls_ca)
            ends = [ssl.cert_time_to_seconds(str(one["notAfter"])) for one in context.get_ca_certs()]
            found += [Certificate(security.tls_ca, end) for end in ends[:1]]
        return found

    async def replicas(self, _: Nothing) -> Replicas:
        """What its server keeps of each stream. Raises `ConfigError` where it has no server of its own."""
        system = self._own_server()
        return Replicas(system.server_name(), await system.replicas())

    async def restart(self, _: Nothing) -> Nothing:
        """End all that it runs, in order, and begin again as a new process with the code that is installed by then."""
        self._host.wants_restart.set()
        return Nothing()

    async def rebuild(self, what: Rebuild) -> None:
        """Stop the server, throw its replica of one stream away, and start it; the others then send it a new copy.

        It answers before it begins. Whoever asks has made sure that the others have everything. Raises `ConfigError`
        without a server of its own, `InvalidName` for a stream that is not Holdfast's, `NotFound` for no replica.
        """
        self._own_server()
        server = self._host.server
        assert server is not None
        if not OURS.fullmatch(what.stream) or not re.fullmatch(r"[A-Za-z0-9_-]+", what.raft_group):
            raise InvalidName(f"{what.stream!r} in {what.raft_group!r} is no stream of Holdfast's")
        root = Path(server.settings.directory) / "jetstream"
        found = [*root.glob(f"*/*/streams/{what.stream}"), *root.glob(f"*/*/_js_/{what.raft_group}")]
        if not any(path.parent.name == "streams" for path in found):
            raise NotFound(f"host {self._host.settings.name} keeps no replica of {what.stream}")
        # The answer goes through this very server.
        asyncio.get_running_loop().call_later(0.2, self._host.rebuild, found)

    def _own_server(self) -> System:
        if self._host.system is None:
            raise ConfigError(f"host {self._host.settings.name} runs no server of its own")
        return self._host.system
