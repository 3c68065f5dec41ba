"""The engine's contract: a log, a bus and blobs. Everything above this file is the same on every
engine.

Why three small contracts: all that is durable in Holdfast is one primitive, a fenced log that is
addressed by subject. The bus carries what may be lost. Blobs carry what is too large for a record.

A **subject** is a dotted path of tokens (``c0.17.st.Counter/a``). In a filter ``*`` stands for one
token and a trailing ``>`` for one or more. Tokens have no white space, no control characters, and
none of ``.``, ``*``, ``>``.

One conformance suite (``tests/engines``) holds every engine to each promise below. What an engine
cannot do is a row in `GAPS`, and nowhere else.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from holdfast import telemetry


class Expect(NamedTuple):
    """A record's condition: the newest record on ``subject`` has this ``sequence`` (0: there is
    none).

    On the record's own subject it is a compare-and-set. On another subject it is a **fence**: for
    example, the subject is a shard's epoch, and the sequence is the epoch that the writer believes
    it owns.
    """

    subject: str
    sequence: int


class Record(NamedTuple):
    """A record to append. The log keeps only the newest record of each subject."""

    subject: str
    payload: bytes
    expect: Expect | None = None


class Stored(NamedTuple):
    """A record that the log has. ``sequence`` is unique in its cell and only grows; it is at least
    1."""

    subject: str
    sequence: int
    payload: bytes


class Chunk(NamedTuple):
    """Some records of a tail, in order. ``caught_up``: when they were read, the log had no later
    one.

    ``server``: whose copy they were read from; empty where there is only one. ``begun`` grows when
    the reading was interrupted: records lay at rest meanwhile, in a copy that may have lost some of
    them.
    """

    records: list[Stored]
    caught_up: bool
    server: str = ""
    begun: int = 1


class Shown(NamedTuple):
    """The subjects that have a record, as one server's copy shows them."""

    server: str
    subjects: set[str]


AnswerT = TypeVar("AnswerT")
Answer: TypeAlias = Coroutine[Any, Any, AnswerT]
"""What is awaited for an answer. Whoever asks an engine is heard of: see `holdfast.telemetry`. An
engine itself has the methods with a leading underscore."""


class Log(ABC):
    """Replicated logs, one per cell, each addressed by subject and holding the newest record of
    each subject."""

    def append(self, cell: str, records: Sequence[Record]) -> Answer[range]:
        """Append all the records, or none; return their sequences, which are consecutive and in the
        order given.

        When it returns, the records are on a majority of the cohort's disks. The expectations are
        checked against what the log holds *before* this batch. A subject may stand only once in a
        batch, and an expectation may not name a subject that an earlier record of the batch writes.
        Of two batches under way at once with an expectation on the same subject, an engine may
        refuse either with `NoQuorum`, so writers of one shard take turns.

        Raises:
            Conflict: an expectation on a record's own subject did not hold. Nothing was written.
            Fenced: an expectation did not hold in a batch that has a fence. Nothing was written.
            Which one is not said. TooLarge: over `Engine.record_bytes_max`, `batch_records_max` or
            `batch_bytes_max`. Nothing was written. InvalidName: an unusable subject or cell, an
            empty batch, or a subject twice. Nothing was written. NoQuorum: refused for want of a
            majority or a leader. Nothing was written, now or later. Unknown: no answer in time. It
            may have been written, may be written later, or never. Closed: the engine was closed
            before the batch was handed over. Nothing was written.
        """
        work = self._append(cell, records)
        return telemetry.engine("append", cell, work) if telemetry.listeners else work

    @abstractmethod
    async def _append(self, cell: str, records: Sequence[Record]) -> range: ...

    def read(self, cell: str, subject: str) -> Answer[Stored | None]:
        """The newest record on a subject that the answering replica knows: **it may be stale**.

        Raises `NoQuorum` where no replica answers.
        """
        work = self._read(cell, subject)
        return telemetry.engine("read", cell, work) if telemetry.listeners else work

    @abstractmethod
    async def _read(self, cell: str, subject: str) -> Stored | None: ...

    def read_sequence(self, cell: str, sequence: int) -> Answer[Stored | None]:
        """The record with exactly this sequence, from any replica that has it, or None if no
        replica shows it.

        Raises `NoQuorum` where no replica answers.
        """
        work = self._read_sequence(cell, sequence)
        return telemetry.engine("read_sequence", cell, work) if telemetry.listeners else work

    @abstractmethod
    async def _read_sequence(self, cell: str, sequence: int) -> Stored | None: ...

    @abstractmethod
    def tail(
        self, cell: str, subjects: Sequence[str], from_sequence: int = 1, not_on: str = ""
    ) -> AsyncIterator[Chunk]:
        """Every record that matches one of the filters, from a sequence on, in order and without a
        gap, for ever.

        Records that were replaced or purged before they were read are left out. It goes on by
        itself after the death of any server, at the next sequence. The first chunk with
        ``caught_up`` comes also when there is no record. With ``not_on``, it reads another copy
        than this server's, where one can be had. Close it with ``aclose()``. Raises `Closed` when
        the engine is closed.
        """

    @abstractmethod
    async def subjects(self, cell: str, subject_filters: Sequence[str]) -> Shown | None:
        """The subjects that match one of the filters and have a record; None where there is one
        copy of everything.

        It is answered from the copy that decides about appends: it has all that was acknowledged
        before, unless that very copy was damaged. What another copy lacks of it, and was not
        purged, that one lost.

        Raises `NoQuorum` or `Unknown`; both may be answered by trying again.
        """

    def purge(self, cell: str, subject: str, before_sequence: int) -> Answer[None]:
        """Remove the records on a subject or filter whose sequence is lower. Repeating it is
        harmless.

        Raises `NoQuorum` or `Unknown`; both may be answered by trying again.
        """
        work = self._purge(cell, subject, before_sequence)
        return telemetry.engine("purge", cell, work) if telemetry.listeners else work

    @abstractmethod
    async def _purge(self, cell: str, subject: str, before_sequence: int) -> None: ...

    @abstractmethod
    async def last_sequence(self, cell: str) -> int:
        """The cell's newest sequence, 0 if it never had a record. It may be stale."""


