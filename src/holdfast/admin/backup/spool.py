"""What the tails of a backup have read so far: the newest record of each subject, in a file that is
thrown away.

A large cluster has more than fits in memory, and a record is replaced while others are still being
read.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from holdfast import files
from holdfast.engines.base import Stored
from holdfast.errors import ConfigError


class Spool:
    """A SQLite file beside the backup. Raises `ConfigError` where the disk does not take it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.unlink(missing_ok=True)
        try:
            os.close(files.create(path))
            self._connection = sqlite3.connect(path, isolation_level=None)
            self._connection.executescript(
                "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -32000;"
                "CREATE TABLE records (subject TEXT PRIMARY KEY, cell INTEGER, sequence INTEGER, "
                "payload BLOB)"
            )
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"{path} cannot be written: {error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._connection.close()
        self._path.unlink(missing_ok=True)

    def put(self, cell: int, records: Iterable[Stored]) -> None:
        """Take records, each instead of the one before on its subject."""
        rows = [(subject, cell, sequence, payload) for subject, sequence, payload in records]
        try:
            self._connection.execute("BEGIN")
            self._connection.executemany("INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?)", rows)
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise ConfigError(f"{self._path} cannot be written: {error}") from None

    def get(self, subject: str) -> bytes | None:
        """The newest payload on a subject."""
        found = self._connection.execute(
            "SELECT payload FROM records WHERE subject = ?", (subject,)
        ).fetchone()
        return None if found is None else found[0]

    def in_order(self, cell: int) -> Iterator[Stored]:
        """The records of a cell, in the order of their sequences."""
        self._connection.execute("CREATE INDEX IF NOT EXISTS places ON records (cell, sequence)")
        rows = self._connection.execute(
            "SELECT subject, sequence, payload FROM records WHERE cell = ? ORDER BY sequence",
            (cell,),
        )
        for row in rows:
            yield Stored(*row)
