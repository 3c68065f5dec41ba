"""Where a process's writes of data pass on their way to the log, so that they can be held for a
moment.

A backup asks every process to hold its writes while it notes how far each cell goes
(`holdfast.admin.backup.cut`). A host that gives a cell another leader asks every process to hold
those to that cell (`holdfast.host.voting.leader_balance`). What is held waits, and is neither
refused nor lost; proofs of life and claims do not pass here. A hold ends by itself after the time
that it was asked for, whatever became of who asked. Nothing rests on it but how fast the one
succeeds, and how little the other is noticed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from holdfast.engines.base import Log, Record


class Gate:
    """One process's gate. It starts open."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._open = asyncio.Event()
        self._open.set()
        self._held = ""
        """The cell whose writes are held while it is not open; empty: all."""
        self._opens: asyncio.TimerHandle | None = None
        self._under_way = 0
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._keep_until = 0.0

    async def append(self, cell: str, records: Sequence[Record]) -> range:
        """`Log.append`, once the gate is open."""
        while not self._open.is_set() and self._held in ("", cell):
            await self._open.wait()
        self._under_way += 1
        self._quiet.clear()
        try:
            return await self._log.append(cell, records)
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._quiet.set()

    def hold(self, seconds: float, cell: str = "") -> None:
        """Let no append pass, or none into this cell, for so long, or until `release`."""
        self.release()
        self._held = cell
        self._open.clear()
        self._opens = asyncio.get_running_loop().call_later(seconds, self._open.set)

    def release(self) -> None:
        """Let everything pass again."""
        if self._opens is not None:
            self._opens.cancel()
            self._opens = None
        self._open.set()

    async def quiet(self) -> None:
        """Wait until every append that passed has its outcome."""
        await self._quiet.wait()

    def keep_blobs(self, seconds: float) -> None:
        """Have blobs that no record names any more stay for so long: somebody copies them."""
        self._keep_until = asyncio.get_running_loop().time() + seconds

    async def may_delete(self) -> None:
        """Wait until blobs may be deleted."""
        loop = asyncio.get_running_loop()
        while (seconds := self._keep_until - loop.time()) > 0:
            await asyncio.sleep(seconds)