class Message(NamedTuple):
    """A message from the bus. ``no_responders``: nobody served the subject of the message that
    named this reply."""

    subject: str
    reply: str
    payload: bytes
    no_responders: bool = False


class Subscription(ABC):
    """Interest in a subject, until closed."""

    @abstractmethod
    async def close(self) -> None:
        """End the interest; what was sent before may still arrive until this returns. Closing twice
        is harmless."""


class Bus(ABC):
    """Messages between processes: best effort, at most once, in order per publisher and subject
    while connected."""

    @abstractmethod
    def publish(self, subject: str, payload: bytes, reply: str = "") -> None:
        """Send, without waiting. With a ``reply``, and nobody subscribed to the subject, a
        `Message` with ``no_responders`` comes back on the reply subject at once. What cannot be
        sent now is dropped, never kept for later.

        Raises `TooLarge` over `Engine.record_bytes_max`, `InvalidName` for an unusable subject.
        """

    @abstractmethod
    async def subscribe(
        self, subject: str, callback: Callable[[Message], None], queue: str = ""
    ) -> Subscription:
        """Call back for each message, on the event loop. The callback does not block and does not
        raise.

        When this returns, the subscription is known to the server it was sent to. With a ``queue``,
        one member of the queue gets each message. Subscriptions outlive a reconnection.
        """

    @abstractmethod
    async def request(self, subject: str, payload: bytes, timeout_seconds: float) -> bytes:
        """Publish and await the first reply. Raises `NoResponders` at once, or `Unknown` after the
        timeout."""


class Blobs(ABC):
    """Values too large for a record. A key is used once: it is never overwritten with another
    value."""

    def put(self, key: str, value: bytes) -> Answer[None]:
        """Store; when it returns the value is as durable as a record. The same key with the same
        value is harmless.

        Raises `TooLarge` over `limits.BLOB_BYTES_MAX`, `NoQuorum`, `Unknown`, `InvalidName`.
        """
        work = self._put(key, value)
        return telemetry.engine("put", key, work) if telemetry.listeners else work

    @abstractmethod
    async def _put(self, key: str, value: bytes) -> None: ...

    def get(self, key: str) -> Answer[bytes]:
        """The whole value. Raises `NotFound`, `DataLoss` where its checksum does not agree,
        `NoQuorum`."""
        work = self._get(key)
        return telemetry.engine("get", key, work) if telemetry.listeners else work

    @abstractmethod
    async def _get(self, key: str) -> bytes: ...

    @abstractmethod
    async def delete(self, key: str) -> None:
        """Remove, if it is there. Raises `NoQuorum` or `Unknown`; both may be answered by trying
        again."""

    @abstractmethod
    async def keys(self, prefix: str) -> list[str]:
        """All keys that start so, sorted. It may be stale. Keys are dotted paths of tokens; a
        prefix ends on a token."""


