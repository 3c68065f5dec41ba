"""The log in one SQLite file: rows in the order of their sequences, the newest of each subject."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from weakref import WeakSet

from holdfast import limits
from holdfast.engines import checks
from holdfast.engines.base import Chunk, Log, Record, Stored, matcher
from holdfast.engines.local.writer import Writer
from holdfast.errors import Closed, InvalidName

_PAGE = 2000


class LocalLog(Log):
    """See `holdfast.engines.base.Log`. ``reader`` is a connection of its own: readers never wait
    for the writer."""

    def __init__(self, writer: Writer, reader: sqlite3.Connection) -> None:
        self._writer = writer
        self._reader = reader
        self._closed = False
        self._numbers: dict[str, int] = {}
        self._tails: WeakSet[_Tail] = WeakSet()
        self._committed: dict[str, int] = {}

    def note_cells(self) -> None:
        """Learn which cells there are, and how far they go."""
        rows = self._reader.execute("SELECT name, number, last FROM cells").fetchall()
        self._numbers = {name: number for name, number, _ in rows}
        self._committed = {name: max(last, self._committed.get(name, 0)) for name, _, last in rows}

    def cells(self) -> list[str]:
        """Their names."""
        return sorted(self._numbers)

    def applied(self, cell: str, records: list[Stored]) -> None:
        """A transaction was committed: wake the tails."""
        if records:
            self._committed[cell] = records[-1].sequence
            for tail in list(self._tails):
                if tail.cell == cell:
                    tail.offer(records)

    def close(self) -> None:
        """End all tails with `Closed`."""
        self._closed = True
        for tail in list(self._tails):
            tail.wake.set()

    def _number(self, cell: str) -> int:
        if self._closed:
            raise Closed("the log was closed")
        number = self._numbers.get(cell)
        if number is None:
            checks.check_cell(cell)
            raise InvalidName(f"there is no cell {cell!r}")
        return number

    async def _append(self, cell: str, records: Sequence[Record]) -> range:
        self._number(cell)
        checks.check_batch(
            cell, records, limits.RECORD_BYTES_MAX, limits.BATCH_RECORDS_MAX, limits.BATCH_BYTES_MAX
        )
        # A caller that is cancelled must not leave the writer with a cancelled future: the append
        # goes on.
        return await asyncio.shield(self._writer.append(cell, records))

    async def _read(self, cell: str, subject: str) -> Stored | None:
        self._number(cell)
        checks.check_subject(subject)
        writer = self._writer

        def work(connection: sqlite3.Connection) -> Stored | None:
            sequence = writer.cells[cell].newest.get(subject)
            if sequence is None:
                return None
            row = connection.execute(
                "SELECT payload FROM records WHERE sequence = ?", (sequence,)
            ).fetchone()
            return Stored(subject, sequence, row[0])

        found: Stored | None = await asyncio.shield(writer.call(work))
        return found

    async def _read_sequence(self, cell: str, sequence: int) -> Stored | None:
        number = self._number(cell)
        row = self._reader.execute(
            "SELECT subject, payload FROM records WHERE sequence = ? AND cell = ?",
            (sequence, number),
        ).fetchone()
        return None if row is None else Stored(row[0], sequence, row[1])

    async def tail(
        self,
        cell: str,
        subjects: Sequence[str],
        from_sequence: int = 1,
        not_on: str = "",  # noqa: ARG002  # one copy
    ) -> AsyncIterator[Chunk]:
        number = self._number(cell)
        if not subjects:
            raise InvalidName("a tail has at least one filter")
        for subject in subjects:
            checks.check_filter(subject)
        wanted = matcher(tuple(subjects))
        tail = _Tail(cell)
        following = max(from_sequence, 1)
        caught_up = False
        self._tails.add(tail)
        try:
            while True:
                if self._closed:
                    raise Closed("the log was closed")
                if tail.behind:
                    # From the file up to what is committed now; all that is committed later is
                    # offered from now on.
                    tail.behind = False
                    tail.offered = []
                    until = self._committed.get(cell, 0)
                    reading = True
                    while reading:
                        rows = self._reader.execute(
                            "SELECT subject, sequence, payload FROM records"
                            " WHERE sequence BETWEEN ? AND ? AND cell = ? ORDER BY sequence "
                            "LIMIT ?",
                            (following, until, number, _PAGE),
                        ).fetchall()
                        reading = len(rows) == _PAGE
                        following = rows[-1][1] + 1 if reading else max(following, until + 1)
                        found = [Stored(*row) for row in rows if wanted(row[0])]
                        if found or not reading:
                            caught_up = not (reading or tail.behind or tail.offered)
                            yield Chunk(found, caught_up)
                        await asyncio.sleep(0)
                elif tail.offered:
                    offered, tail.offered = tail.offered, []
                    found = [
                        stored
                        for stored in offered
                        if stored.sequence >= following and wanted(stored.subject)
                    ]
                    following = max(following, offered[-1].sequence + 1)
                    if found or not caught_up:
                        caught_up = not (tail.behind or tail.offered)
                        yield Chunk(found, caught_up)
                else:
                    tail.wake.clear()
                    await tail.wake.wait()
        finally:
            self._tails.discard(tail)

    async def _purge(self, cell: str, subject: str, before_sequence: int) -> None:
        self._number(cell)
        checks.check_filter(subject)
        writer = self._writer
        wanted = matcher((subject,))
        exact = not any(token in ("*", ">") for token in subject.split("."))

        def work(connection: sqlite3.Connection) -> None:
            index = writer.cells[cell]
            if exact:
                found = [subject] if 0 < index.newest.get(subject, 0) < before_sequence else []
            else:
                found = [
                    key for key, at in index.newest.items() if at < before_sequence and wanted(key)
                ]
            connection.executemany(
                "DELETE FROM records WHERE sequence = ?", [(index.newest[key],) for key in found]
            )
            writer.forget(index, found)

        await asyncio.shield(writer.call(work))

    # one copy
    async def subjects(self, cell: str, subject_filters: Sequence[str]) -> None:  # noqa: ARG002
        self._number(cell)

    async def last_sequence(self, cell: str) -> int:
        self._number(cell)
        return self._committed.get(cell, 0)


class _Tail:
    """One reader's place. ``offered``: what was committed since; ``behind``: it grew too long, and
    is in the file."""

    __slots__ = ("__weakref__", "behind", "cell", "offered", "wake")

    def __init__(self, cell: str) -> None:
        self.cell = cell
        self.behind = True
        self.offered: list[Stored] = []
        self.wake = asyncio.Event()

    def offer(self, records: list[Stored]) -> None:
        if not self.behind:
            self.offered += records
            if len(self.offered) > 10 * _PAGE:
                self.offered = []
                self.behind = True
        self.wake.set()
