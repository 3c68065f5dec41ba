"""The one thread that writes: it commits everything that waits in one transaction, with one fsync.

Naive: each append its own transaction; then one disk does a few hundred appends a second. Here the
event loop gathers the appends of a tick and hands them over as one list, the thread takes all lists
that wait, writes them in one transaction and tells the loop once. Each append is still all or
nothing: its expectations are checked before anything of it is written, against an index of the
newest sequence per subject that this thread alone keeps.

After a commit whose fsync failed nothing is known about the file, so the writer dies: what waited
is `Unknown`, and all later appends are refused (PostgreSQL learnt this in 2018: "fsyncgate"). It
dies as well when the files that it writes are not the ones at their path any more: a cleaner of
temporary directories removed them, a disk was unmounted. A file without a name takes writes and
fsyncs as any other, and is gone with this process. So between each commit and its acknowledgement
the path is compared with what is open.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from holdfast.engines.base import Record, Stored
from holdfast.errors import (
    Closed,
    Conflict,
    Fenced,
    HoldfastError,
    InvalidName,
    StorageFailed,
    Unknown,
)

Applied = Callable[[str, list[Stored]], None]
Work = Callable[[sqlite3.Connection], Any]


_IDLE_SECONDS: Final = 1.0
"""How often an idle writer looks whether its files are there."""

_FULL: Final = ("SQLITE_FULL", "SQLITE_BUSY")
_WHY: Final = {
    "SQLITE_FULL": "its disk is full; free some space, and it goes on by itself",
    "SQLITE_READONLY": "the disk, or the file, cannot be written",
    "SQLITE_IOERR": "the disk gives errors, or the file may not grow",
    "SQLITE_BUSY": "another program has it locked",
}
_logger = logging.getLogger(__name__)


class Place:
    """Where the log's files are, and which files they were when they were opened."""

    def __init__(self, path: Path, identity: tuple[int, int]) -> None:
        self.path = path
        self._files = {str(path): identity}

    def opened(self) -> None:
        """The file of changes beside it is there now. Raises `OSError`."""
        # SQLite follows a link to the log, and writes beside its end
        path = os.path.realpath(self.path) + "-wal"
        found = os.stat(path)  # noqa: PTH116  (a Path costs more than the call)
        self._files[path] = found.st_dev, found.st_ino

    def gone(self) -> str:
        """What is wrong with the paths, empty where they lead to what is open."""
        for path, identity in self._files.items():
            try:
                found = os.stat(path)  # noqa: PTH116
            except OSError as error:
                return (
                    f"{path} is gone ({error.strerror}): it was removed or renamed, or its disk "
                    "was unmounted"
                )
            if (found.st_dev, found.st_ino) != identity:
                return (
                    f"{path} is another file than the one that this process has open: it was "
                    "replaced"
                )
        return ""


class _Append:
    __slots__ = ("cell", "future", "records", "result")

    def __init__(self, cell: str, records: Sequence[Record], future: asyncio.Future[range]) -> None:
        self.cell = cell
        self.records = records
        self.future: asyncio.Future[Any] = future
        self.result: range | HoldfastError | None = None


class _Task:
    __slots__ = ("future", "result", "work")

    def __init__(self, work: Work, future: asyncio.Future[Any]) -> None:
        self.work = work
        self.future = future
        self.result: Any = None


class Cell:
    """A cell as the writer knows it: the newest sequence of each subject, and of all."""

    def __init__(self, number: int, last: int, newest: dict[str, int]) -> None:
        self.number = number
        self.last = last
        self.newest = newest


