"""Group commit: one batch per (node, cell), of all agents that finished turns since the batch before.

The naive way, a batch per turn or per shard, multiplies fsyncs and Raft entries; they are what a turn costs. Here one
batch is in flight per cell, and while it is, the next one fills: the busier the node, the cheaper a turn. Each shard's
first record in the batch carries its own fence, so one owner lost refuses the batch, and the others are sent again.

The servers may get a batch twice, or write one that they said they refused. So a batch also carries a link: a record
that expects the link of this node's batch before, and that makes it certain that no batch is written twice.

What becomes of a batch:

* acknowledged: everything that waited for it is released;
* `Fenced`: the shards whose epoch is another's are dropped, the rest is claimed anew;
* `Unknown`: it is never retried and never looked up. Its shards stop and are claimed anew from this very node: the old
  batch then lies before the new epoch, or can never commit;
* `NoQuorum`: nothing was written; tried again for a while, then every turn in it is undone and its caller told so;
* refused for what is in it: the agents are sent one by one, the guilty one's turns one by one; the guilty turn fails.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from holdfast import chance, codec, limits
from holdfast.agents.activation import Activation
from holdfast.agents.mailbox import Delivery
from holdfast.agents.record import pack
from holdfast.cluster.life import base
from holdfast.core import backoff
from holdfast.core.digest import entry
from holdfast.engines.base import Expect, Record
from holdfast.errors import Closed, Conflict, HoldfastError, NoQuorum, TooLarge, Unknown

if TYPE_CHECKING:
    from holdfast.agents.runtime import Runtime
    from holdfast.agents.shard import Shard

_RECORD_OVERHEAD: Final = 512
"""Bytes of subject and headers to allow for per record."""


class _Batch:
    def __init__(self) -> None:
        self.records: list[Record] = []
        self.bytes = 0
        self.agents: list[tuple[Activation, int, bytes]] = []
        """Each with the place of its record, and the state that the record holds."""
        self.shards: dict[Shard, int] = {}
        self.outbox: list[tuple[Shard, str, int]] = []
        """Sends to another cell: the shard, the cell, and the place of the record."""


class Committer:
    """The one writer of this node's agents in one cell."""

    def __init__(self, runtime: Runtime, cell: str) -> None:
        self._runtime = runtime
        self._cell = cell
        self._dirty: dict[Activation, None] = {}
        self._one_by_one: dict[Activation, None] = {}
        self._wake = asyncio.Event()
        self.waiting = 0
        """Turns that wait to be written."""
        self._enough = 1
        """… and how many of them are worth a batch."""
        self._append_seconds = 0.0
        self._random = chance.random()
        self._era = 0
        self._link = 0
        """The sequence of the chain's newest record; 0: this era has none yet."""
        self.batches = 0
        self.records = 0
        self.turns = 0

    @property
    def _chain(self) -> str:
        return f"{self._cell}.ch.{base(self._runtime.incarnation)}-{self._era}"

    def _new_era(self) -> None:
        """What became of the newest batch is not known, so neither is the chain's end: begin another."""
        if self._link:
            self._runtime.spawn(self._runtime.purge(self._cell, self._chain, 1 << 62))
        self._era += 1
        self._link = 0

    def mark(self, activation: Activation) -> None:
        """The agent has finished turns to commit."""
        self._dirty[activation] = None
        self.waiting += 1
        if self.waiting >= self._enough:
            self._wake.set()

    def busy(self, shard: Shard) -> bool:
        """Whether turns of the shard wait for their commit."""
        return any(activation.shard is shard for activation in self._dirty)

    async def run(self) -> None:
        """Write batches until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._dirty or self._one_by_one:
                written = self.turns
                started = self._runtime.loop.time()
                await self._commit(await self._build())
                self._append_seconds += (self._runtime.loop.time() - started - self._append_seconds) / 8
                await self._linger(self.turns - written)

    async def _linger(self, written: int) -> None:
        """Wait a little for those that were answered just now to ask again, never for longer than an append takes.

        A batch costs far more than what is in it. Without this, while a batch is written half of all callers wait for
        the next one, so that each batch holds half of what it could.
        """
        self._enough = written + self.waiting - (written + self.waiting) // 5
        if 0 < self.waiting < self._enough:
            self._wake.clear()
            seconds = min(self._append_seconds, limits.LINGER_SECONDS_MAX)
            late = self._runtime.loop.call_later(seconds, self._wake.set)
            await self._wake.wait()
            late.cancel()
        self._enough = 1

    # Building ------------------------------------------------------------------------------------------------------

    async def _build(self) -> _Batch:
        if self._one_by_one:
            source, most = self._one_by_one, 1
        else:
            source, most = self._dirty, limits.BATCH_RECORDS_MAX
        waiting: list[Activation] = []
        for activation in source:
            waiting.append(activation)
            if len(waiting) >= most:
                break
        for activation in waiting:
            if activation.pending and activation.needs_blob():
                await self._put_blob(activation)
        batch = _Batch()
        if not self._runtime.life.alone:
            batch.records.append(Record(self._chain, b"%d" % self.batches, Expect(self._chain, self._link)))
        for activation in waiting:
            if not activation.pending or not activation.shard.active:
                source.pop(activation, None)
                continue
            if activation.needs_blob():
                continue  # a turn that ran meanwhile changed its state: again, with the next batch
            if not self._add(batch, activation):
                break
            source.pop(activation, None)
        self.waiting = sum(len(activation.pending) for activation in self._dirty)
        return batch

    async def _put_blob(self, activation: Activation) -> None:
        shard = activation.shard
        key = f"{shard.prefix}.{activation.token}.{shard.next_unique()}"
        activation.held = True
        state = activation.state_bytes
        try:
            await self._runtime.engine.blobs.put(key, state)
        except Closed:
            raise
        except HoldfastError as error:
            if shard.active:
                shard.drop(activation, error if isinstance(error, NoQuorum) else NoQuorum(f"the state's blob: {error}"))
            return
        if activation.blob:
            activation.old_blobs = [*(activation.old_blobs or ()), activation.blob]
        activation.blob, activation.state_in_blob = key, state

    def _add(self, batch: _Batch, activation: Activation) -> bool:
        """Add the agent's record and what its turns send; False where the batch has no room left for them."""
        shard = activation.shard
        size = len(activation.state_bytes) + activation.seen.bytes_kept + activation.outgoing_bytes + _RECORD_OVERHEAD
        many = 1 + activation.outgoing_records
        if batch.agents and (
            batch.bytes + size * 2 > limits.BATCH_BYTES_MAX or len(batch.records) + many * 2 > limits.BATCH_RECORDS_MAX
        ):
            return False
        first = shard not in batch.shards
        if first:
            shard.commit += 1
            batch.shards[shard] = shard.commit
        digest, count = (shard.digest, len(shard.index)) if first else (0, 0)
        state = activation.state_bytes
        payload = pack(activation.snapshot(shard.commit, digest, count))
        if len(payload) + _RECORD_OVERHEAD > limits.RECORD_BYTES_MAX:
            self._refused(activation, TooLarge(f"the record of {activation.token} has {len(payload)} bytes"))
            if first:
                del batch.shards[shard]
            return True
        batch.agents.append((activation, len(batch.records), state))
        subject = f"{shard.prefix}.st.{activation.token}"
        batch.records.append(Record(subject, payload, shard.fence if first else None))
        batch.bytes += len(payload) + _RECORD_OVERHEAD
        for message in activation.in_batch:
            if message.outgoing:
                self._add_outgoing(batch, shard, message)
            if message.dead:
                end = message.sequence or f"t{shard.next_unique()}"
                batch.records.append(Record(f"{shard.prefix}.dl.{activation.token}.{end}", message.dead))
        return True

    def _add_outgoing(self, batch: _Batch, shard: Shard, message: Delivery) -> None:
        for sent in message.outgoing or ():
            target = self._runtime.shard_of(sent.token)
            cell = self._runtime.cell_of(target)
            unique = shard.next_unique()
            subject = f"{cell}.{target}.in.{sent.token}.{unique}"
            payload = codec.seal(codec.encode_raw(sent.message))
            if cell != self._cell:
                # The relay puts it under that subject in the other cell.
                payload = codec.seal(codec.encode_raw((subject, payload)))
                record = Record(f"{shard.prefix}.out.{cell}.{unique}", payload)
                batch.outbox.append((shard, cell, len(batch.records)))
            else:
                record = Record(subject, payload)
            batch.records.append(record)
            batch.bytes += len(payload) + _RECORD_OVERHEAD

    # Writing -------------------------------------------------------------------------------------------------------

    async def _commit(self, batch: _Batch) -> None:
        give_up_at = self._runtime.loop.time() + limits.QUORUM_WAIT_SECONDS
        attempt = 0
        while batch.agents:
            try:
                sequences = await self._runtime.gate.append(self._cell, batch.records)
            except Conflict:
                await self._conflict(batch)
                return
            except Closed:
                raise
            except NoQuorum as error:
                attempt += 1
                if self._runtime.loop.time() > give_up_at:
                    for activation, _, _ in batch.agents:
                        if activation.shard.active:
                            activation.shard.drop(activation, error)
                    return
                await asyncio.sleep(backoff.delay_seconds(attempt, self._random))
                if not all(shard.active for shard in batch.shards):
                    self._put_back(batch)
                    return
            except Unknown:
                self._new_era()
                self._runtime.reclaim(self._cell, [shard for shard in batch.shards if shard.active])
                return
            except HoldfastError as error:
                if len(batch.agents) == 1:
                    self._refused(batch.agents[0][0], error)
                else:
                    self._put_back(batch)
                    self._one_by_one.update((activation, None) for activation, _, _ in batch.agents)
                return
            else:
                self._link = 0 if self._runtime.life.alone else sequences[0]
                self._acknowledged(batch, sequences)
                return

    def _acknowledged(self, batch: _Batch, sequences: range) -> None:
        self.batches += 1
        self.records += len(batch.records)
        for shard, cell, place in batch.outbox:
            if shard.active:
                shard.relay(cell).add(sequences[place], batch.records[place].payload)
        for activation, place, state in batch.agents:
            shard = activation.shard
            if shard.active and activation.loaded:
                token, sequence = activation.token, sequences[place]
                shard.digest ^= entry(token, activation.sequence) ^ entry(token, sequence)
                shard.index[token] = sequence
                self.turns += len(activation.in_batch)
                activation.committed(sequence, state)
                if activation.old_blobs:
                    self._runtime.spawn(self._runtime.delete_blobs(activation.old_blobs))
                    activation.old_blobs = None

    def _put_back(self, batch: _Batch) -> None:
        """Nothing was written: what is still ours goes into the next batch."""
        for activation, _, _ in batch.agents:
            if activation.shard.active:
                activation.not_written()
                self.mark(activation)
        self._wake.set()

    async def _conflict(self, batch: _Batch) -> None:
        """A fence is refused, or a link of the chain: let go of what is another's, and claim the rest anew.

        None of it is sent again as it is: the refusal may be of a second copy of a batch that was written.
        """
        self._new_era()
        lost = []
        for shard in batch.shards:
            try:
                epoch = await self._runtime.engine.log.read(self._cell, shard.fence.subject)
            except (NoQuorum, Unknown):
                continue
            # A lagging replica shows an older epoch, never a newer one.
            if epoch is not None and epoch.sequence > shard.epoch:
                lost.append(shard)
        self._runtime.lost(self._cell, [shard for shard in lost if shard.active])
        self._runtime.reclaim(self._cell, [shard for shard in batch.shards if shard.active])

    def _refused(self, activation: Activation, error: HoldfastError) -> None:
        """The log will not take this agent's record: its turns are undone, and the guilty one is found."""
        shard = activation.shard
        if not shard.active:
            return
        uncommitted = activation.in_batch + activation.pending
        shard.rerun_alone(activation, uncommitted[0] if len(uncommitted) == 1 else None, error)