class Engine(ABC):
    """One process's connection to a log, a bus and blobs."""

    name: str
    log: Log
    bus: Bus
    blobs: Blobs
    record_bytes_max: int
    batch_records_max: int
    batch_bytes_max: int

    @abstractmethod
    async def open(self) -> None:
        """Connect, and check the settings of what is found. Raises `ConfigError` or `NoQuorum`."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of everything. Appends under way end with their outcome, or `Unknown`. Closing
        twice is harmless."""

    @abstractmethod
    async def ensure_cells(
        self, cells: Sequence[str], replicas: int, first_sequence: int = 1
    ) -> None:
        """Make the cells that are missing, and check the settings of those that are there.

        ``first_sequence``: what the first record of a cell that is made here gets, or more.

        Raises `ConfigError` where a cell has other settings, `InvalidName`, `NoQuorum`.
        """

    @abstractmethod
    async def check_cells(self, cells: Sequence[str]) -> int:
        """Check the settings of cells, and make nothing: how many copies the one with the fewest
        has.

        Raises `NotFound` where one is not there, `ConfigError` where one has other settings,
        `InvalidName`, `NoQuorum`.
        """

    @abstractmethod
    async def cells(self) -> list[str]:
        """The names of all cells that are there, sorted. Raises `NoQuorum`."""

    @abstractmethod
    async def drop_cells(self, cells: Sequence[str]) -> None:
        """Remove cells with all their records, for ever; one that is not there is no error.

        Whoever writes to them then gets an error, and nothing is written. Raises `InvalidName`, and
        `NoQuorum` or `Unknown`; these may be answered by trying again.
        """

    @abstractmethod
    def connected(self) -> bool:
        """Whether this process reaches a server at this moment. It says nothing about a quorum."""

    @abstractmethod
    def servers(self) -> int:
        """How many servers of the cluster this process knows, itself not counted; 1 where there is
        none."""

    def when_failed(self, tell: Callable[[str], None]) -> None:  # noqa: B027
        """Have ``tell`` called with the reason when this engine finds that it can write nothing
        more until it is opened again. One whose servers may come back never does."""

    @abstractmethod
    def statistics(self) -> Mapping[str, int | float | str]:
        """Counters since `open`: appends, records, bytes, unknown outcomes, reconnections and the
        like."""


class Gap(NamedTuple):
    """Something that one engine does not do."""

    engine: str
    promise: str
    what_happens: str


GAPS: Final[tuple[Gap, ...]] = (
    Gap(
        "local",
        "a majority of the cohort's disks",
        "there is one disk; a lost disk is a lost log: keep a copy with `holdfast backup create`",
    ),
    Gap(
        "local",
        "several processes",
        "a second process that serves agents gets `ConfigError` naming the first; a process that "
        "serves none becomes its client",
    ),
    Gap(
        "nats",
        "read: the newest record",
        "a lagging replica, or a leader that was cut off, answers with an older record",
    ),
    Gap(
        "nats",
        "append: what is refused was not written",
        "when leaders change, a batch may arrive twice: one copy is written, and the writer hears "
        "the refusal of the other. Therefore each batch of a writer expects a record that the "
        "batch itself changes",
    ),
)
"""The one table of what an engine cannot do. `docs/guarantees.md` prints it, and a test holds the
two together."""


def matches(subject_filter: str, subject: str) -> bool:
    """Whether a subject matches a filter with ``*`` and a trailing ``>``."""
    if subject_filter == subject:
        return True
    wanted, tokens = subject_filter.split("."), subject.split(".")
    for index, token in enumerate(wanted):
        if token == ">":
            return len(tokens) > index
        if index >= len(tokens) or token not in ("*", tokens[index]):
            return False
    return len(wanted) == len(tokens)


@lru_cache(maxsize=1024)
def matcher(subject_filters: tuple[str, ...]) -> Callable[[str], bool]:
    """A function that tells whether a subject matches one of the filters."""
    found = re.compile("|".join(map(_pattern, subject_filters))).fullmatch
    return lambda subject: found(subject) is not None


def _pattern(subject_filter: str) -> str:
    tokens = subject_filter.split(".")
    return r"\.".join({"*": r"[^.]+", ">": ".+"}.get(token, re.escape(token)) for token in tokens)
