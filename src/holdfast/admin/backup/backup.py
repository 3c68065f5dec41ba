"""A backup of a running cluster, or of an embedded log: one file that shows one moment.

What the moment is, and why the copy shows it, is in `holdfast.admin.backup.cut`. Here the newest
records up to the cut are written to the file, without what was handled by then: messages that their
agents consumed, messages in an outbox that were carried over, dead letters that are done. The tails
read them before the log forgot them.

Blobs are copied after the cut, from the log itself. Their owners keep the replaced ones as long as
a backup asks for it; where one is gone all the same, everything is begun anew.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from holdfast import limits, loops
from holdfast.admin.backup import cut
from holdfast.admin.backup.archive import FORMAT, Head, Item, Writer
from holdfast.admin.backup.cut import Report
from holdfast.admin.backup.places import is_passing
from holdfast.admin.backup.spool import Spool
from holdfast.admin.backup.verify import BackupFacts, Checks, facts_of
from holdfast.cluster.facts import write_pause
from holdfast.cluster.facts.manifest import registry_cell
from holdfast.codec import ERRORS, unseal
from holdfast.engines.base import Engine, Stored
from holdfast.errors import DataLoss, NotFound, Overloaded
from holdfast.node.node import Node
from holdfast.records import agent_record, subjects
from holdfast.records.messages import DeadRecord
from holdfast.version import VERSION

_TRIES: Final = 3
_BREATH_RECORDS: Final = 256
_decode_dead = msgspec.msgpack.Decoder(DeadRecord).decode
_decode_cursor = msgspec.msgpack.Decoder(int).decode


async def create(node: Node, target: Path, report: Report | None = None) -> BackupFacts:
    """Write a backup of the cluster or embedded log that a node has joined, to a file or into a
    directory.

    ``report`` hears how far it is. Nobody need stop for it; writes wait for some hundredths of a
    second.

    Raises `AlreadyExists` where the file is there, `ConfigError` where it cannot be written,
    `Overloaded` where the cluster was never still, `NoQuorum`, `DataLoss` where what the log has
    does not fit together.
    """
    say = report or _silent
    path = target
    if target.is_dir():
        path = target / f"{node.manifest.cluster_id}-{time.strftime('%Y%m%d-%H%M%S')}.backup"
    keeping = loops.start(_keep_blobs(node.engine), "keeping blobs")
    try:
        for attempt in range(1, _TRIES + 1):
            try:
                return await _create(node, path, say)
            except (DataLoss, NotFound) as error:
                # A replica that lacks something, or a blob that was deleted before its owner heard
                # of the backup.
                if attempt == _TRIES:
                    raise DataLoss(
                        f"the backup does not come out whole, in {_TRIES} attempts: {error}"
                    ) from None
                say("again", {"why": str(error)})
    finally:
        await loops.stop(keeping)
    raise AssertionError("not reached")


async def _keep_blobs(engine: Engine) -> None:
    while True:
        write_pause.keep_blobs(engine)
        await asyncio.sleep(1.0)


async def _create(node: Node, path: Path, say: Report) -> BackupFacts:
    manifest = node.manifest
    registry = registry_cell(manifest.generation)
    cells = [*manifest.cells, registry]
    began_at = time.monotonic()
    with Writer(path) as writer, Spool(path.with_name(path.name + ".spool")) as spool:
        cuts = await cut.take(
            node.engine, cells, lambda: [one.incarnation for one in node.members()], spool, say
        )
        created_at = time.time()
        if time.monotonic() - began_at > limits.DONE_LETTER_SECONDS:
            raise Overloaded(
                "reading took longer than a day: dead letters that were done meanwhile may be "
                "forgotten"
            )
        head = Head(
            FORMAT,
            VERSION,
            manifest.record_version,
            manifest.cluster_id,
            manifest.generation,
            manifest.shards,
            list(manifest.cells),
            registry,
            cuts,
            created_at,
        )
        writer.add(head)
        facts, checks = facts_of(path, head), Checks(head)
        for number, item in enumerate(_items(spool, cuts)):
            checks.item(item)
            facts.count(item)
            writer.add(item)
            if number % _BREATH_RECORDS == 0:
                await asyncio.sleep(0)  # blobs are kept, and life is proven
        checks.shards()
        for key in checks.blobs:
            writer.add_blob(key, await node.engine.blobs.get(key))
            facts.blobs += 1
        facts.size = writer.finish()
    say("written", {"bytes": facts.size})
    return facts


def _items(spool: Spool, cuts: list[int]) -> Iterator[Item]:
    """What belongs into the file: of each cell all but its outboxes, and those at the end.

    A restore makes inbox messages of what is in an outbox, and these come behind those that were
    there before.
    """
    handled = _Handled(spool)
    for outboxes in (False, True):
        for place, cut_at in enumerate(cuts):
            for stored in spool.in_order(place):
                kind = subjects.kind_of(stored.subject)
                if (
                    (kind == subjects.OUTBOX) != outboxes
                    or stored.sequence > cut_at
                    or is_passing(stored.subject)
                ):
                    continue
                if not handled(kind, stored) and subjects.word_of(stored.subject) != subjects.RELAY:
                    yield Item(place, stored.sequence, stored.subject, stored.payload)


class _Handled:
    """Whether a record is of something that was handled by the cut."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._consumed: dict[str, int] = {}
        self._cursors: dict[str, int] = {}

    def __call__(self, kind: str, stored: Stored) -> bool:
        cell = subjects.cell_of(stored.subject)
        if kind == subjects.INBOX:
            shard = subjects.shard(cell, subjects.shard_of(stored.subject))
            agent = subjects.agent_of(stored.subject)
            return stored.sequence <= self._consumed_by(subjects.record(shard, agent))
        if kind == subjects.OUTBOX:
            target, number = subjects.target_of(stored.subject), subjects.shard_of(stored.subject)
            return stored.sequence <= self._carried(subjects.relay(target, cell, number))
        return kind == subjects.DEAD_LETTER and _is_done(stored)

    def _consumed_by(self, subject: str) -> int:
        """The last inbox message that an agent consumed."""
        found = self._consumed.get(subject)
        if found is None:
            payload = self._spool.get(subject)
            found = 0 if payload is None else agent_record.decode(payload, subject).consumed
            if len(self._consumed) >= 10_000:
                self._consumed.clear()
            self._consumed[subject] = found
        return found

    def _carried(self, subject: str) -> int:
        """How far a relay has come."""
        if subject not in self._cursors:
            payload = self._spool.get(subject)
            self._cursors[subject] = (
                0 if payload is None else _decode_cursor(unseal(payload, subject))
            )
        return self._cursors[subject]


def _is_done(stored: Stored) -> bool:
    try:
        return _decode_dead(unseal(stored.payload, stored.subject)).done
    except (*ERRORS, DataLoss):
        return False  # what cannot be read is kept as it is


def _silent(_event: str, _facts: dict[str, Any]) -> None:
    pass
