"""One batch of a committer while it is put together: agents' records, what their turns send, and
records that leave packs.

A record of an agent is small, mostly, and then goes into the batch's pack if there is to be one.
Per shard, the first record carries the digest of the shard's index before the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from holdfast import codec, limits
from holdfast.cluster.ownership import epochs
from holdfast.engines.base import Record
from holdfast.errors import TooLarge
from holdfast.records import agent_record, packs, subjects
from holdfast.serving.delivery import Delivery
from holdfast.serving.turns.activation import Activation

if TYPE_CHECKING:
    from holdfast.serving.shards.shard import Shard

_RECORD_OVERHEAD: Final = 512
"""Bytes of subject and headers to allow for per record."""


class Batch:
    """See the module. ``link``: its first record; None on the embedded engine. ``chain``: the chain
    that fences it; empty where the shards' epochs do. ``slot``: where its pack goes; None where it
    has none. ``hot_from``: agents whose newest record is older go into none. ``version``: of
    the records. ``now``: in s since 1970."""

    def __init__(
        self,
        cell: str,
        link: Record | None,
        chain: str,
        slot: int | None,
        hot_from: int,
        version: int,
        now: float,
    ) -> None:
        self.link = link
        self.chain = chain
        self.slot = slot
        self.hot_from = hot_from
        self.records: list[Record] = [] if link is None else [link]
        self.bytes = 0
        self.agents: list[tuple[Activation, int, bytes]] = []
        """Each with the place of its record, -1 if it is in the pack, and the state that the record
        holds."""
        self.moves: list[tuple[Shard, str, int]] = []
        """Agents whose records leave their packs, with the places of the new ones."""
        self.settled: list[Shard] = []
        """Shards that need nothing in packs of owners before."""
        self.shards: dict[Shard, None] = {}
        self.outbox: list[tuple[Shard, str, int]] = []
        """Sends to another cell: the shard, the cell, and the place of the record."""
        self._cell = cell
        self._version = version
        self._now = now
        self._pack: list[tuple[int, str, bytes]] = []
        self._pack_bytes = 0

    def has_work(self) -> bool:
        """Whether there is something to write."""
        return bool(self.agents or self.moves or self.settled)

    def add(self, activation: Activation) -> bool:
        """Add an agent's record and what its turns send; False where there is no room left for
        them.

        Raises `TooLarge`: the record fits no batch.
        """
        shard, state, token = activation.shard, activation.state_bytes, activation.token
        size, many = len(state) + activation.seen.bytes_kept + _RECORD_OVERHEAD, 1
        if activation.outgoing_records:
            size += activation.outgoing_bytes
            many += activation.outgoing_records
        if self.agents and (
            self.bytes + size * 2 > limits.BATCH_BYTES_MAX
            or len(self.records) + many * 2 > limits.BATCH_RECORDS_MAX
        ):
            return False
        fence, digest, count = None, 0, 0
        if first := shard not in self.shards:
            self._begin(shard)
            digest, count = shard.digest, len(shard.index)
            fence = None if self.chain else shard.fence
        payload = agent_record.encode(
            activation.snapshot(self._version, self._now, shard.commit, digest, count)
        )
        size = len(payload)
        if size + _RECORD_OVERHEAD > limits.RECORD_BYTES_MAX:
            if first:
                del self.shards[shard]
            raise TooLarge(f"the record of {token} has {size} bytes")
        if (
            self.slot is not None
            and activation.sequence >= self.hot_from
            and size <= limits.PACKED_BYTES_MAX
            and self._pack_bytes + size <= limits.PACK_BYTES_MAX
            and not activation.blob
            and not shard.settling
        ):
            self.agents.append((activation, -1, state))
            self._pack.append((shard.number, token, payload))
            self._pack_bytes += size
            self.bytes += size
        else:
            self.agents.append((activation, len(self.records), state))
            self._append(Record(subjects.record(shard.prefix, token), payload, fence))
        for message in activation.in_batch:
            if message.outgoing:
                self._add_outgoing(shard, message)
            if message.dead:
                end = str(message.sequence or f"t{shard.next_unique()}")
                self._append(Record(subjects.dead_letter(shard.prefix, token, end), message.dead))
        return True

    def _append(self, record: Record) -> None:
        self.records.append(record)
        self.bytes += len(record.payload) + _RECORD_OVERHEAD

    def _begin(self, shard: Shard) -> None:
        """Note a shard that is in this batch."""
        shard.commit += 1
        self.shards[shard] = None

    def _add_outgoing(self, shard: Shard, message: Delivery) -> None:
        for sent in message.outgoing or ():
            target = shard.runtime.shard_of(sent.token)
            cell = shard.runtime.cell_of(target)
            unique = shard.next_unique()
            subject = subjects.inbox(cell, target, sent.token, unique)
            payload = codec.seal(codec.encode_raw(sent.message))
            if cell != self._cell:
                # The relay puts it under that subject in the other cell.
                payload = codec.seal(codec.encode_raw((subject, payload)))
                subject = subjects.outbox(shard.prefix, cell, unique)
                self.outbox.append((shard, cell, len(self.records)))
            self._append(Record(subject, payload))

    def has_room(self) -> bool:
        """Whether a record that leaves its pack may be added."""
        return (
            len(self.records) < limits.BATCH_RECORDS_MAX - 1
            and self.bytes < limits.BATCH_BYTES_MAX // 2
        )

    def add_move(self, shard: Shard, token: str) -> None:
        """Add a record of its own for an agent that is packed: the same but for its place."""
        packed = shard.packed_record(token)
        assert packed is not None, f"{token} is in no pack"
        record = agent_record.decode(packed, f"the packed record of {token}")
        if first := shard not in self.shards:
            self._begin(shard)
        record.commit, record.previous, record.version = (
            shard.commit,
            shard.index[token],
            record.version + 1,
        )
        record.digest, record.count = (shard.digest, len(shard.index)) if first else (0, 0)
        self.moves.append((shard, token, len(self.records)))
        self._append(Record(subjects.record(shard.prefix, token), agent_record.encode(record)))

    def add_settled(self, shard: Shard) -> None:
        """Add that a shard needs nothing in packs of owners before."""
        self.settled.append(shard)
        self._append(epochs.settled(self._cell, shard.number, shard.epoch))

    def finish(self) -> None:
        """Add the pack, as the last record."""
        if self._pack:
            assert self.slot is not None
            self.records.append(packs.record(self._cell, self.chain, self.slot, self._pack))

    def pack_payload(self) -> bytes:
        """The payload of the pack, empty where it has none."""
        return self.records[-1].payload if self._pack else b""
