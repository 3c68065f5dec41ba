"""The third engine: a simulated process's connection to simulated servers. It keeps the engines'
contract, and no more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TypeVar
from zlib import crc32

from holdfast import limits
from holdfast.engines import checks
from holdfast.engines.base import (
    Blobs,
    Bus,
    Chunk,
    Engine,
    Log,
    Message,
    Record,
    Shown,
    Stored,
    Subscription,
    matcher,
)
from holdfast.errors import (
    AlreadyExists,
    Closed,
    HoldfastError,
    InvalidName,
    NoQuorum,
    NoResponders,
    NotFound,
    TooLarge,
    Unknown,
)
from holdfast.testing.simulation.loop import SimLoop
from holdfast.testing.simulation.servers import Cell, Interest, Servers, Watcher

T = TypeVar("T")
_SILENCE_SECONDS = 1.6


class SimEngine(Engine):
    """See `holdfast.engines.base.Engine`. ``host``: where the process runs."""

    name = "sim"
    record_bytes_max = limits.RECORD_BYTES_MAX
    batch_records_max = limits.BATCH_RECORDS_MAX
    batch_bytes_max = limits.BATCH_BYTES_MAX

    def __init__(self, servers: Servers, host: str, loop: SimLoop) -> None:
        self.cluster = servers
        self.host = host
        self.loop = loop
        self.closed = False
        self.log: SimLog = SimLog(self)
        self.bus: SimBus = SimBus(self)
        self.blobs: SimBlobs = SimBlobs(self)

    async def open(self) -> None:
        while not self.cluster.entry(self.host):
            await asyncio.sleep(0.2)

    async def close(self) -> None:
        self.closed = True
        for tail in list(self.log.waits):
            if not tail.done():
                tail.set_result(None)

    async def ensure_cells(
        self, cells: Sequence[str], replicas: int, first_sequence: int = 1
    ) -> None:
        if any(cell not in self.cluster.cells for cell in cells):
            self.cluster.on_founding(self.loop.name, replicas)
        for cell in cells:
            self.cluster.make(checks.check_cell(cell), first_sequence)

    async def check_cells(self, cells: Sequence[str]) -> int:
        for cell in cells:
            if checks.check_cell(cell) not in self.cluster.cells:
                raise NotFound(f"there is no cell {cell}")
        return len(self.cluster.hosts)

    async def cells(self) -> list[str]:
        return sorted(self.cluster.cells)

    async def drop_cells(self, cells: Sequence[str]) -> None:
        for cell in cells:
            self.cluster.cells.pop(checks.check_cell(cell), None)

    def connected(self) -> bool:
        return not self.closed and bool(self.cluster.entry(self.host))

    def servers(self) -> int:
        entry = self.cluster.entry(self.host)
        seen = [
            host
            for host in self.cluster.hosts
            if self.cluster.up(host) and self.cluster.world.connected(entry, host)
        ]
        return max(len(seen), 1)

    def statistics(self) -> Mapping[str, int | float | str]:
        return {"appends": self.log.appends, "unknown": self.log.unknown}

    async def reach(self, target: str, read: Callable[[], T], timeout_seconds: float) -> T:
        """What a server answers, after the time that it takes. Raises `NoQuorum` where none comes
        in time."""
        world = self.cluster.world
        future: asyncio.Future[T] = self.loop.create_future()

        def back(value: T) -> None:
            if not future.done():
                future.set_result(value)

        def there() -> None:
            entry = self.cluster.entry(self.host)
            if entry and self.cluster.up(target) and world.connected(entry, target):
                value = read()
                world.later(
                    world.random.uniform(0.0002, 0.002), lambda: self.loop.call_soon(back, value)
                )

        world.later(world.random.uniform(0.0002, self.cluster.faults.read_seconds), there)
        try:
            async with asyncio.timeout(timeout_seconds):
                return await future
        except TimeoutError:
            raise NoQuorum(f"{target} does not answer") from None

    def choose(self, not_this: str = "") -> str:
        """A server that is reached, any of them; where there are others, not this one."""
        entry = self.cluster.entry(self.host)
        able = [
            h
            for h in self.cluster.hosts
            if entry and self.cluster.up(h) and self.cluster.world.connected(entry, h)
        ]
        if not able:
            raise NoQuorum("no server is reached")
        return self.cluster.world.random.choice([host for host in able if host != not_this] or able)


class SimLog(Log):
    """See `holdfast.engines.base.Log`."""

    def __init__(self, engine: SimEngine) -> None:
        self._engine = engine
        self.waits: dict[asyncio.Future[None], None] = {}
        self.appends = 0
        self.unknown = 0

    def _cell(self, name: str) -> Cell:
        if self._engine.closed:
            raise Closed("the log was closed")
        cell = self._engine.cluster.cells.get(checks.check_cell(name))
        if cell is None:
            raise InvalidName(f"there is no cell {name}")
        return cell

    async def _append(self, cell: str, records: Sequence[Record]) -> range:
        found = self._cell(cell)
        checks.check_batch(
            cell, records, limits.RECORD_BYTES_MAX, limits.BATCH_RECORDS_MAX, limits.BATCH_BYTES_MAX
        )
        loop = self._engine.loop
        future: asyncio.Future[range] = loop.create_future()

        def answer(outcome: range | HoldfastError) -> None:
            loop.call_soon(settle, outcome)

        def settle(outcome: range | HoldfastError) -> None:
            if future.done():
                return
            if isinstance(outcome, range):
                future.set_result(outcome)
            else:
                future.set_exception(outcome)

        self._engine.cluster.append(self._engine.host, found, list(records), answer)
        try:
            async with asyncio.timeout(limits.APPEND_TIMEOUT_SECONDS):
                sequences = await future
        except TimeoutError:
            self.unknown += 1
            raise Unknown(
                f"a batch of {len(records)} records in {cell}: no answer in time"
            ) from None
        self.appends += 1
        return sequences

    async def _read(self, cell: str, subject: str) -> Stored | None:
        found = self._cell(cell)
        checks.check_subject(subject)
        host = self._engine.choose()
        replica = found.replicas[host]

        def look() -> Stored | None:
            sequence = replica.newest.get(subject)
            return None if sequence is None else replica.records[sequence]

        return await self._engine.reach(host, look, 1.0)

    async def _read_sequence(self, cell: str, sequence: int) -> Stored | None:
        found = self._cell(cell)
        if sequence < 1:
            return None
        for host in (self._engine.choose(), found.leader):
            stored = await self._engine.reach(
                host,
                lambda h=host: found.replicas[h].records.get(sequence),  # type: ignore[misc]
                1.0,
            )
            if stored is not None:
                return stored
        return None

    async def tail(
        self, cell: str, subjects: Sequence[str], from_sequence: int = 1, not_on: str = ""
    ) -> AsyncIterator[Chunk]:
        found = self._cell(cell)
        if not subjects:
            raise InvalidName("a tail has at least one filter")
        for subject in subjects:
            checks.check_filter(subject)
        wanted = matcher(tuple(subjects))
        following = max(from_sequence, 1)
        quiet = False
        host, begun = "", 0
        while True:
            self._cell(cell)
            try:
                if not host:
                    host, begun = self._engine.choose(not_on), begun + 1
                at = host

                def look() -> tuple[list[Stored], int]:
                    replica = found.replicas[at]  # noqa: B023
                    some: list[Stored] = []
                    for sequence in reversed(replica.records):
                        if sequence < following:  # noqa: B023
                            break
                        stored = replica.records[sequence]
                        if wanted(stored.subject):
                            some.append(stored)
                    return some, replica.last

                seen: tuple[list[Stored], int] = await self._engine.reach(
                    at, look, _SILENCE_SECONDS
                )
            except NoQuorum:
                host = ""
                await asyncio.sleep(0.2)
                continue
            self._cell(cell)
            some, last = sorted(seen[0], key=lambda stored: stored.sequence), seen[1]
            if some:
                most = int(self._engine.cluster.faults.chunk_records)
                chunk, rest = some[:most], some[most:]
                following = chunk[-1].sequence + 1
                quiet = not rest
                yield Chunk(chunk, not rest, host, begun)
            elif not quiet:
                quiet = True
                yield Chunk([], True, host, begun)
            else:
                following = max(following, last + 1)
                await self._news(found, host, following, tuple(subjects))

    async def _news(self, cell: Cell, host: str, following: int, subjects: tuple[str, ...]) -> None:
        loop = self._engine.loop
        if cell.replicas[host].last >= following:
            return
        future: asyncio.Future[None] = loop.create_future()
        self.waits[future] = None

        def wake() -> None:
            if not future.done():
                future.set_result(None)

        def news() -> None:
            loop.call_soon(wake)

        watcher = Watcher(subjects, news)
        cell.watch(host, watcher)
        timer = loop.call_later(_SILENCE_SECONDS, wake)
        try:
            await future
        finally:
            timer.cancel()
            cell.forget(host, watcher)
            self.waits.pop(future, None)

    async def _purge(self, cell: str, subject: str, before_sequence: int) -> None:
        found = self._cell(cell)
        checks.check_filter(subject)
        if not self._engine.cluster.majority(found.leader):
            raise NoQuorum(f"no server leads {cell}")
        await self._engine.reach(found.leader, lambda: found.purge(subject, before_sequence), 2.0)

    async def subjects(self, cell: str, subject_filters: Sequence[str]) -> Shown:
        found = self._cell(cell)
        for subject in subject_filters:
            checks.check_filter(subject)
        wanted = matcher(tuple(subject_filters))
        if not self._engine.cluster.majority(found.leader):
            raise NoQuorum(f"no server leads {cell}")
        leader = found.leader
        subjects = await self._engine.reach(
            leader, lambda: set(filter(wanted, found.replicas[leader].newest)), 2.0
        )
        return Shown(leader, subjects)

    async def last_sequence(self, cell: str) -> int:
        found = self._cell(cell)
        host = self._engine.choose()
        return await self._engine.reach(host, lambda: found.replicas[host].last, 1.0)


class SimBus(Bus):
    """See `holdfast.engines.base.Bus`."""

    def __init__(self, engine: SimEngine) -> None:
        self._engine = engine
        self._requests = 0

    def publish(self, subject: str, payload: bytes, reply: str = "") -> None:
        checks.check_subject(subject)
        if reply:
            checks.check_subject(reply)
        if len(payload) > limits.RECORD_BYTES_MAX:
            raise TooLarge(
                f"a message of {len(payload)} bytes on {subject}; {limits.RECORD_BYTES_MAX} are "
                "allowed"
            )
        if not self._engine.closed:
            self._engine.cluster.publish(self._engine.host, Message(subject, reply, payload))

    async def subscribe(
        self, subject: str, callback: Callable[[Message], None], queue: str = ""
    ) -> Subscription:
        checks.check_filter(subject)
        if self._engine.closed:
            raise Closed("the engine was closed")
        interest = Interest(subject, queue, self._engine.host, self._engine.loop, callback)
        self._engine.cluster.subscribe(interest)
        return _Subscription(interest)

    async def request(self, subject: str, payload: bytes, timeout_seconds: float) -> bytes:
        self._requests += 1
        reply = f"hf.q.{self._engine.loop.name}.{self._requests}"
        future: asyncio.Future[Message] = self._engine.loop.create_future()

        def take(message: Message) -> None:
            if not future.done():
                future.set_result(message)

        subscription = await self.subscribe(reply, take)
        self.publish(subject, payload, reply)
        try:
            async with asyncio.timeout(timeout_seconds):
                message = await future
        except TimeoutError:
            raise Unknown(f"{subject}: no answer within {timeout_seconds} s") from None
        finally:
            await subscription.close()
        if message.no_responders:
            raise NoResponders(f"nobody serves {subject}")
        return message.payload


class _Subscription(Subscription):
    def __init__(self, interest: Interest) -> None:
        self._interest = interest

    async def close(self) -> None:
        self._interest.open = False


class SimBlobs(Blobs):
    """See `holdfast.engines.base.Blobs`. There is one copy, which a majority has to answer for."""

    def __init__(self, engine: SimEngine) -> None:
        self._engine = engine

    def _check(self, key: str) -> dict[str, bytes]:
        checks.check_subject(key)
        if self._engine.closed:
            raise Closed("the engine was closed")
        entry = self._engine.cluster.entry(self._engine.host)
        if not entry or not self._engine.cluster.majority(entry):
            raise NoQuorum("no majority answers for the blobs")
        return self._engine.cluster.blobs

    async def _put(self, key: str, value: bytes) -> None:
        if len(value) > limits.BLOB_BYTES_MAX:
            raise TooLarge(f"a blob of {len(value)} bytes; {limits.BLOB_BYTES_MAX} are allowed")
        blobs = self._check(key)
        await asyncio.sleep(0.001)
        if crc32(blobs.setdefault(key, value)) != crc32(value):
            raise AlreadyExists(f"the blob {key} is there with another value: a key is used once")

    async def _get(self, key: str) -> bytes:
        blobs = self._check(key)
        if key not in blobs:
            raise NotFound(f"there is no blob {key}")
        return blobs[key]

    async def delete(self, key: str) -> None:
        self._check(key).pop(key, None)

    async def keys(self, prefix: str) -> list[str]:
        blobs = self._check(prefix)
        return sorted(key for key in blobs if key == prefix or key.startswith(prefix + "."))
