"""Independent records of many tasks, joined into batches: what one batch in flight at a time is
enough for.

A batch is all or nothing, but what is joined here has nothing to do with each other: where an
expectation does not hold, the batch is appended again in halves, until the submission is found that
gets the `Conflict`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from holdfast.engines.base import Log, Record
from holdfast.engines.checks import HEADER_BYTES, check_batch
from holdfast.engines.gate import Gate
from holdfast.errors import Conflict, HoldfastError, NotDone, Overloaded, Unknown
from holdfast.limits import BATCH_BYTES_MAX, BATCH_RECORDS_MAX, RECORD_BYTES_MAX, SUBMISSIONS_MAX


class _Submission:
    __slots__ = ("future", "records", "size")

    def __init__(self, records: Sequence[Record], future: asyncio.Future[int]) -> None:
        self.records = records
        self.future = future
        self.size = sum(
            len(record.subject) + len(record.payload) + HEADER_BYTES for record in records
        )


class GroupAppender:
    """Appends records to one cell. Each submission has its own outcome, and is written whole or not
    at all."""

    def __init__(self, log: Log | Gate, cell: str) -> None:
        self._log = log
        self._cell = cell
        self._waiting: list[_Submission] = []
        self._writing: asyncio.Task[None] | None = None

    async def append(self, *records: Record) -> int:
        """Append records, and return the first one's sequence. Raises what `Log.append` raises, and
        `Overloaded`."""
        if len(self._waiting) >= SUBMISSIONS_MAX:
            raise Overloaded(
                f"{SUBMISSIONS_MAX} records wait for cell {self._cell}: send more slowly"
            )
        check_batch(self._cell, records, RECORD_BYTES_MAX, BATCH_RECORDS_MAX, BATCH_BYTES_MAX)
        loop = asyncio.get_running_loop()
        submission = _Submission(records, loop.create_future())
        self._waiting.append(submission)
        if self._writing is None:
            self._writing = loop.create_task(self._write())
        return await submission.future

    async def _write(self) -> None:
        try:
            await asyncio.sleep(0)  # what this tick still submits joins the first batch
            while self._waiting:
                await self._attempt(self._next())
        finally:
            self._writing = None

    def _next(self) -> list[_Submission]:
        """The first that wait, as far as they fit; a second record on a subject waits for the next
        batch."""
        batch: list[_Submission] = []
        later: list[_Submission] = []
        subjects: set[str] = set()
        size = 0
        for index, submission in enumerate(self._waiting):
            if submission.future.done():
                continue  # its task was cancelled before anything was written
            count = len(subjects) + len(submission.records)
            if batch and (count > BATCH_RECORDS_MAX or size + submission.size > BATCH_BYTES_MAX):
                later += self._waiting[index:]
                break
            if any(record.subject in subjects for record in submission.records):
                later.append(submission)
                continue
            subjects.update(record.subject for record in submission.records)
            size += submission.size
            batch.append(submission)
        self._waiting = later
        return batch

    async def _attempt(self, batch: list[_Submission]) -> None:
        if not batch:
            return
        try:
            sequences = await self._log.append(
                self._cell, [record for one in batch for record in one.records]
            )
        except Conflict as error:
            if len(batch) > 1:
                half = len(batch) // 2
                await self._attempt(batch[:half])
                await self._attempt(batch[half:])
                return
            _fail(batch, error)
        except HoldfastError as error:
            _fail(batch, error)
        except BaseException as error:
            _fail(batch, Unknown(f"the batch was cut off: {error!r}"))
            raise
        else:
            place = 0
            for submission in batch:
                if not submission.future.done():
                    submission.future.set_result(sequences[place])
                place += len(submission.records)


def _fail(batch: list[_Submission], error: HoldfastError) -> None:
    kind = type(error) if isinstance(error, (NotDone, Unknown)) else None
    for submission in batch:
        if not submission.future.done():
            # Each waiter gets an error of its own: a traceback belongs to one task.
            submission.future.set_exception(kind(str(error)) if kind else error)
