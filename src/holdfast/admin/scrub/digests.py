"""The digests of all shards of a cell, recomputed from one replica as a recovery does it.

The replicas may agree with each other and still lack something that was acknowledged. Each batch of
a shard says what its owner's index was before it; a replica from which that index cannot be rebuilt
lacks records. A shard that is written to meanwhile is read again: a batch may be half read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from holdfast.core.digest import moved
from holdfast.engines.base import Stored
from holdfast.engines.nats import streams
from holdfast.engines.nats.connection import Connection
from holdfast.engines.nats.replica import open_replicas
from holdfast.errors import DataLoss
from holdfast.records import agent_record, packs, subjects
from holdfast.records.agent_record import AgentRecord, check_digest

_SHARDS_AT_ONCE: Final = 16
"""The index of so many shards is in memory at a time."""

_TRIES: Final = 6


class ShardReading:
    """The index of one shard, as far as it was read."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.digest = 0
        self.index: dict[str, int] = {}
        self.newest: list[tuple[int, str, AgentRecord]] = []

    def add(self, stored: Stored) -> None:
        """One record of an agent, in order. Raises `DataLoss` where it is damaged."""
        token = subjects.agent_of(stored.subject)
        record = agent_record.decode(stored.payload, stored.subject)
        self.digest ^= moved(token, self.index.get(token, 0), stored.sequence)
        self.index[token] = stored.sequence
        if not self.newest or record.commit > self.newest[0][2].commit:
            self.newest = []
        if not self.newest or record.commit == self.newest[0][2].commit:
            self.newest.append((stored.sequence, token, record))

    def check(self) -> None:
        """Raises `DataLoss` where the newest batch says that the index was another."""
        if self.newest:
            check_digest(self.prefix, self.digest, len(self.index), self.newest)


async def check_cell(connection: Connection, cell: str, server: str) -> dict[str, str]:
    """The shards whose digest does not hold on this server's replica, each with why. Raises
    `NoQuorum`, `Unknown`."""
    owned = await streams.subjects(connection, cell, subjects.epoch(cell, subjects.ANY))
    prefixes = sorted(subjects.shard(cell, subjects.shard_of(one)) for one in owned.subjects)
    failed: dict[str, str] = {}
    for start in range(0, len(prefixes), _SHARDS_AT_ONCE):
        wanted: Sequence[str] = prefixes[start : start + _SHARDS_AT_ONCE]
        some: dict[str, str] = {}
        for attempt in range(_TRIES):
            await asyncio.sleep(0.1 * attempt)
            some = await _check_some(connection, cell, server, wanted)
            if not some:
                break
            wanted = list(some)
        failed |= some
    return failed


async def _check_some(
    connection: Connection, cell: str, server: str, prefixes: Sequence[str]
) -> dict[str, str]:
    shards = {prefix: ShardReading(prefix) for prefix in prefixes}
    failed: dict[str, str] = {}
    filters = [
        *(subjects.all_of(prefix, subjects.RECORD) for prefix in prefixes),
        packs.filter_of(cell),
    ]
    reader = (await open_replicas(connection, cell, [server], filters))[server]

    def damaged(_: Stored, error: DataLoss) -> None:
        failed.update(dict.fromkeys(prefixes, str(error)))  # it may have had records of any shard

    try:
        while chunk := await reader.next():
            for stored in packs.unfold(chunk, damaged):
                prefix = subjects.shard(cell, subjects.shard_of(stored.subject))
                if prefix not in shards:
                    continue
                try:
                    shards[prefix].add(stored)
                except DataLoss as error:
                    failed[prefix] = str(error)
            await asyncio.sleep(0)
    finally:
        reader.close()
    for prefix, shard in shards.items():
        try:
            shard.check()
        except DataLoss as error:
            failed.setdefault(prefix, str(error))
    return failed
