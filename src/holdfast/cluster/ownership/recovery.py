"""Reading shards: all at once when they were claimed, or ahead of time where this node is to take
them over.

A recovery reads everything that a shard has, up to the own epoch record. That takes longer the more
agents it has, and it needs a consumer of the servers, which costs them a vote. So a node follows
the shards that it is a standby of, or that are about to move to it, and keeps their records in
memory; when it claims such a shard it only waits for its own epoch record to come by.

The engine notices neither a replica that lost records nor one that shows them damaged. So what was
read is compared with the subjects that the leader shows, and is read from another replica than the
leader's: at most a minority is damaged, so one of the two is whole. Where the leader's replica is
the damaged one, the other has all that is missing there. What is followed after that is read as it
is written, from any replica. Where the reading is interrupted, by the loss of a server say, it goes
on with records that lay at rest, and an agent whose newest one is lost there is known by an older
one. So everything is read anew.

What is purged meanwhile is not told to who follows. Of inbox and outbox more may be in memory than
there is: what was consumed or carried over is known by the agents' records and the relays' cursors.
When it is too much, the shard is followed anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress

from holdfast import limits, loops
from holdfast.engines.base import Engine, Shown, Stored
from holdfast.errors import Closed, DataLoss, NoQuorum, Unknown
from holdfast.records import packs, subjects

_TAKE_SECONDS = 2.0
_LAG_SECONDS = 3.0
"""What a replica does not show so long after its leader, it lost."""

_PURGED_SECONDS = 0.3
"""The leader is asked again so often what is still there."""

_DAMAGED_SECONDS = 30.0
_GROUP_MAX = 64
_PASSING_MAX = 2000
"""Records of inbox and outbox that are kept of one shard."""


def _of_shards(cell: str, numbers: Iterable[int]) -> list[str]:
    """Filters for all that shards of a cell have, but for what is in packs."""
    return [subjects.all_of(subjects.shard(cell, number)) for number in numbers]


def _filters(cell: str, missing: Iterable[str]) -> list[str]:
    """Filters that these subjects match, one for a shard."""
    some = list(missing)
    shards = {subjects.shard_of(subject) for subject in some if not subjects.is_pack(subject)}
    return _of_shards(cell, shards) + [packs.filter_of(cell)] * any(map(subjects.is_pack, some))


class _Followed:
    """A shard's records, of each subject the newest. ``epoch``: the newest epoch record that came
    by."""

    def __init__(self) -> None:
        self.records: dict[str, Stored] = {}
        self.passing = 0
        """How many of them are of inbox or outbox."""
        self.bytes = 0
        self.epoch = 0
        self.caught_up = False


class Recovery:
    """What one node reads of shards."""

    def __init__(self, engine: Engine, on_warm: Callable[[], None]) -> None:
        self._engine = engine
        self._on_warm = on_warm
        self._followed: dict[int, _Followed] = {}
        self._tasks: dict[asyncio.Task[None], set[int]] = {}
        self._news = asyncio.Event()
        self._bytes = 0
        self._not_before: dict[str, float] = {}
        """Of cells with a damaged pack, when to follow shards again."""
        self._leaders: dict[str, str] = {}
        """Of each cell, the server whose replica showed what there is: another's is to be read."""

    # Ahead of time --------------------------------------------------------------------------------

    def follow(self, cell: str, wanted: Collection[int], own: Collection[int]) -> None:
        """Follow these shards of a cell, and no others of ``own``, which are all of the cell's."""
        for number in [
            number for number in self._followed if number in own and number not in wanted
        ]:
            self.forget(number)
        missing = [number for number in wanted if number not in self._followed]
        late = asyncio.get_running_loop().time() < self._not_before.get(cell, 0.0)
        if late or self._bytes > limits.WARM_BYTES_MAX:
            return  # what is not warm is read when it is claimed
        for start in range(0, len(missing), _GROUP_MAX):
            some = missing[start : start + _GROUP_MAX]
            followed = {number: _Followed() for number in some}
            self._followed.update(followed)
            task = asyncio.get_running_loop().create_task(self._run(cell, followed))
            self._tasks[task] = set(some)
            task.add_done_callback(self._tasks.pop)

    def warm(self) -> list[int]:
        """The shards whose records are all here, as of a moment ago."""
        return sorted(number for number, one in self._followed.items() if one.caught_up)

    def forget(self, number: int) -> None:
        """Keep nothing of a shard."""
        followed = self._followed.pop(number, None)
        if followed is not None:
            self._bytes -= followed.bytes
            followed.records = {}
        for task, numbers in list(self._tasks.items()):
            if number in numbers and not any(other in self._followed for other in numbers):
                task.cancel()

    async def _shown(self, cell: str, filters: Sequence[str]) -> Shown | None:
        """The subjects that the leader has of these; None where there is only one copy of
        everything."""
        shown = await self._engine.log.subjects(cell, filters)
        self._leaders[cell] = "" if shown is None else shown.server
        return shown

    async def _leader(self, cell: str) -> str:
        """The server whose replica will show what there is, as far as is known."""
        if cell not in self._leaders:
            with suppress(NoQuorum, Unknown, Closed):
                await self._shown(cell, [subjects.epoch(cell, subjects.ANY)])
        return self._leaders.get(cell, "")

    async def _run(self, cell: str, group: dict[int, _Followed]) -> None:
        """Follow some shards that were wanted together, as long as one of them still is."""
        filters = [*_of_shards(cell, group), packs.filter_of(cell)]
        read: set[str] = set()
        tail = self._engine.log.tail(cell, filters, not_on=await self._leader(cell))
        comparing: asyncio.Task[None] | None = None

        def damaged(_: Stored, _error: DataLoss) -> None:
            self._not_before[cell] = asyncio.get_running_loop().time() + _DAMAGED_SECONDS
            for number in group:
                self.forget(number)

        begun = 0
        try:
            async for chunk in tail:
                begun = begun or chunk.begun
                if chunk.begun != begun:
                    for number in group:
                        self.forget(number)
                    continue  # up to the cancellation that this brought
                async for stored in loops.in_slices(packs.unfold(chunk.records, damaged)):
                    number = subjects.shard_of(stored.subject)
                    followed = group.get(number)
                    if followed is None or self._followed.get(number) is not followed:
                        continue
                    if subjects.kind_of(stored.subject) == subjects.EPOCH:
                        followed.epoch = stored.sequence
                    elif not subjects.is_ownership(stored.subject):
                        self._keep(number, followed, stored)
                if comparing is None or not comparing.done():
                    read.update(one.subject for one in chunk.records)
                self._news.set()
                if chunk.caught_up and comparing is None:
                    comparing = asyncio.get_running_loop().create_task(
                        self._compare(cell, group, read)
                    )
                if self._bytes > limits.WARM_BYTES_MAX * 2:
                    for number in group:
                        self.forget(number)
        except Closed:
            return
        finally:
            if comparing is not None:
                comparing.cancel()
                await asyncio.wait([comparing])
            await tail.aclose()  # type: ignore[attr-defined]  # tails are async generators

    async def _compare(self, cell: str, group: dict[int, _Followed], read: set[str]) -> None:
        """Find out whether what was read so far is everything; what comes from now on, comes from
        all replicas alike."""
        try:
            shown = await self._shown(cell, [*_of_shards(cell, group), packs.filter_of(cell)])
            lacking: set[int] = set()
            if shown is not None:
                missing = await self._lacking(
                    cell, shown, read, lambda one: self._followed.get(one) is group[one]
                )
                lacking = (
                    set(group)
                    if any(map(subjects.is_pack, missing))
                    else set(map(subjects.shard_of, missing))
                )
        except (NoQuorum, Unknown, Closed):
            lacking = set(group)  # it is followed anew, where it is still wanted
        for number, followed in group.items():
            if self._followed.get(number) is followed:
                if number in lacking:
                    self.forget(number)
                else:
                    followed.caught_up = True
        read.clear()
        self._on_warm()

    def _keep(self, number: int, followed: _Followed, stored: Stored) -> None:
        # popped, so that the records stay in their order
        old = followed.records.pop(stored.subject, None)
        followed.records[stored.subject] = stored
        grown = len(stored.payload) - (len(old.payload) if old is not None else 0)
        followed.bytes += grown
        self._bytes += grown
        if not subjects.is_record(stored.subject):
            followed.passing += 1
            if followed.passing > _PASSING_MAX:
                self.forget(number)

    async def _take(self, number: int, epoch: int) -> tuple[list[Stored], bool] | None:
        """What was followed of a shard, and whether it is another's by now; None where it has to be
        read after all."""
        followed = self._followed.get(number)
        if followed is None or not followed.caught_up:
            return None
        end = asyncio.get_running_loop().time() + _TAKE_SECONDS
        while followed.epoch < epoch:
            if (
                self._followed.get(number) is not followed
                or asyncio.get_running_loop().time() >= end
            ):
                return None
            await self._some_news()
        if self._followed.get(number) is not followed:
            return None
        found = list(followed.records.values()), followed.epoch > epoch
        self.forget(number)
        return found

    async def _some_news(self) -> None:
        """Wait until something was read, or for a moment."""
        self._news.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await self._news.wait()

    # When they are claimed ------------------------------------------------------------------------

    async def read(
        self, cell: str, claims: Mapping[int, int], chains: Collection[str], anywhere: bool
    ) -> tuple[list[Stored], set[int], set[int]]:
        """Everything that shards have, up to their epochs; those that are another's by now; those
        that were warm.

        ``claims``: the epoch of each. ``chains``: those in whose packs they may have records.
        ``anywhere``: read the leader's replica as well as another, as one tries again that found a
        damaged one.

        Raises `DataLoss` where the replica that was read lacks something; `NoQuorum` or `Unknown`
        where no leader answers. All may be answered by trying again.
        """
        records: list[Stored] = []
        lost: set[int] = set()
        cold: dict[int, int] = {}
        taken = await asyncio.gather(
            *(self._take(number, epoch) for number, epoch in claims.items())
        )
        for (number, epoch), found in zip(claims.items(), taken, strict=True):
            if found is None:
                cold[number] = epoch
            else:
                records += found[0]
                lost.update([number] if found[1] else ())
        if cold:
            read, gone, servers = await self._read_cold(cell, cold, chains, anywhere)
            # it came to lead meanwhile: read another one
            if self._leaders[cell] in servers - {""} and not anywhere:
                read, gone, _ = await self._read_cold(cell, cold, chains, anywhere)
            records += read
            lost |= gone
        return records, lost, claims.keys() - cold.keys()

    async def _read_cold(
        self, cell: str, claims: Mapping[int, int], chains: Collection[str], anywhere: bool
    ) -> tuple[list[Stored], set[int], set[str]]:
        filters = [
            *_of_shards(cell, claims),
            *(packs.filter_of(cell, name) for name in chains),
        ]
        tail = self._engine.log.tail(
            cell, filters, not_on="" if anywhere else await self._leader(cell)
        )
        open_to = {subjects.epoch(cell, number): number for number in claims}
        lost: set[int] = set()
        records: dict[str, Stored] = {}
        read_subjects: set[str] = set()
        servers: set[str] = set()
        begun = 0

        async def read() -> None:
            nonlocal begun
            try:
                async for chunk in tail:
                    servers.add(chunk.server)
                    begun = begun or chunk.begun
                    if chunk.begun != begun:
                        raise Unknown(f"{cell}: the reading of its records was interrupted")
                    async for stored in loops.in_slices(packs.unfold(chunk.records)):
                        if subjects.shard_of(stored.subject) not in claims:
                            continue
                        if stored.subject in open_to:
                            number = open_to[stored.subject]
                            if stored.sequence >= claims[number]:
                                del open_to[stored.subject]
                            if stored.sequence > claims[number]:
                                lost.add(number)
                        elif not subjects.is_ownership(stored.subject):
                            records.pop(stored.subject, None)
                            records[stored.subject] = stored
                    read_subjects.update(one.subject for one in chunk.records)
                    self._news.set()
            finally:
                self._news.set()
                await tail.aclose()  # type: ignore[attr-defined]  # tails are async generators

        reading = asyncio.get_running_loop().create_task(read())
        try:
            shown = await self._shown(cell, filters)
            while open_to and not reading.done():
                await self._some_news()
            lacking = set[str]()
            if shown is not None and not reading.done():
                lacking = await self._lacking(cell, shown, read_subjects)
        finally:
            reading.cancel()
            await asyncio.wait([reading])
        if not reading.cancelled():
            reading.result()
        if lacking:
            raise DataLoss(
                f"{cell}: the replica that was read lacks {len(lacking)} records that the leader "
                f"has, such as {min(lacking)}"
            )
        return list(records.values()), lost, servers

    async def _lacking(
        self,
        cell: str,
        shown: Shown,
        read: Collection[str],
        wanted: Callable[[int], bool] = lambda _: True,
    ) -> set[str]:
        """What the leader shows and was not read, even after a while, although it was not purged
        either.

        ``read``: the subjects that were, as the log has them, more of which may come: an agent that
        is in an old pack may still lack the newer record of its own. ``wanted``: whether a shard
        still matters.
        """
        now = asyncio.get_running_loop().time
        end, again_at = now() + _LAG_SECONDS, now() + _PURGED_SECONDS

        def matters(subject: str) -> bool:
            return subjects.is_pack(subject) or (
                wanted(subjects.shard_of(subject)) and not subjects.is_ownership(subject)
            )

        # In C: there may be a million, and the loop would stand still.
        missing = set(filter(matters, shown.subjects.difference(read)))
        while missing and now() < end:
            await self._some_news()
            missing = {one for one in missing if matters(one) and one not in read}
            if missing and now() >= again_at:
                again = await self._shown(cell, _filters(cell, missing))
                missing &= again.subjects if again is not None else set()
                again_at = now() + _PURGED_SECONDS
        return missing

    async def close(self) -> None:
        """Stop following."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
