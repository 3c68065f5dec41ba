"""A backup's records as those of another cluster: sequences are new there, and perhaps the cells.

Sequences stand in records, and each of them is dealt with here:

* an agent's record names the one before it, its place among the batches, and carries its shard's
  digest: they are written anew, in batches as an owner writes them, each with the digest of the
  batches before (`Batch`). Versions stay;
* it names the last inbox message that it consumed. Only later ones are in the backup, and all of
  them get new sequences, so in the new cluster it has consumed none yet;
* an inbox message's *key* is made of its sequence. Calls that its turn made before the cut are
  known by that key, so it keeps the one that it had: the turn that runs again gets the first
  answers;
* an outbox message that was not carried over becomes an inbox message of its receiver. Nothing else
  will carry it: the new cluster's outboxes begin empty, and so do its cursors;
* epochs stand in the names of blobs and messages. They stay as they are: all sequences of a new
  generation are higher than any that the generations before had, so no name comes twice. That also
  keeps fences growing.

Callers' tables, ids, senders' numbers, timers and attempts are an agent's own, and stay.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from holdfast import codec, limits
from holdfast.admin.backup.archive import Item
from holdfast.admin.backup.places import Places
from holdfast.core.digest import entry
from holdfast.engines.base import Expect, Record
from holdfast.errors import DataLoss
from holdfast.records import agent_record, subjects
from holdfast.records.agent_record import AgentRecord
from holdfast.records.messages import InboxMessage, inbox_key

_decode_inbox = msgspec.msgpack.Decoder(InboxMessage).decode
_decode_outbox = msgspec.msgpack.Decoder(tuple[str, bytes]).decode


def first_sequence(generation: int) -> int:
    """Where the cells of a generation begin."""
    return 1 if generation == 1 else generation << limits.GENERATION_BITS


def generation_of(sequence: int) -> int:
    """The generation whose sequences a sequence is among, if not those of one before it."""
    return max(sequence >> limits.GENERATION_BITS, 1)


def moved(item: Item, places: Places) -> tuple[str, Record]:
    """The cell and the record that becomes of anything but an agent's record. Raises `DataLoss`."""
    kind = subjects.kind_of(item.subject)
    if kind == subjects.OUTBOX:
        try:
            subject, message = _decode_outbox(codec.unseal(item.payload, item.subject))
        except codec.ERRORS as error:
            raise DataLoss(f"{item.subject}: not a message for another cell: {error}") from None
        cell, name = places.move(subject)
        return cell, Record(name, message)
    cell, name = places.move(item.subject)
    return cell, Record(name, _keyed(item) if kind == subjects.INBOX else item.payload)


def _keyed(item: Item) -> bytes:
    try:
        message = _decode_inbox(codec.unseal(item.payload, item.subject))
    except (*codec.ERRORS, DataLoss):
        return item.payload  # its receiver makes a dead letter of what cannot be read
    message.key = "" if message.message_id else inbox_key(item.sequence, message)
    return codec.seal(codec.encode_raw(message))


class _Shard:
    __slots__ = ("commit", "count", "digest")

    def __init__(self) -> None:
        self.commit = self.count = self.digest = 0


class Batches:
    """The batches of one new cell. Of two of them the first must be `written` before the second is
    made."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._shards: dict[int, _Shard] = {}
        self._under_way: list[tuple[_Shard, str]] = []

    def make(self, agents: Sequence[Item], others: Sequence[Record]) -> list[Record]:
        """One batch of agents' records, made anew, and of others in their order behind them. Raises
        `DataLoss`.

        Its first record expects to be the first on its subject: the batch can be written once only.
        """
        records: list[Record] = []
        begun: set[int] = set()
        self._under_way = []
        for item in agents:
            number, token = subjects.shard_of(item.subject), subjects.agent_of(item.subject)
            assert number is not None
            shard = self._shards.setdefault(number, _Shard())
            first = number not in begun
            if first:
                begun.add(number)
                shard.commit += 1
            record = agent_record.decode(item.payload, f"{item.subject} {item.sequence}")
            payload = agent_record.encode(self._renewed(record, shard, first))
            records.append(Record(self._places.move(item.subject)[1], payload))
            self._under_way.append((shard, token))
        records += others
        name = records[0].subject
        records[0] = records[0]._replace(expect=Expect(name, 0))
        return records

    def _renewed(self, record: AgentRecord, shard: _Shard, first: bool) -> AgentRecord:
        return msgspec.structs.replace(
            record,
            commit=shard.commit,
            previous=0,
            digest=shard.digest if first else 0,
            count=shard.count if first else 0,
            consumed=0,
            blob=self._places.move(record.blob)[1] if record.blob else "",
        )

    def written(self, sequences: range) -> None:
        """Note where the last batch made lies."""
        for (shard, token), sequence in zip(self._under_way, sequences, strict=False):
            shard.digest ^= entry(token, sequence)
            shard.count += 1