class Writer:
    """See the module. ``applied`` is called on the loop after each commit, per cell, with the
    records in order."""

    def __init__(self, connection: sqlite3.Connection, place: Place, applied: Applied) -> None:
        self._connection = connection
        self._place = place
        self._applied = applied
        self._loop = asyncio.get_running_loop()
        self._gathered: list[_Append | _Task] = []
        self._handed: deque[list[_Append | _Task]] = deque()
        self._wake = threading.Semaphore(0)
        self.closing = False
        """Nothing more is taken; what was handed over is still written."""
        self._dead: str = ""
        self.on_failed: Callable[[str], None] = _nobody
        """Called on the loop when it dies."""
        self._undo: list[tuple[Cell, int, dict[str, int]]] = []
        self._made: list[str] = []
        self._dropped: dict[str, Cell] = {}
        self._thread = threading.Thread(target=self._run, name="holdfast-writer", daemon=True)
        self.cells: dict[str, Cell] = {}
        """Used on the thread only, once it runs."""
        self.last = 0
        self.commits = 0
        self.records = 0

    def read(self) -> None:
        """Read the index. Raises `sqlite3.Error`, `OSError`."""
        for name, number, last in self._connection.execute("SELECT name, number, last FROM cells"):
            rows = self._connection.execute(
                "SELECT subject, sequence FROM records WHERE cell = ?", (number,)
            )
            self.cells[name] = Cell(number, last, dict(rows))
            self.last = max(self.last, last)
        self._place.opened()

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def append(self, cell: str, records: Sequence[Record]) -> asyncio.Future[range]:
        """Hand over one append; the future ends with its sequences."""
        future: asyncio.Future[range] = self._loop.create_future()
        self._gather(_Append(cell, records, future))
        return future

    def call(self, work: Work) -> asyncio.Future[Any]:
        """Do something else in the writer's transaction; the future ends with its result."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self._gather(_Task(work, future))
        return future

    def _gather(self, item: _Append | _Task) -> None:
        if self.closing:
            raise Closed("the log was closed")
        if self._dead:
            raise StorageFailed(self._dead)
        if not self._gathered:
            self._loop.call_soon(self._hand_over)
        self._gathered.append(item)

    def _hand_over(self) -> None:
        gathered, self._gathered = self._gathered, []
        self._handed.append(gathered)
        self._wake.release()

    async def close(self) -> None:
        """Write what waits, and end."""
        if not self.closing:
            self.closing = True
            if self._gathered:
                self._hand_over()
            self._wake.release()
        while self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)

    # On the thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            if not self._wake.acquire(timeout=_IDLE_SECONDS):
                if not self._dead and (gone := self._place.gone()):
                    self._die(gone)
                continue
            waiting: list[_Append | _Task] = []
            while self._handed:
                waiting += self._handed.popleft()
            if waiting:
                changed = self._write(waiting)
                self._loop.call_soon_threadsafe(self._tell, waiting, changed)
            elif self.closing and not self._handed:
                return

    def _write(self, waiting: list[_Append | _Task]) -> dict[str, list[Stored]]:
        if self._dead:
            for item in waiting:
                item.result = StorageFailed(self._dead)
            return {}
        changed: dict[str, list[Stored]] = {}
        self._undo = []
        self._made = []
        self._dropped = {}
        last = self.last
        connection = self._connection
        committing = False
        try:
            connection.execute("BEGIN IMMEDIATE")
            rows: list[tuple[int, int, str, bytes]] = []
            replaced: list[tuple[int]] = []
            for item in waiting:
                if isinstance(item, _Append):
                    self._append(item, rows, replaced, changed)
                    continue
                self._flush(rows, replaced)
                try:
                    item.result = item.work(connection)
                except HoldfastError as error:
                    item.result = error
            self._flush(rows, replaced)
            lasts = {cell.number: cell.last for cell, _, _ in self._undo}
            connection.executemany(
                "UPDATE cells SET last = ? WHERE number = ?", [(v, k) for k, v in lasts.items()]
            )
            committing = True
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._failed(error, committing, waiting)
            self.last = last
            for cell, before, sequences in reversed(self._undo):
                cell.last = before
                for subject, sequence in sequences.items():
                    if sequence:
                        cell.newest[subject] = sequence
                    else:
                        cell.newest.pop(subject, None)
            for name in self._made:
                self.cells.pop(name, None)
            self.cells.update(self._dropped)
            return {}
        if gone := self._place.gone():
            self._die(gone)
            _all_fail(waiting, Unknown(self._dead))
            return {}
        self.commits += 1
        return changed

    def add_cells(
        self, connection: sqlite3.Connection, names: Sequence[str], first_sequence: int = 1
    ) -> None:
        """Make the cells that are missing, as part of the transaction that a `call` runs in."""
        for name in names:
            if name not in self.cells:
                number = 1 + max((cell.number for cell in self.cells.values()), default=0)
                last = first_sequence - 1
                connection.execute(
                    "INSERT INTO cells (name, number, last) VALUES (?, ?, ?)", (name, number, last)
                )
                self.cells[name] = Cell(number, last, {})
                self.last = max(self.last, last)  # sequences are one row for all cells of the file
                self._made.append(name)

    def drop_cells(self, connection: sqlite3.Connection, names: Sequence[str]) -> None:
        """Remove cells with their records, as part of the transaction that a `call` runs in.

        Their numbers may be given again, so none of their rows may stay.
        """
        for name in names:
            cell = self.cells.pop(name, None)
            if cell is not None:
                self._dropped[name] = cell
                connection.execute("DELETE FROM records WHERE cell = ?", (cell.number,))
                connection.execute("DELETE FROM cells WHERE number = ?", (cell.number,))

    def forget(self, cell: Cell, subjects: list[str]) -> None:
        """Take purged subjects out of the index, as part of the transaction that a `call` runs
        in."""
        self._undo.append(
            (cell, cell.last, {subject: cell.newest.pop(subject) for subject in subjects})
        )

    def _append(
        self,
        item: _Append,
        rows: list[tuple[int, int, str, bytes]],
        replaced: list[tuple[int]],
        changed: dict[str, list[Stored]],
    ) -> None:
        cell = self.cells.get(item.cell)
        if cell is None:
            item.result = InvalidName(f"there is no cell {item.cell!r}")
            return
        newest = cell.newest
        for _, _, expect in item.records:
            if expect is not None and newest.get(expect.subject, 0) != expect.sequence:
                fenced = any(
                    r.expect is not None and r.expect.subject != r.subject for r in item.records
                )
                text = (
                    f"{expect.subject} is at {newest.get(expect.subject, 0)}, not {expect.sequence}"
                )
                item.result = Fenced(text) if fenced else Conflict(text)
                return
        first = sequence = self.last + 1
        stored = changed.setdefault(item.cell, [])
        number = cell.number
        before: dict[str, int] = {}
        self._undo.append((cell, cell.last, before))
        for subject, payload, _ in item.records:
            old = newest.get(subject, 0)
            before[subject] = old
            if old:
                replaced.append((old,))
            newest[subject] = sequence
            rows.append((sequence, number, subject, payload))
            stored.append(Stored(subject, sequence, payload))
            sequence += 1
        cell.last = self.last = sequence - 1
        item.result = range(first, sequence)

    def _flush(self, rows: list[tuple[int, int, str, bytes]], replaced: list[tuple[int]]) -> None:
        if rows:
            self.records += len(rows)
            execute = self._connection.executemany
            execute(
                "INSERT INTO records (sequence, cell, subject, payload) VALUES (?, ?, ?, ?)", rows
            )
            execute("DELETE FROM records WHERE sequence = ?", replaced)
            rows.clear()
            replaced.clear()

    def _failed(
        self, error: sqlite3.Error, committing: bool, waiting: list[_Append | _Task]
    ) -> None:
        name = getattr(error, "sqlite_errorname", "")
        full = name.startswith(_FULL)
        try:
            self._connection.execute("ROLLBACK")
        except sqlite3.Error:
            full = full and not self._connection.in_transaction
        why = next(
            (text for code, text in _WHY.items() if name.startswith(code)), "it cannot be written"
        )
        if full or not committing:
            _all_fail(
                waiting,
                StorageFailed(f"nothing was written to {self._place.path}: {why} ({error})"),
            )
        else:
            self._die(f"{self._place.path} could not be made durable: {why} ({error})")
            _all_fail(waiting, Unknown(self._dead))

    def _die(self, why: str) -> None:
        self._dead = (
            f"{why}; this log takes nothing more, and a new start reads what is on the disk"
        )
        _logger.critical("%s", self._dead)
        self._loop.call_soon_threadsafe(lambda: self.on_failed(self._dead))

    def _tell(self, waiting: list[_Append | _Task], changed: dict[str, list[Stored]]) -> None:
        for item in waiting:
            future, result = item.future, item.result
            if future.done():
                continue
            if isinstance(result, HoldfastError):
                future.set_exception(result)
            else:
                future.set_result(result)
        for cell, stored in changed.items():
            self._applied(cell, stored)


def _all_fail(waiting: list[_Append | _Task], error: HoldfastError) -> None:
    for item in waiting:
        if not isinstance(item.result, HoldfastError):
            item.result = error


def _nobody(_why: str) -> None:
    pass
