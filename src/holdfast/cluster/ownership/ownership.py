"""Which shards are whose: claiming, recovering, letting go.

A shard's owner is whoever wrote its newest epoch record, by compare-and-set; that record's sequence
is the epoch, and it names the chain that is the fence of its owner's batches. Nothing here needs
agreement: every node computes the wanted owners from its own view, and the log decides between two
that want the same. Every node tails all epochs, so an outcome that was not heard is settled by what
the log shows.

A shard may be claimed when it never had an owner, was released, or its owner is dead; and by its
owner itself, when a batch of it has an unknown outcome. Where it was not released, the claim breaks
the chain of its owner: nothing that was under way comes behind it (`holdfast.cluster.fence_chain`).
A claim is followed by a recovery: one ordered tail of everything that the shard has, up to the own
epoch record. No turn starts before.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any

from holdfast import chance, limits, loops
from holdfast.clock import Clock
from holdfast.cluster.facts.placement import Placement
from holdfast.cluster.members.liveness import Liveness, base
from holdfast.cluster.members.membership import Membership
from holdfast.cluster.members.suspicion import Suspicion
from holdfast.cluster.ownership import epochs
from holdfast.cluster.ownership.claims import Claims
from holdfast.cluster.ownership.epochs import Claim, Epoch, EpochRecord, Epochs
from holdfast.cluster.ownership.pack_sweep import PackSweep
from holdfast.cluster.ownership.planner import Planner
from holdfast.cluster.ownership.recovery import Recovery
from holdfast.cluster.ownership.shard_host import ShardHost
from holdfast.core import backoff
from holdfast.core.contest import Contest
from holdfast.engines.base import Engine
from holdfast.errors import Closed, Conflict, DataLoss, NoQuorum, Unknown

_logger = logging.getLogger(__name__)

_CLAIM_MAX = 256
_SLANDERS = 2
"""How often a shard is taken from a node that lives, before it goes on as another incarnation."""
_DRAIN_SECONDS_MIN = 1.0
"""However late it is, what ran to its end is written."""

_TELLING_ATTEMPT = 4
"""A recovery that was tried so often is told of, whatever its trouble."""


class Ownership:
    """This node's part in the ownership of all shards of all cells. ``serves``: whether it wants
    any. ``on_owner`` takes a shard whose ownership record changed; for ``on_event`` see
    `holdfast.cluster.facts.events.Events.say`."""

    def __init__(
        self,
        engine: Engine,
        clock: Clock,
        membership: Membership,
        placement: Placement,
        host: ShardHost,
        life: Liveness,
        host_name: str,
        cells: list[str],
        serves: bool,
        *,
        on_event: Callable[..., None],
        on_owner: Callable[[int], None],
    ) -> None:
        self.epochs = Epochs(engine, self._newer)
        self._wake = asyncio.Event()
        self.recovery = Recovery(engine, self._wake.set)
        self.planner = Planner(membership, placement, self.epochs, life, on_event)
        self._on_event = on_event
        self._on_owner = on_owner
        self.takeovers = 0
        self.failures: dict[str, str] = {}
        """Cells whose claim or recovery fails, and why."""
        self.lost_cells: dict[str, str] = {}
        """Cells that are served here no more, because their logs lost what they had acknowledged;
        and how that shows."""
        self._engine = engine
        self._clock = clock
        self._membership = membership
        self._host = host
        self._life = life
        self._host_name = host_name
        self._cells = cells
        self._placement = placement
        self._serves = serves
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._busy: set[int] = set()
        """Shards being claimed, recovered or released."""
        self._claims = Claims(
            engine, clock, self.epochs, life, host_name, host.reclaim, self.failures
        )
        self._claiming = {cell: asyncio.Lock() for cell in cells}
        self._again: set[int] = set()
        """Shards to be claimed anew from this very node."""
        self._suspicion = Suspicion(membership, life)
        self._warm: list[int] = []
        self.draining = False
        """Whether this node gives all away, as it is about to end."""
        self._random = chance.random()
        self._contest = Contest(self._random)
        self._renamed_at = 0.0
        self._closing = False
        self._closes_at = math.inf
        """When turns that still run are given up, as this node is about to end."""
        self._releasing = False

    # Running --------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to follow the epochs, and to claim."""
        for cell in self._cells:
            self._spawn(self.epochs.follow(cell, self._wake.set), "the tail of the epochs", False)
        self._spawn(self._run(), "ownership")
        if self._serves and not self._life.embedded:
            shards = self._placement.space
            sweep = PackSweep(
                self._engine, self.epochs, self._cells, lambda: shards.shards, self._host.shards
            )
            self._spawn(sweep.run(), "the sweep of packs", False)

    def _spawn(self, work: Coroutine[Any, Any, Any], what: str, may_return: bool = True) -> None:
        task = loops.start(work, what, may_return)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _newer(self, number: int, sequence: int) -> None:
        owner = self.epochs.get(number).record.owner
        if owner and base(owner) != base(self._life.incarnation):
            self._membership.proved(owner)
        self._on_owner(number)
        if (mine := self._host.shards.get(number)) is not None and mine.epoch < sequence:
            self._host.drop_shards([number])
            # Others take what is a dead node's: if this node lives, and that goes on, it is better
            # known by another name.
            now = self._loop.time()
            if (
                self._contest.lost(number, now) >= _SLANDERS
                and now - self._renamed_at > limits.CONTEST_SECONDS_MAX
            ):
                self._renamed_at = now
                self._life.begin_again()

    def wake(self) -> None:
        """Look again at once: something has changed."""
        self._wake.set()

    async def _run(self) -> None:
        while not self._closing:
            with suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await self._wake.wait()
            self._wake.clear()
            knows = len(self.epochs.heard) == len(self._cells) and self._membership.settled()
            if self._serves and knows and self._life.live() and not self._closing:
                self._step()
                if self._warm != (warm := self.recovery.warm()):
                    self._warm = warm
                    self._membership.beat()

    def _step(self) -> None:
        self._suspicion.look(self.epochs.hosts())
        self.planner.look()
        wanted = self.planner.plan.owners
        me = self._life.incarnation
        for cell in self._cells:
            if cell in self.lost_cells:
                continue
            claims = [
                n
                for n in self._of(cell)
                if n not in self._busy and self._may_claim(n, wanted.get(n))
            ]
            for start in range(0, len(claims), _CLAIM_MAX):
                some = claims[start : start + _CLAIM_MAX]
                self._busy.update(some)
                # As they are now: one that somebody else claims before the next turn of the loop is
                # not to be taken.
                self._spawn(
                    self._claim(cell, {number: self.epochs.get(number) for number in some}),
                    "a claim",
                )
            coming = [
                n
                for n in self._of(cell)
                if n not in self._host.shards and n not in self._busy and self.planner.is_coming(n)
            ]
            self._host.expect(n for n in coming if wanted.get(n) == me)
            self.recovery.follow(cell, coming, [n for n in self._of(cell) if n not in self._busy])
        self._move()

    def _move(self) -> None:
        """Let go, a few at a time, of what others should own."""
        if not self._releasing:
            some = self.planner.to_release(sorted(self._host.shards.keys() - self._busy))
            if some:
                self._busy.update(some)
                self._spawn(self._release(some), "a release")

    def _of(self, cell: str) -> range:
        return range(self._cells.index(cell), self._placement.space.shards, len(self._cells))

    def _may_claim(self, number: int, wanted: str | None) -> bool:
        record = self.epochs.get(number).record
        if number in self._again:
            if base(record.owner) == base(self._life.incarnation):
                return True
            self._again.discard(number)  # somebody else was faster, and has it rightly
        if record.owner == self._life.incarnation:
            return number not in self._host.shards
        if wanted != self._life.incarnation:
            return False
        if not record.owner:
            return True
        taken = self._contest.may_take(number, self._loop.time())
        return taken and self._membership.is_dead(record.owner, record.host)

    # Claiming -------------------------------------------------------------------------------------

    async def _claim(self, cell: str, before: dict[int, Epoch]) -> None:
        lapses = self._life.lapses
        try:
            self._host.expect(before)
            claimed = await self._write_claims(cell, before)
            if claimed:
                await self._host.listen(claimed)
                # What is in memory already does not wait for what has to be read.
                warm = claimed.keys() & set(self.recovery.warm())
                parts = [
                    {n: claimed[n] for n in some} for some in (warm, claimed.keys() - warm) if some
                ]
                await asyncio.gather(*(self._recover(cell, part, lapses) for part in parts))
        finally:
            self._busy.difference_update(before)
            self._wake.set()

    async def _write_claims(self, cell: str, before: dict[int, Epoch]) -> dict[int, Claim]:
        """Write the epoch records; return those that are ours now."""
        claimed: dict[int, Claim] = {}
        heard = True
        async with self._claiming[cell]:
            try:
                claimed = await self._claims.append(cell, before)
            except Conflict:
                # One of them was faster: claim one by one those that are still free, in the next
                # step.
                await self.epochs.refresh(cell, before)
                for number, epoch in before.items() if len(before) > 1 else ():
                    if self.epochs.get(number).sequence == epoch.sequence:
                        with suppress(Conflict, NoQuorum, Unknown):
                            claimed |= await self._claims.append(cell, {number: epoch})
            except (NoQuorum, Unknown):
                # what happened is seen in the log: an epoch of ours that is not served is claimed
                # again
                heard = False
        if not heard:
            await asyncio.sleep(backoff.delay_seconds(8, self._random))
        for number, claim in claimed.items():
            self.takeovers += not claim.clean
            self._again.discard(number)
            if before[number].record.owner or before[number].record.next:
                self.planner.rest(number)
        return claimed

    # Recovering -----------------------------------------------------------------------------------

    def _holds(self, cell: str, claims: Mapping[int, Claim], lapses: int) -> bool:
        """Whether this node has been live since it claimed, and goes on with the chain that it
        claimed with."""
        name = self._life.chains[cell].name
        goes_on = self._life.lapses == lapses and self._life.live() and cell not in self.lost_cells
        return goes_on and all(one.chain == name for one in claims.values())

    async def _recover(self, cell: str, claims: dict[int, Claim], lapses: int) -> None:
        attempt, anywhere = 0, False
        while True:
            epochs_of = {number: claim.epoch for number, claim in claims.items()}
            packs_of = set[str]().union(*map(self.epochs.packs, claims)) - {
                self._life.chains[cell].name
            }
            try:
                records, lost, was_warm = await self.recovery.read(
                    cell, epochs_of, packs_of, anywhere
                )
                for number in lost:
                    claims.pop(number, None)
                self._host.drop_shards(lost)
                if not claims or self._closing:
                    return
                if not self._holds(cell, claims, lapses):
                    self._host.drop_shards(claims)
                    # what was claimed before a lapse may be another's by now: it is claimed anew
                    return
                await self._host.add_shards(cell, claims, records)
            except (DataLoss, NoQuorum, Unknown) as error:
                if self._closing:
                    return
                attempt += 1
                if isinstance(error, DataLoss) or attempt >= _TELLING_ATTEMPT:
                    self.failures[cell] = str(error)
                # another replica may have what this one lacks, or shows damaged
                if isinstance(error, DataLoss):
                    anywhere = not anywhere
                    what = {"message": f"recovery of {cell} is repeated", "exception": error}
                    self._loop.call_exception_handler(what)
                await asyncio.sleep(backoff.delay_seconds(attempt + 5, self._random))
                continue
            self.failures.pop(cell, None)
            break
        current = epochs_of
        if not self._holds(cell, claims, lapses):
            self._host.drop_shards(current)
            return
        for number, epoch in current.items():
            if self.epochs.get(number).sequence != epoch:
                self._host.drop_shards([number])
        unclean = sum(not claim.clean for claim in claims.values())
        numbers = {"shards": sorted(claims), "unclean": unclean, "warm": len(was_warm)}
        self._on_event("shards-claimed", self._life.incarnation, "", cell=cell, **numbers)

    # Letting go -----------------------------------------------------------------------------------

    def lost(self, _cell: str, _numbers: list[int]) -> None:
        """The log refused a batch of ours, and these are another's."""
        self._wake.set()

    def lose(self, cell: str, why: str) -> None:
        """Serve a cell no more: what would be written there comes behind a loss that nobody may
        have noticed."""
        if cell in self.lost_cells:
            return
        self.lost_cells[cell] = why
        self._host.drop_shards(self._of(cell))
        _logger.critical(
            "%s lost acknowledged writes: %s. This node does not serve it any more", cell, why
        )
        self._on_event(
            "cell-lost",
            cell,
            f"{cell}-{base(self._life.incarnation)}",
            why=why,
            severity="critical",
        )

    def reclaim(self, cell: str, numbers: list[int]) -> None:
        """A batch's outcome is unknown: claim all shards of the cell anew with another chain. The
        old batch lies before the new epochs, or never happens."""
        self._again.update(numbers)
        self._life.chains[cell].end()
        self._wake.set()

    async def _release(self, targets: dict[int, str]) -> None:
        """Finish what runs, for as long as it may take, and let the wanted owners claim."""
        self._releasing = True
        try:
            seconds = min(limits.DRAIN_SECONDS, self._closes_at - self._loop.time())
            held = await self._host.drain(targets, max(seconds, _DRAIN_SECONDS_MIN))
            by_cell: dict[str, dict[int, EpochRecord]] = {}
            for number, epoch in held.items():
                release = self.epochs.release(
                    number, epoch, self._host_name, self._clock.now(), targets[number]
                )
                by_cell.setdefault(self._cells[number % len(self._cells)], {})[number] = release
            await asyncio.gather(
                *(self._write_release(cell, some, held) for cell, some in by_cell.items())
            )
        finally:
            self._releasing = False
            self._busy.difference_update(targets)
            self._wake.set()

    async def _write_release(
        self, cell: str, release: dict[int, EpochRecord], held: Mapping[int, int]
    ) -> None:
        records = [
            epochs.successor(cell, number, held[number], record)
            for number, record in release.items()
        ]
        for attempt in range(1, 8):
            try:
                sequences = await self._host.write(cell, records)
            except (Conflict, Unknown, Closed):
                # another's by now; or it is seen in the log, and what is still ours is claimed anew
                return
            except NoQuorum:
                await asyncio.sleep(backoff.delay_seconds(attempt, self._random))
            else:
                for (number, record), sequence in zip(release.items(), sequences, strict=True):
                    self.epochs.note(number, sequence, record)
                return

    async def close(self) -> None:
        """Let go of every shard, so that the next owner need not wait."""
        end = self._closes_at = self._loop.time() + limits.DRAIN_SECONDS
        self.draining = True
        self._membership.beat()
        served = self._host.shards
        while self.planner.has_heirs(served) and self._life.live() and self._loop.time() < end:
            self._wake.set()  # they prepare, and then this node lets go of a few at a time
            await asyncio.sleep(0.02)
        self._closing = True
        self._wake.set()
        while self._busy:
            await asyncio.sleep(0.01)
        if self._host.shards and self._engine.connected():
            try:
                # What still runs is given up; that it is, is said in any case: else it would count
                # as an end of this process.
                drained_at = max(end, self._loop.time() + _DRAIN_SECONDS_MIN)
                async with asyncio.timeout_at(drained_at + limits.APPEND_TIMEOUT_SECONDS):
                    await self._release(dict.fromkeys(sorted(self._host.shards), ""))
            except (TimeoutError, Closed):
                pass
        await self._suspicion.close()
        await self.recovery.close()
        await loops.stop(*self._tasks)
