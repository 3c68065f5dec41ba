"""What the ownership of shards asks of whatever serves them: it is on the floor above."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from holdfast.cluster.ownership.epochs import Claim
from holdfast.engines.base import Record, Stored


class Served(Protocol):
    """A shard that is served."""

    @property
    def epoch(self) -> int: ...


class ShardHost(Protocol):
    """What serves the shards that are claimed. Its table of shards is the only one: a shard that is
    claimed, recovered and still this node's is in it."""

    @property
    def shards(self) -> Mapping[int, Served]: ...

    async def add_shards(
        self, cell: str, claims: Mapping[int, Claim], records: list[Stored]
    ) -> None: ...
    def reclaim(self, cell: str) -> None: ...
    def drop_shards(self, numbers: Iterable[int]) -> None: ...
    def expect(self, numbers: Iterable[int]) -> None: ...
    async def listen(self, numbers: Iterable[int]) -> None: ...
    async def drain(self, targets: Mapping[int, str], timeout_seconds: float) -> dict[int, int]: ...
    async def write(self, cell: str, records: list[Record]) -> range: ...
