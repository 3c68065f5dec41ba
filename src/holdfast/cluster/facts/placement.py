"""Where agents may live, as the log has it: one small record that every node follows, changed by
compare-and-set.

The manifest is followed with it, as the version of the records that are written may be raised
while nodes run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress

from holdfast import chance, codec, limits, loops
from holdfast.cluster.facts.manifest import Manifest, decode
from holdfast.core import backoff, pools
from holdfast.core.pools import Pool, Space, Table
from holdfast.engines.base import Engine, Expect, Record, Stored
from holdfast.errors import (
    Closed,
    ConfigError,
    Conflict,
    DataLoss,
    NoQuorum,
    OutcomeUnknown,
    Unknown,
)
from holdfast.records import subjects

_Change = Callable[[Table], Table]


def read_table(stored: Stored) -> Table:
    """The table of a record. Raises `DataLoss`."""
    try:
        table: Table = codec.decoder(Table).decode(codec.unseal(stored.payload, stored.subject))
        pools.check_table(table)
    except (*codec.ERRORS, ConfigError) as error:
        raise DataLoss(f"the table of pools cannot be read: {error}") from None
    return table


class Placement:
    """This node's view of the table. ``space``: which shard an agent is in; ``on_change`` hears of
    each newer table."""

    def __init__(
        self, engine: Engine, cell: str, manifest: Manifest, on_change: Callable[[], None]
    ) -> None:
        self.space = Space(pools.empty(manifest.shards))
        self.manifest = manifest
        self._on_change = on_change
        self._engine = engine
        self._cell = cell
        self._subject = subjects.placement(cell)
        self._sequence = 0
        self._looked_at = float("-inf")
        self._random = chance.random()
        self._following: asyncio.Task[None] | None = None

    @property
    def table(self) -> Table:
        """The newest that this node has seen."""
        return self.space.table

    async def open(self) -> None:
        """Read the table, and follow it from now on. Raises `DataLoss`, `NoQuorum`."""
        loop = asyncio.get_running_loop()
        end = loop.time() + limits.QUORUM_WAIT_SECONDS
        for attempt in range(1, 1000):
            try:
                await self._read()
                break
            except (NoQuorum, Unknown):
                if loop.time() > end:
                    raise
            await asyncio.sleep(backoff.delay_seconds(attempt, self._random))
        self._following = loops.start(self._follow(), "the tail of the placement")

    async def close(self) -> None:
        """Stop following."""
        await loops.stop(self._following)

    async def _follow(self) -> None:
        followed = [self._subject, subjects.manifest(self._cell)]
        try:
            async for chunk in self._engine.log.tail(self._cell, followed):
                for stored in chunk.records:
                    if stored.subject == self._subject:
                        self._take(stored)
                    else:
                        self.manifest = decode(stored.payload)
        except Closed:
            return

    async def _read(self) -> None:
        stored = await self._engine.log.read(self._cell, self._subject)
        if stored is not None:
            self._take(stored)

    def _take(self, stored: Stored) -> None:
        if stored.sequence <= self._sequence:
            return
        table = read_table(stored)
        self._sequence = stored.sequence
        self.space.take(table)
        self._on_change()

    # Changes --------------------------------------------------------------------------------------

    async def knows(self, kind: str, pool: Pool | str | None = None) -> bool:
        """Whether the pool of a kind is known, if need be after a look into the log; ``pool``:
        where it is to be, if nowhere yet.

        Raises what `change` raises.
        """
        if kind in self.table.kinds:
            return True
        now = asyncio.get_running_loop().time()
        if pool is not None or now - self._looked_at > 1.0:
            self._looked_at = now
            with suppress(NoQuorum, Unknown):
                await self._read()
        if pool is not None and kind not in self.table.kinds:
            await self.declare({kind: pool})
        return kind in self.table.kinds

    async def declare(self, kinds: Mapping[str, Pool | str]) -> None:
        """See that the table has an application's pools and kinds. Raises `ConfigError`, and what
        `change` raises."""
        await self.change(lambda table: pools.declare(table, kinds))

    async def change(self, decide: _Change) -> None:
        """Apply a change to the newest table, as often as others come between; it must do no harm
        when applied twice.

        Raises `NoQuorum`, `OutcomeUnknown`, and what ``decide`` raises.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + limits.QUORUM_WAIT_SECONDS
        attempt = 0
        while True:
            wanted = decide(self.table)
            if wanted == self.table:
                return
            payload = codec.seal(codec.encode_raw(wanted))
            record = Record(self._subject, payload, Expect(self._subject, self._sequence))
            attempt += 1
            try:
                sequence = (await self._engine.log.append(self._cell, [record]))[0]
                self._take(Stored(self._subject, sequence, payload))
                return
            except Conflict:
                pass
            except (NoQuorum, Unknown) as error:
                if loop.time() > end:
                    if isinstance(error, Unknown):
                        raise OutcomeUnknown(
                            f"the table of pools may have been changed: {error}"
                        ) from None
                    raise
            await asyncio.sleep(backoff.delay_seconds(attempt, self._random))
            try:
                await self._read()
            except (NoQuorum, Unknown):
                continue
