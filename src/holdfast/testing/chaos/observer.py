"""Watches the cells of a real cluster from outside, through every host's server at once.

A cell keeps the newest record of each subject only, so who reads late misses some. What one tail
misses while its server is away another one sees, mostly; and no two servers may ever give different
records under one sequence.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final

import msgspec

from holdfast import codec
from holdfast.cluster.ownership.epochs import EpochRecord
from holdfast.engines.base import Stored
from holdfast.engines.nats import api
from holdfast.engines.nats.engine import NatsEngine
from holdfast.errors import Closed, DataLoss, NotDone, Unknown
from holdfast.records import agent_record, packs, subjects
from holdfast.security import Security
from holdfast.testing.history import Commit

_LAG_MAX: Final = 50
"""Proofs of life go on, so that a copy is hardly ever at the very end."""

_SILENT_NS: Final = 5_000_000_000


class _Copy(msgspec.Struct):
    name: str
    current: bool = False
    offline: bool = False
    lag: int = 0
    active: int = 0
    """Nanoseconds since the leader heard it."""


class _Group(msgspec.Struct):
    leader: str = ""
    replicas: list[_Copy] = []


class _Info(msgspec.Struct):
    cluster: _Group


def _bare(payload: bytes, what: str) -> bytes:
    record = agent_record.decode(payload, what)
    return agent_record.encode(
        msgspec.structs.replace(record, state=b"", callers={}, ids={}, senders={}, timers=[])
    )


class Observer:
    """See the module. ``problems``: what cannot be, whatever happened. Use it with ``start`` and
    ``close``."""

    def __init__(self, urls: Sequence[str], security: Security) -> None:
        self.problems: list[str] = []
        self.epochs: dict[str, int] = {}
        """Per shard, as the subject of its epoch's record, the newest sequence."""
        self.owners: dict[str, str] = {}
        """… and whose it is: an incarnation, or nobody."""
        self._seen: dict[str, dict[int, tuple[float, Stored]]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._engines = [NatsEngine([url], security) for url in urls]

    async def start(self, cells: Sequence[str]) -> None:
        """Begin, with all servers up."""
        self._seen = {cell: {} for cell in cells}
        for engine in self._engines:
            await engine.open()
            self._tasks += [
                asyncio.get_running_loop().create_task(self._follow(engine, cell)) for cell in cells
            ]

    async def close(self) -> None:
        """Stop."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for engine in self._engines:
            await engine.close()

    async def _follow(self, engine: NatsEngine, cell: str) -> None:
        filters = [f"{cell}.*.{what}" for what in ("epoch", "st.>", "in.>", "out.>")]
        filters.append(packs.filter_of(cell))
        with suppress(Closed):
            async for chunk in engine.log.tail(cell, [*filters, f"{cell}.rl.>"]):
                for stored in chunk.records:
                    self._note(cell, stored)

    def _note(self, cell: str, stored: Stored) -> None:
        try:
            slim = self._slim(stored)
        except DataLoss as error:
            self.problems.append(f"{cell} {stored.sequence}: {error}")
            return
        known = self._seen[cell].setdefault(stored.sequence, (time.monotonic(), slim))[1]
        if known != slim:
            self.problems.append(
                f"{cell} {stored.sequence}: one server has {known}, another one {slim}"
            )

    def _slim(self, stored: Stored) -> Stored:
        """The record without what no checker reads."""
        payload = b""
        if ".st." in stored.subject:
            payload = _bare(stored.payload, stored.subject)
        elif subjects.is_pack(stored.subject):
            some = [
                (number, token, _bare(one, token)) for number, token, one in packs.entries(stored)
            ]
            payload = codec.seal(codec.encode_raw(some))
        elif stored.subject.endswith(".epoch") and stored.sequence > self.epochs.get(
            stored.subject, 0
        ):
            self.epochs[stored.subject] = stored.sequence
            body = codec.unseal(stored.payload, stored.subject)
            self.owners[stored.subject] = msgspec.msgpack.decode(body, type=EpochRecord).owner
        return Stored(stored.subject, stored.sequence, payload)

    async def behind(self) -> list[str]:
        """Copies that do not follow their cell's leader; what a full disk or a lost one leaves
        behind."""
        found = []
        for cell in self._seen:
            try:
                answer = await api.call(self._engines[0]._open(), f"STREAM.INFO.{cell}", None, 2.0)
            except (NotDone, Unknown) as error:
                found.append(f"{cell}: {error}")
                continue
            info = msgspec.json.decode(answer, type=_Info)
            for copy in info.cluster.replicas:
                if not copy.current and (
                    copy.offline or copy.lag > _LAG_MAX or copy.active > _SILENT_NS
                ):
                    found.append(f"the copy of {cell} on {copy.name} is {copy.lag} records behind")
        return found

    def commits(self) -> Iterator[Commit]:
        """What was seen, as batches: a relay's cursor with the messages right behind it, every
        other record alone."""
        for cell, seen in self._seen.items():
            batch: list[Stored] = []
            for sequence, (at, stored) in sorted(seen.items()):
                follows = (
                    batch and ".rl." in batch[0].subject and sequence == batch[-1].sequence + 1
                )
                if not (follows and ".in." in stored.subject):
                    batch = []
                    yield Commit(at, cell, batch)
                batch.extend(packs.unfold([stored]))
