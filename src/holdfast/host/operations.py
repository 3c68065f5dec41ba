"""The operations that a host answers: one table, see `holdfast.host.rpc.service`."""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
import time
from pathlib import Path

import msgspec

from holdfast.errors import ConfigError, HoldfastError
from holdfast.host import vote_operations
from holdfast.host.changes import Changes
from holdfast.host.rpc.facts import Certificate, HostFacts, HostSight, NodeFacts, Replicas
from holdfast.host.rpc.service import Nothing, Operation
from holdfast.host.server.server_admin import ServerAdmin, ServerFacts
from holdfast.host.this_host import ThisHost
from holdfast.version import VERSION


class Rebuild(msgspec.Struct, forbid_unknown_fields=True):
    """Which replica to throw away: the stream, and the name of its Raft group."""

    stream: str
    raft_group: str


class Operations:
    """What one host can be asked."""

    def __init__(self, host: ThisHost, changes: Changes) -> None:
        self._host = host
        self._changes = changes

    def table(self) -> dict[str, Operation]:
        """All of them, by name."""
        return {
            "facts": Operation(Nothing, self.facts),
            "sight": Operation(Nothing, self.sight),
            "replicas": Operation(Nothing, self.replicas),
            "restart": Operation(Nothing, self.restart),
            **vote_operations.table(self._host, self._changes.guards),
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
            paths = [
                server.settings.directory,
                str(server.config_path),
                host.settings.security.tls_key,
            ]
            facts.modes = {
                path: Path(path).stat().st_mode & 0o777
                for path in paths
                if path and Path(path).exists()
            }
            facts.server_pid, facts.server_starts = server.pid, server.starts
            found, trouble = await asyncio.gather(
                host.system.facts(), host.system.health(), return_exceptions=True
            )
            # what it says of itself counts for less than that it says nothing
            for one in (trouble, found):
                if isinstance(one, HoldfastError):
                    facts.server_trouble = str(one)
                elif isinstance(one, BaseException):
                    raise one
            if isinstance(found, ServerFacts):
                facts.server, found.pid = found, server.pid
                facts.server_trouble = trouble if isinstance(trouble, str) else facts.server_trouble
        if host.seat is not None:
            facts.entry, facts.seat_trouble = host.seat.entry, host.seat.trouble
            facts.votes = host.seat.votes
        facts.certificates = self._certificates()
        return facts

    async def sight(self, _: Nothing) -> HostSight:
        """Whom it hears, and who votes as far as it knows: from memory, without asking anybody."""
        host = self._host
        heard = host.heard.ago()
        votes, seat = host.votes, host.seat
        record, sequence = (None, 0) if seat is None else (seat.record, seat.sequence)
        up_seconds = time.time() - host.started_at
        sight = HostSight(
            host.settings.name, time.time(), up_seconds, votes, heard, record, sequence
        )
        if host.server is not None:
            sight.founders = len(host.server.settings.routes)
        sight.away = host.away()
        return sight

    def _certificates(self) -> list[Certificate]:
        host = self._host
        security = host.settings.security
        found = []
        if host.system is not None and (expires := host.system.certificate_expires()):
            found.append(Certificate(security.tls_cert, expires))
        if security.tls_ca and Path(security.tls_ca).is_file():
            context = ssl.create_default_context(cafile=security.tls_ca)
            ends = [
                ssl.cert_time_to_seconds(str(one["notAfter"])) for one in context.get_ca_certs()
            ]
            found += [Certificate(security.tls_ca, end) for end in ends[:1]]
        return found

    async def replicas(self, _: Nothing) -> Replicas:
        """What its server keeps of each stream. Raises `ConfigError` where it has no server of its
        own."""
        system = self._own_server()
        return Replicas(system.server_name(), await system.replicas())

    async def restart(self, _: Nothing) -> Nothing:
        """End all that it runs, in order, and begin again as a new process with the code that is
        installed by then.

        Raises `NoQuorum` where the others have no majority without this server, `Conflict` while
        another host is away.
        """
        await self._changes.restart()
        return Nothing()

    async def rebuild(self, what: Rebuild) -> None:
        """Stop the server, throw its copy of one stream away, and start it; the others then send it
        a new one.

        It answers before it begins. Raises `ConfigError` without a server of its own, and what
        `Changes.rebuild` does.
        """
        self._own_server()
        await self._changes.rebuild(what.stream, what.raft_group)

    def _own_server(self) -> ServerAdmin:
        if self._host.system is None:
            raise ConfigError(f"host {self._host.settings.name} runs no server of its own")
        return self._host.system
