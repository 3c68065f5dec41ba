"""Group commit: one batch per (node, cell), of all agents that finished turns since the batch
before.

The naive way, a batch per turn or per shard, multiplies fsyncs and Raft entries; they are what a
turn costs. Here one batch is in flight per cell, and while it is, the next one fills: the busier
the node, the cheaper a turn. Where many small records are to be written they are put into one, a
pack (`holdfast.records.packs`); what leaves its pack later is written with the batches that come
(`journal`).

Each batch begins with a link, which expects the link of the batch before
(`holdfast.cluster.fence_chain`): it fences this node off when its shards are claimed by others, and
it makes sure that no batch is written twice, although the servers may get it twice, or write one
that they said they refused. As long as there may be nodes that do not know chains for fences, each
shard's first record in the batch also expects the shard's epoch; on the embedded engine that is
all.

What becomes of a batch:

* acknowledged: everything that waited for it is released;
* `Conflict` or `Fenced`: the shards whose epoch is another's are dropped, the rest of the cell is
  claimed anew;
* `Unknown`: it is never retried and never looked up. This node's shards of the cell stop and are
  claimed anew with another chain: the old batch then lies before the new epochs, or can never
  commit;
* `NoQuorum`: nothing was written; tried again for a while, then every turn in it is undone and its
  caller told so;
* refused for what is in it: the agents are sent one by one, the guilty one's turns one by one; the
  guilty turn fails.
"""

from __future__ import annotations

import asyncio
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Final

from holdfast import chance, limits
from holdfast.core import backoff
from holdfast.engines.base import Record
from holdfast.errors import (
    Closed,
    Conflict,
    HoldfastError,
    NoQuorum,
    StorageFailed,
    TooLarge,
    Unknown,
)
from holdfast.serving.commits import large_states
from holdfast.serving.commits.batch import Batch
from holdfast.serving.commits.pack_table import PackTable
from holdfast.serving.turns.activation import Activation

if TYPE_CHECKING:
    from holdfast.serving.runtime import Runtime
    from holdfast.serving.shards.shard import Shard

PACKED_VERSION: Final = 3
"""From this version of records on every node knows packs, and chains for fences."""

_MOVES_PAUSE_SECONDS: Final = 1.0


