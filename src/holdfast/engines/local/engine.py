"""The engine in one process: one SQLite file, and a lock that keeps every other process out."""

from __future__ import annotations

import asyncio
import errno
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from holdfast import files, limits
from holdfast.engines import checks
from holdfast.engines.base import Engine
from holdfast.engines.local.blobs import LocalBlobs
from holdfast.engines.local.bus import LocalBus
from holdfast.engines.local.lock import InUse, Lock
from holdfast.engines.local.log import LocalLog
from holdfast.engines.local.socket_server import SocketServer
from holdfast.engines.local.writer import Place, Writer
from holdfast.errors import Closed, ConfigError, NotFound

FORMAT: Final = 1
_APPLICATION: Final = 0x48464C47  # "HFLG", in the file's header, so that `file` and we know it
_SCHEMA: Final = """
CREATE TABLE cells (
  name TEXT PRIMARY KEY, number INTEGER NOT NULL UNIQUE, last INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE records (
  sequence INTEGER PRIMARY KEY, cell INTEGER NOT NULL,
  subject TEXT NOT NULL, payload BLOB NOT NULL);
CREATE TABLE blobs (key TEXT PRIMARY KEY, checksum INTEGER NOT NULL, value BLOB NOT NULL);
"""


class LocalEngine(Engine):
    """See `holdfast.engines.base.Engine`. ``path``: the file; it is made where there is none, its
    directory as well."""

    name = "local"
    record_bytes_max = limits.RECORD_BYTES_MAX
    batch_records_max = limits.BATCH_RECORDS_MAX
    batch_bytes_max = limits.BATCH_BYTES_MAX

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = Lock(self.path)
        self._connections: list[sqlite3.Connection] = []
        self._writer: Writer | None = None
        self._socket_server = SocketServer(self, self.path)

    async def open(self) -> None:
        try:
            files.make_directory(self.path.parent)
            self._lock.take()
            connection = self._prepare()
            reader = self._connect()
            reader.execute("PRAGMA query_only = ON")
            # The loop hears of a commit from the writer, and the log's tails from the loop.
            writer = Writer(
                connection,
                Place(self.path, self._lock.identity),
                lambda cell, records: self.log.applied(cell, records),
            )
            writer.read()
        except InUse as error:
            await self.close()
            raise ConfigError(
                f"{self.path} is open in process {error.owner}: one process at a time has an "
                "embedded log. Stop that one, or run a cluster. Commands without --app, and nodes "
                "that serve nothing, ask that process"
            ) from None
        except (OSError, sqlite3.Error) as error:
            await self.close()
            raise ConfigError(f"{self.path} cannot be opened: {error}{_advice(error)}") from None
        except ConfigError:
            await self.close()
            raise
        self._writer = writer
        self.log: LocalLog = LocalLog(self._writer, reader)
        self.blobs: LocalBlobs = LocalBlobs(self._writer, reader)
        self.bus: LocalBus = LocalBus()
        self.log.note_cells()
        self._writer.start()

    async def let_in(self) -> None:
        """Let other processes of this user visit the log, as clients: see
        `holdfast.engines.local.socket_server`."""
        await self._socket_server.open()

    def when_failed(self, tell: Callable[[str], None]) -> None:
        if self._writer is not None:
            self._writer.on_failed = tell

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, isolation_level=None, check_same_thread=False, cached_statements=32
        )
        self._connections.append(connection)
        return connection

    def _prepare(self) -> sqlite3.Connection:
        connection = self._connect()
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if tables and application != _APPLICATION:
            raise ConfigError(
                f"{self.path} is a SQLite file of something else; give a path of its own"
            )
        if version > FORMAT:
            raise ConfigError(
                f"{self.path} was written by a newer Holdfast (format {version}); upgrade this one"
            )
        connection.execute("PRAGMA journal_mode = WAL")
        # with WAL: one fsync at each commit, before it returns
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA wal_autocheckpoint = 4000")
        connection.execute("PRAGMA cache_size = -32000")
        if not tables:
            connection.executescript(
                f"BEGIN; {_SCHEMA} PRAGMA application_id = {_APPLICATION}; PRAGMA user_version = "
                f"{FORMAT}; COMMIT;"
            )
        return connection

    async def close(self) -> None:
        """Several may close at once, and be cancelled: each goes on only when the thread that
        writes has ended.

        SQLite's connections are that thread's; closed under it, they end the process (SIGSEGV).
        """
        await self._socket_server.close()
        writer = self._writer
        if writer is not None:
            self.log.close()
            self.blobs.closed = self.bus.closed = True
            await writer.close()
            self._writer = None
        connections, self._connections = self._connections, []
        for connection in reversed(connections):
            connection.close()
        self._lock.release()

    async def ensure_cells(
        self, cells: Sequence[str], replicas: int, first_sequence: int = 1
    ) -> None:
        for cell in cells:
            checks.check_cell(cell)
        if replicas != 1:
            raise ConfigError(
                f"the local engine keeps one copy, not {replicas}: leave replicas out, or run a "
                "cluster"
            )
        writer = self._open()
        await asyncio.shield(
            writer.call(lambda connection: writer.add_cells(connection, cells, first_sequence))
        )
        self.log.note_cells()

    async def check_cells(self, cells: Sequence[str]) -> int:
        there = await self.cells()
        for cell in cells:
            if checks.check_cell(cell) not in there:
                raise NotFound(f"there is no cell {cell}")
        return 1

    async def cells(self) -> list[str]:
        self._open()
        return self.log.cells()

    async def drop_cells(self, cells: Sequence[str]) -> None:
        for cell in cells:
            checks.check_cell(cell)
        writer = self._open()
        await asyncio.shield(writer.call(lambda connection: writer.drop_cells(connection, cells)))
        self.log.note_cells()

    def _open(self) -> Writer:
        if self._writer is None or self._writer.closing:
            raise Closed("the engine is not open")
        return self._writer

    def connected(self) -> bool:
        return self._writer is not None and not self._writer.closing

    def servers(self) -> int:
        return 1

    def statistics(self) -> Mapping[str, int | float | str]:
        writer = self._writer
        if writer is None:
            return {}
        return {
            "commits": writer.commits,
            "records": writer.records,
            "published": self.bus.published,
        }


def _advice(error: Exception) -> str:
    """What to do about it, where that is known."""
    name, number = getattr(error, "sqlite_errorname", ""), getattr(error, "errno", None)
    if name.startswith("SQLITE_FULL") or number in (errno.ENOSPC, errno.EDQUOT):
        return "; its disk is full: free some space"
    if number == errno.EROFS:
        return "; its disk is read-only: give a path on another one, or have it mounted for writing"
    if isinstance(error, PermissionError) or name.startswith(
        ("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")
    ):
        return (
            "; this user must be able to write the file and its directory: change their rights, or "
            "give another path"
        )
    return ""
