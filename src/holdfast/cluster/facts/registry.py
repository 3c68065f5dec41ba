"""The registry: which agents are registered, and what they can do. Each node has all of it in
memory, with an index.

An agent's address needs no registration: this is what makes it unique, and found. A name is taken
by a compare-and-set on its subject; every node tails these records. Who created an entry sees it at
once; others after a round trip, or by `Registry.reach` with the `Registry.position` of who did. A
name that was freed leaves a small record behind, so that a node that was away learns of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from holdfast import chance, codec, ids, limits, loops
from holdfast.clock import Clock
from holdfast.core import backoff
from holdfast.core.query import Condition, compile_conditions
from holdfast.engines.appender import GroupAppender
from holdfast.engines.base import Engine, Expect, Record, Stored
from holdfast.engines.gate import Gate
from holdfast.errors import (
    AlreadyExists,
    BadMessage,
    Closed,
    Conflict,
    DataLoss,
    NoQuorum,
    NotFound,
    OutcomeUnknown,
    StorageFailed,
    TooLarge,
    Unknown,
)
from holdfast.records import subjects

_logger = logging.getLogger(__name__)


class _EntryRecord(msgspec.Struct, array_like=True):
    """As it is stored. ``writer``: tells one's own earlier attempt from another's; ``removed``: the
    name is free."""

    writer: str
    removed: bool
    at: float
    capabilities: list[str]
    metadata: dict[str, Any]


class Entry(msgspec.Struct, frozen=True):
    """A registered agent. ``registered_at`` is in seconds since 1970, ``position`` where in the
    registry it stands."""

    kind: str
    name: str
    capabilities: frozenset[str]
    metadata: Mapping[str, Any]
    registered_at: float
    position: int


class Registry:
    """This node's replica of the registry, and its way to write."""

    def __init__(self, engine: Engine, cell: str, clock: Clock, gate: Gate | None = None) -> None:
        self._engine = engine
        self._cell = cell
        self._clock = clock
        self._appender = GroupAppender(gate or engine.log, cell)
        self._writer = ids.new_id("w")
        self._writes = 0
        self._random = chance.random()
        self._entries: dict[str, Entry] = {}
        self._sequences: dict[str, int] = {}
        """The newest sequence of each subject's token, freed names included."""
        self._by_capability: dict[str, dict[str, None]] = {}
        self._by_kind: dict[str, dict[str, None]] = {}
        self._tailing: asyncio.Task[None] | None = None
        self._caught_up = asyncio.Event()
        self._moved = asyncio.Event()
        self.position = 0
        """The newest sequence that this replica has seen."""
        self.damaged: dict[str, str] = {}

    async def open(self) -> None:
        """Follow the log, and return once all that was registered before is here."""
        self._tailing = loops.start(self._follow(), "the registry's tail")
        caught_up = asyncio.ensure_future(self._caught_up.wait())
        await asyncio.wait({self._tailing, caught_up}, return_when=asyncio.FIRST_COMPLETED)
        if not self._caught_up.is_set():
            caught_up.cancel()
            await self._tailing

    async def close(self) -> None:
        """Stop following."""
        await loops.stop(self._tailing)
        self._tailing = None

    async def _follow(self) -> None:
        skip = len(self._cell) + 4
        tail = self._engine.log.tail(self._cell, [subjects.all_of(self._cell, subjects.ENTRY)])
        try:
            async for chunk in tail:
                async for stored in loops.in_slices(chunk.records):
                    self._apply(stored.subject[skip:], stored)
                if chunk.caught_up:
                    self._caught_up.set()
                self._moved.set()
        except Closed:
            return

    def _apply(self, token: str, stored: Stored) -> None:
        if stored.sequence <= self._sequences.get(token, 0):
            return
        self._sequences[token] = stored.sequence
        self.position = max(self.position, stored.sequence)
        self._forget(token)
        try:
            record = _decode(stored)
            kind, name = ids.from_agent_token(token)
        except (DataLoss, ValueError) as error:
            self.damaged[token] = str(error)
            _logger.error("the registry's entry of %s cannot be read: %s", token, error)
            return
        if record.removed:
            return
        entry = Entry(
            kind,
            name,
            frozenset(record.capabilities),
            MappingProxyType(record.metadata),
            record.at,
            stored.sequence,
        )
        self._entries[token] = entry
        self._by_kind.setdefault(kind, {})[token] = None
        for capability in entry.capabilities:
            self._by_capability.setdefault(capability, {})[token] = None

    def _forget(self, token: str) -> None:
        entry = self._entries.pop(token, None)
        if entry is None:
            return
        for index, key in [
            (self._by_kind, entry.kind),
            *((self._by_capability, c) for c in entry.capabilities),
        ]:
            members = index[key]
            del members[token]
            if not members:
                del index[key]

    # Reads: memory only ---------------------------------------------------------------------------

    def lookup(self, kind: str, name: str) -> Entry | None:
        """What is registered under a name, or None."""
        return self._entries.get(ids.agent_token(kind, name))

    def find(
        self,
        *,
        capability: Iterable[str] = (),
        kind: str | None = None,
        where: Iterable[Condition] = (),
        limit: int | None = None,
    ) -> list[Entry]:
        """The entries with all these capabilities, of this kind, whose metadata fit; in order of
        registration.

        Raises `BadMessage` for a condition or limit that is none.
        """
        if limit is not None and (not isinstance(limit, int) or limit < 0):
            raise BadMessage(f"a limit is a number, 0 or more, not {limit!r:.100}")
        if not isinstance(capability, Iterable):
            raise BadMessage(f"a capability to find is a word, or several, not {capability!r:.100}")
        groups = [self._by_capability.get(one, {}) for one in capability]
        if kind is not None:
            groups.append(self._by_kind.get(kind, {}))
        fits = compile_conditions(where)
        found: list[Entry] = []
        entries = self._entries
        if not groups:
            candidates: Iterable[str] = entries
        else:
            groups.sort(key=len)
            first, *others = groups
            candidates = (
                first if not others else (t for t in first if all(t in other for other in others))
            )
        for token in candidates:
            if limit is not None and len(found) >= limit:
                break
            entry = entries[token]
            if fits(entry.metadata):
                found.append(entry)
        return found

    def count(self, *, kind: str | None = None, capability: str | None = None) -> int:
        """How many entries of this kind have this capability."""
        if kind is None and capability is None:
            return len(self._entries)
        if capability is None:
            return len(self._by_kind.get(kind or "", {}))
        members = self._by_capability.get(capability, {})
        return (
            len(members)
            if kind is None
            else sum(token in self._by_kind.get(kind, {}) for token in members)
        )

    async def reach(
        self, position: int, timeout_seconds: float = limits.ASK_TIMEOUT_SECONDS
    ) -> None:
        """Wait until this replica has seen what another had, at the `position` that it gave. Raises
        `NoQuorum`."""
        try:
            async with asyncio.timeout(timeout_seconds):
                while self.position < position:
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            raise NoQuorum(
                f"the registry did not reach {position} within {timeout_seconds} s"
            ) from None

    # Writes: one compare-and-set each -------------------------------------------------------------

    async def register(
        self,
        kind: str,
        name: str,
        *,
        capabilities: Iterable[str] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> Entry:
        """Take a free name. Raises `AlreadyExists`, `InvalidName`, `BadMessage`, `TooLarge`,
        `NoQuorum`, `OutcomeUnknown`."""
        token = ids.agent_token(kind, name)
        new = self._record(token, capabilities, metadata or {})

        def change(current: _EntryRecord | None) -> _EntryRecord:
            if current is not None:
                raise AlreadyExists(
                    f"{kind}/{name} is registered already; node.agent({kind}, {name!r}) is its "
                    "address"
                )
            return new

        return await self._write(token, change)

    async def update(
        self,
        kind: str,
        name: str,
        *,
        capabilities: Iterable[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Entry:
        """Replace capabilities, metadata, or both. Raises `NotFound`, and what `register` raises
        otherwise."""
        token = ids.agent_token(kind, name)
        new = self._record(token, capabilities or (), metadata or {})

        def change(current: _EntryRecord | None) -> _EntryRecord:
            if current is None:
                raise NotFound(f"{kind}/{name} is not registered")
            new.at = current.at
            if capabilities is None:
                new.capabilities = current.capabilities
            if metadata is None:
                new.metadata = current.metadata
            return new

        return await self._write(token, change)

    async def unregister(self, kind: str, name: str) -> None:
        """Free a name. Raises `NotFound`, `NoQuorum`, `OutcomeUnknown`."""
        token = ids.agent_token(kind, name)
        removed = self._record(token, (), {})
        removed.removed = True

        def change(current: _EntryRecord | None) -> _EntryRecord:
            if current is None:
                raise NotFound(f"{kind}/{name} is not registered")
            return removed

        await self._write(token, change)

    def _record(
        self, token: str, capabilities: Iterable[str], metadata: Mapping[str, Any]
    ) -> _EntryRecord:
        if isinstance(capabilities, str) or not isinstance(capabilities, Iterable):
            raise BadMessage(f"capabilities are a set of words, not {capabilities!r:.100}")
        if not isinstance(metadata, Mapping) or not all(isinstance(key, str) for key in metadata):
            raise BadMessage(f"metadata are a dict whose keys are text, not {metadata!r}"[:200])
        names = sorted({ids.check_capability(capability) for capability in capabilities})
        if len(names) > limits.CAPABILITIES_MAX:
            raise TooLarge(
                f"{token} has {len(names)} capabilities; {limits.CAPABILITIES_MAX} are allowed"
            )
        size = len(codec.encode(dict(metadata), f"metadata of {token}"))
        if size > limits.METADATA_BYTES_MAX:
            raise TooLarge(
                f"metadata of {token} take {size} bytes; {limits.METADATA_BYTES_MAX} are allowed"
            )
        self._writes += 1
        return _EntryRecord(
            f"{self._writer}.{self._writes}", False, self._clock.now(), names, dict(metadata)
        )

    async def _write(self, token: str, change: Any) -> Entry:
        """Apply a change to what is there, as often as others come between. ``change`` raises where
        it cannot be."""
        subject = subjects.entry(self._cell, token)
        end = self._clock.monotonic() + limits.QUORUM_WAIT_SECONDS
        unknown = False
        writer = ""
        attempt = 0
        expected = self._sequences.get(token, 0)
        entry = self._entries.get(token)
        current: _EntryRecord | None = None
        if entry is not None:
            current = _EntryRecord(
                "", False, entry.registered_at, sorted(entry.capabilities), dict(entry.metadata)
            )
        fresh = False
        while True:
            attempt += 1
            try:
                if attempt > 1:
                    stored = await self._engine.log.read(self._cell, subject)
                    if stored is not None and stored.sequence >= expected:
                        self._apply(token, stored)
                        record = _decode(stored)
                        if writer and record.writer == writer:
                            return self._written(token, stored.sequence, record)
                        if unknown and stored.sequence > expected:
                            # Ours may have come before this one: written again, it would take
                            # effect twice.
                            raise OutcomeUnknown(
                                f"{token} was written by somebody else since, perhaps after this "
                                "one"
                            )
                        expected, current, fresh = (
                            stored.sequence,
                            None if record.removed else record,
                            True,
                        )
                    elif stored is None and not expected:
                        fresh = True
                try:
                    record = change(current)
                except (AlreadyExists, NotFound):
                    if fresh:
                        raise
                    # What is in memory may be late: ask the log before saying so.
                    continue
                writer = record.writer
                payload = codec.seal(codec.encode(record, f"the registry's entry of {token}"))
                sequence = await self._appender.append(
                    Record(subject, payload, Expect(subject, expected))
                )
                self._apply(token, Stored(subject, sequence, payload))
                return self._written(token, sequence, record)
            except Conflict:
                fresh = False
            except (Unknown, NoQuorum) as error:
                unknown = unknown or isinstance(error, Unknown)
                if self._clock.monotonic() > end or isinstance(error, StorageFailed):
                    if unknown:
                        raise OutcomeUnknown(
                            f"{token} may have been written to the registry: {error}"
                        ) from None
                    raise
            await asyncio.sleep(backoff.delay_seconds(attempt, self._random))

    def _written(self, token: str, sequence: int, record: _EntryRecord) -> Entry:
        kind, name = ids.from_agent_token(token)
        capabilities = frozenset(record.capabilities)
        return Entry(
            kind, name, capabilities, MappingProxyType(record.metadata), record.at, sequence
        )


def _decode(stored: Stored) -> _EntryRecord:
    what = f"the registry's record of {stored.subject}"
    try:
        record: _EntryRecord = codec.decoder(_EntryRecord).decode(
            codec.unseal(stored.payload, what)
        )
    except codec.ERRORS as error:
        raise DataLoss(f"{what} cannot be read: {error}") from None
    return record


def is_freed(stored: Stored) -> bool:
    """Whether a record of the registry only says that a name is free again. Raises `DataLoss`."""
    return _decode(stored).removed