class Committer:
    """The one writer of this node's agents in one cell."""

    def __init__(self, runtime: Runtime, cell: str) -> None:
        self._runtime = runtime
        self._cell = cell
        self._chain = runtime.life.chains[cell]
        self.journal = PackTable(runtime.shards)
        self._writes: deque[tuple[list[Record], asyncio.Future[range]]] = deque()
        self.dirty: dict[Activation, None] = {}
        """The agents that have finished turns to commit, oldest first."""
        self._one_by_one: dict[Activation, None] = {}
        self._large = False
        """Whether a state among them may need a blob."""
        self._wake = asyncio.Event()
        self.wake: Final = self._wake.set
        self.waiting = 0
        """Turns that wait to be written."""
        self.enough = 1
        """… and how many of them are worth a batch."""
        self._append_seconds = 0.0
        self._random = chance.random()
        self._moves_at: asyncio.TimerHandle | None = None
        self._over = False
        self._switched = self._knows_chains()
        """Whether all that is ours was claimed since every node breaks chains."""
        self.batches = 0
        self.records = 0
        self.turns = 0

    def mark(self, activation: Activation) -> None:
        """The agent has finished turns to commit."""
        # the fast path does all this but for a large state, which it leaves to others
        self.dirty[activation] = None
        if len(activation.state_bytes) + activation.seen.bytes_kept >= limits.BLOB_THRESHOLD_BYTES:
            self._large = True
        self.waiting += 1
        if self.waiting >= self.enough:
            self._wake.set()

    def began(self, shard: Shard) -> None:
        """A shard is served from now on."""
        if shard.unsettled and self._may_write(shard):
            self.journal.leave(shard)
            self._wake.set()

    def settle(self, shard: Shard) -> None:
        """Have nothing of a shard in packs, as it is about to be let go of."""
        shard.settling = True
        if self._may_write(shard):
            self.journal.leave(shard)
            self._wake.set()

    def ended(self) -> None:
        """The chain has ended: its packs are those of an owner before."""
        self.journal = PackTable(self._runtime.shards)

    async def write(self, records: list[Record]) -> range:
        """Append these between two batches, with a link of their own. Raises what `Log.append`
        does.

        After `Conflict` and `Unknown` this node's shards of the cell are claimed anew.
        """
        if self._over:
            raise Closed("nothing is written by this node any more")
        done: asyncio.Future[range] = self._runtime.loop.create_future()
        self._writes.append((records, done))
        self._wake.set()
        return await done

    async def run(self) -> None:
        """Write batches until cancelled."""
        try:
            await self._run()
        finally:
            self._over = True
            for _, done in self._writes:
                if not done.done():
                    done.set_exception(Closed("this node writes nothing any more"))

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._writes or self.dirty or self._one_by_one or self._moves_due():
                self._switch()
                if self._writes:
                    await self._write(*self._writes[0])
                    self._writes.popleft()
                    continue
                written = self.turns
                started = self._runtime.loop.time()
                await self._commit(await self._build())
                self._append_seconds += (
                    self._runtime.loop.time() - started - self._append_seconds
                ) / 8
                await self._linger(self.turns - written)

    def _switch(self) -> None:
        """When every node has come to know chains for fences, claim everything anew with one that
        all will break."""
        if not self._switched and self._knows_chains():
            self._switched = True
            if self._chain.link:
                self._runtime.reclaim(self._cell)

    def _moves_due(self) -> bool:
        """Whether something is to leave its pack now; else this looks again when it is."""
        if self._moves_at is not None:
            self._moves_at.cancel()
            self._moves_at = None
        loop = self._runtime.loop
        at = self.journal.next_at(now := loop.time())
        if at is None or not self._chain.link or not self._chained():
            return False
        if at <= now and (next(self.journal.due(now), None) is not None or self.journal.settled()):
            return True
        self._moves_at = loop.call_later(max(at - now, 0.05), self._wake.set)
        return False

    async def _linger(self, written: int) -> None:
        """Wait a little for those that were answered just now to ask again: up to an append, and up
        to two for many.

        A batch costs far more than what is in it. Without this, while a batch is written half of
        all callers wait for the next one, so that each batch holds half of what it could; and one
        that nobody waits for yet would hold only those who ask first. Four fifths of them are
        enough, and of many three: those who are still to come are in other nodes' batches, which
        wait in turn for callers that wait here.
        """
        expected = written + self.waiting
        share = min(expected / limits.LINGER_TURNS, 2)
        self.enough = expected - expected * (2 if share > 1 else 1) // 5
        if self.waiting < self.enough and (self.waiting or share > 0.25):
            self._wake.clear()
            seconds = self._append_seconds * (max(share, 1) if self.waiting else share)
            late = self._runtime.loop.call_later(
                min(seconds, limits.LINGER_SECONDS_MAX), self._wake.set
            )
            await self._wake.wait()
            late.cancel()
        self.enough = 1

    # Building -------------------------------------------------------------------------------------

    async def _build(self) -> Batch:
        if self._one_by_one:
            source, most = self._one_by_one, 1
        else:
            source, most = self.dirty, limits.BATCH_RECORDS_MAX
        waiting = list(islice(source, most))
        large = (
            [one for one in waiting if one.pending and large_states.needed(one)]
            if self._large
            else []
        )
        for activation in large:
            if activation.pending and large_states.needed(activation):
                await large_states.put(activation)
        batch = self._begin(len(waiting))
        for activation in waiting:
            if not activation.pending or not self._may_write(activation.shard):
                source.pop(activation, None)
                continue
            if large and large_states.needed(activation):
                continue  # a turn that ran meanwhile changed its state: again, with the next batch
            try:
                if not batch.add(activation):
                    break
            except TooLarge as error:
                self._refused(activation, error)
            source.pop(activation, None)
        self.waiting = sum(len(activation.pending) for activation in self.dirty)
        self._large = self._large and bool(self.dirty or self._one_by_one)
        if batch.chain and source is self.dirty:
            self._add_moves(batch)
        batch.finish()
        return batch

    def _may_write(self, shard: Shard) -> bool:
        """Whether it is ours, by a claim with the chain that is ours now."""
        return shard.active and shard.chain == self._chain.name

    def _knows_chains(self) -> bool:
        """Whether every node breaks chains, and reads packs."""
        version = self._runtime.router.placement.manifest.record_version
        return version >= PACKED_VERSION and not self._runtime.life.embedded

    def _chained(self) -> bool:
        """Whether the chain is the fence."""
        return self._switched and self._knows_chains()

    def _begin(self, agents: int) -> Batch:
        chained = self._chained()
        worth = chained and not self._one_by_one and agents >= limits.PACK_AGENTS_MIN
        slot = self.journal.slot() if worth else None
        chain = self._chain.name if chained else ""
        version, now = (
            self._runtime.router.placement.manifest.record_version,
            self._runtime.clock.now(),
        )
        return Batch(
            self._cell, self._next_link(), chain, slot, self.journal.hot_from(), version, now
        )

    def _next_link(self) -> Record | None:
        return None if self._runtime.life.embedded else self._chain.next_link(b"%d" % self.batches)

    def _add_moves(self, batch: Batch) -> None:
        """Add records that leave their packs, and what says that shards need those of others no
        more."""
        most = (
            max(limits.PACK_AGENTS_MIN * 4, len(batch.agents) * 2)
            if batch.agents
            else limits.MOVES_MAX
        )
        moving: set[tuple[Shard, str]] = set()
        for one in self.journal.due(self._runtime.loop.time()):
            if len(moving) >= most or not batch.has_room():
                break
            if one not in moving:
                moving.add(one)
                batch.add_move(*one)
        for shard in self.journal.settled():
            if batch.has_room():
                batch.add_settled(shard)

    # Writing --------------------------------------------------------------------------------------

    async def _commit(self, batch: Batch) -> None:
        give_up_at, attempt = self._runtime.loop.time() + limits.QUORUM_WAIT_SECONDS, 0
        while batch.has_work():
            try:
                sequences = await self._runtime.gate.append(self._cell, batch.records)
            except Conflict:
                await self._conflict(batch)
                return
            except Closed:
                raise
            except NoQuorum as error:
                attempt += 1
                if self._runtime.loop.time() > give_up_at or isinstance(error, StorageFailed):
                    # no election heals a disk
                    for activation, *_ in batch.agents:
                        if activation.shard.active:
                            activation.shard.drop(activation, error)
                    return
                await asyncio.sleep(backoff.delay_seconds(attempt, self._random))
                if not all(shard.active for shard in batch.shards):
                    self._put_back(batch)
                    return
            except Unknown:
                if self._goes_on(batch.link):
                    self._runtime.reclaim(self._cell)
                return
            except HoldfastError as error:
                if len(batch.agents) == 1 and not batch.moves:
                    self._refused(batch.agents[0][0], error)
                elif not batch.agents:
                    text = f"records cannot leave their packs in {self._cell}"
                    self._runtime.loop.call_exception_handler({"message": text, "exception": error})
                    await asyncio.sleep(_MOVES_PAUSE_SECONDS)  # they are tried again
                else:
                    self._put_back(batch)
                    self._one_by_one.update((activation, None) for activation, *_ in batch.agents)
                return
            else:
                self._linked(batch.link, sequences)
                self._acknowledged(batch, sequences)
                return

    def _linked(self, link: Record | None, sequences: range) -> None:
        """Go on behind this link."""
        self._runtime.life.acknowledged(self._cell, sequences[-1])
        if link is not None and self._goes_on(link):
            self._chain.link = sequences[0]

    def _goes_on(self, link: Record | None) -> bool:
        """Whether the chain of this link has not ended meanwhile, with all that was claimed with
        it."""
        return link is None or (link.subject == self._chain.subject and self._chain.link > 0)

    async def _write(self, records: list[Record], done: asyncio.Future[range]) -> None:
        link = self._next_link()
        try:
            if link is not None and not self._chain.link:
                raise Conflict(f"this node's chain in {self._cell} has ended")
            sequences = await self._runtime.gate.append(
                self._cell, [*([link] if link else ()), *records]
            )
        except HoldfastError as error:
            if isinstance(error, Conflict | Unknown) and self._goes_on(link):
                self._runtime.reclaim(self._cell)
            if not done.done():
                done.set_exception(error)
            if isinstance(error, Closed):
                raise
        else:
            self._linked(link, sequences)
            if not done.done():
                done.set_result(sequences[-len(records) :])

    def _acknowledged(self, batch: Batch, sequences: range) -> None:
        self.batches += 1
        self.records += len(batch.records)
        last, now, turns = sequences[-1], self._runtime.loop.time(), 0
        for shard, cell, place in batch.outbox:
            if shard.active:
                shard.relay(cell).add(sequences[place], batch.records[place].payload)
        pack = None
        if (
            batch.slot is not None
            and self._goes_on(batch.link)
            and (payload := batch.pack_payload())
        ):
            pack = self.journal.written(batch.slot, last, now, payload)
        for shard, token, place in batch.moves:
            if shard.active:
                self._moved(shard, token, sequences[place])
        for shard in batch.settled:
            shard.unsettled = False
        for activation, place, state in batch.agents:
            shard = activation.shard
            if shard.active and activation.loaded:
                sequence = last if place < 0 else sequences[place]
                activation.digest_part = shard.committed(
                    activation.token, sequence, pack if place < 0 else None, activation.digest_part
                )
                turns += len(activation.in_batch)
                activation.last_used = now
                activation.committed(sequence, state)
                if activation.old_blobs:
                    self._runtime.spawn(large_states.delete(self._runtime, activation.old_blobs))
                    activation.old_blobs = None
        self.turns += turns

    def _moved(self, shard: Shard, token: str, sequence: int) -> None:
        """The agent's record is one of its own now."""
        activation = shard.activations.get(token)
        if activation is not None and activation.loaded:
            activation.sequence = sequence
            activation.version += 1
        part = shard.committed(token, sequence, None)
        if activation is not None:
            activation.digest_part = part

    def _put_back(self, batch: Batch) -> None:
        """Nothing was written: what is still ours goes into the next batch."""
        for activation, *_ in batch.agents:
            if activation.shard.active:
                activation.not_written()
                self.mark(activation)
        self._wake.set()

    async def _conflict(self, batch: Batch) -> None:
        """A fence is refused, or a link of the chain: let go of what is another's, and claim the
        rest anew.

        None of it is sent again as it is: the refusal may be of a second copy of a batch that was
        written.
        """
        if not self._goes_on(batch.link):
            return
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
        if self._goes_on(batch.link):
            self._runtime.reclaim(self._cell)

    def _refused(self, activation: Activation, error: HoldfastError) -> None:
        """The log will not take this agent's record: its turns are undone, and the guilty one is
        found."""
        shard = activation.shard
        if not shard.active:
            return
        uncommitted = [*activation.in_batch, *activation.pending]
        shard.rerun_alone(activation, uncommitted[0] if len(uncommitted) == 1 else None, error)
