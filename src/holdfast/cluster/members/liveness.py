"""Who is alive, as the log knows it: a node proves its life by writes, and one that was condemned
cannot.

A node is *live* while in a majority of the cells a proof that it began less than
`limits.ISOLATE_SECONDS` ago was acknowledged. Each proof expects the node's own one before. Whoever
suspects a node reads its proofs, waits for longer than they last, and overwrites them, expecting
what it read: that succeeds only where nothing was proved in between. So when a majority of the
cells has condemned a node, it is not live, it knows or will soon find out, and it never is again.

Process-wide and clock-bound this is a lease; but it is held with every cell, so no single election
ends it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Final

from holdfast import chance, limits, loops
from holdfast.clock import Clock
from holdfast.cluster.fence_chain import Chain
from holdfast.core import backoff
from holdfast.engines.base import Engine, Expect, Record, Stored
from holdfast.errors import Closed, Conflict, InvalidName, NoQuorum, StorageFailed, Unknown
from holdfast.records import subjects

_CONDEMNED: Final = b"condemned"
_PROOF_SECONDS: Final = limits.ISOLATE_SECONDS / 4
_LOOK_SECONDS: Final = _PROOF_SECONDS / 4
_READS_MAX: Final = 6
"""How often it is read what came before a sentence, with pauses of some 0.3 s together."""

_NEVER: Final = -math.inf
_DIGITS_MAX: Final = 10
_ISOLATED: Final = "this process reaches no majority of the servers"


def base(incarnation: str) -> str:
    """What all incarnations of one process have in common: a process that was condemned goes on as
    another one."""
    return incarnation.partition("~")[0]


def number(incarnation: str) -> int:
    """Which life of its process an incarnation is, from 1."""
    tail = incarnation.partition("~")[2]
    return int(tail) if tail.isdecimal() and len(tail) < _DIGITS_MAX else 1


def _nothing() -> None:
    pass


def _ignore(_cell: str, _why: str) -> None:
    pass


def _hears_nobody(_voters: int) -> bool:
    return False


class Liveness:
    """A process's proofs. ``serves``: one that owns no shards only asks now and then whether a
    majority answers.

    ``on_lapse`` is called when it was live and is not, or was not for a moment; ``on_condemned``
    when this incarnation has ended, with the next one already in ``incarnation``; ``on_cell_lost``
    with a cell whose log lost what it had acknowledged, and how that shows. ``hears_majority``
    tells whether most of so many hosts are heard, so that cells without a leader will have one.
    """

    def __init__(
        self,
        engine: Engine,
        clock: Clock,
        incarnation: str,
        cells: list[str],
        serves: bool,
        *,
        on_lapse: Callable[[], None] = _nothing,
        on_condemned: Callable[[], None] = _nothing,
        on_cell_lost: Callable[[str, str], None] = _ignore,
        hears_majority: Callable[[int], bool] = _hears_nobody,
    ) -> None:
        self.incarnation = incarnation
        self.embedded = engine.name == "local"
        self.failed = ""
        """Why nothing can be done in this process any more: its engine writes nothing more."""
        self.over = asyncio.Event()
        """Whether that is so."""
        self.chains = {cell: Chain(cell, base(incarnation)) for cell in cells}
        self.serves = serves
        self.wanted = serves
        """Whether to prove now: a mere client does only while it waits for something."""
        self.lapses = 0
        self._on_lapse = on_lapse
        self._on_condemned = on_condemned
        self._on_cell_lost = on_cell_lost
        self._hears_majority = hears_majority
        self._engine = engine
        self._clock = clock
        self._random = chance.random()
        self._cells = cells
        self._majority = len(cells) // 2 + 1
        self._proven_at = dict.fromkeys(cells, _NEVER)
        self._last = dict.fromkeys(cells, 0)
        """Per cell the sequence of the newest proof."""
        self._highest = dict.fromkeys(cells, 0)
        """Per cell the highest sequence that was acknowledged here, also to former incarnations: a
        log never goes back."""
        self.live_until = math.inf if self.embedded else _NEVER
        """What `live` asks, on the monotonic clock (s)."""
        self._was_live = False
        self._unheard = 0.0
        """For how long no cell took a write of this process, in time in which it could have heard
        of one. It is never more than the time since the newest write that was taken began, so who
        is isolated is not live."""
        self._looked_at = clock.monotonic()
        """Until when that is counted."""
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin to prove."""
        self._engine.when_failed(self.fail)
        if not self.embedded:
            self._tasks = [
                loops.start(self._keep_proving(cell), "the proof of life") for cell in self._cells
            ]
            self._tasks.append(loops.start(self._watch(), "the watch on life"))

    async def close(self) -> None:
        """Stop proving."""
        await loops.stop(*self._tasks)

    # Questions ------------------------------------------------------------------------------------

    def live(self) -> bool:
        """Whether nobody else can own this node's shards, so that it may start turns and answer
        from memory."""
        return self._clock.monotonic() < self.live_until

    def isolated(self) -> bool:
        """Whether nothing can be done from here: no cell took a write of this process for a while,
        nor will one soon.

        Only time counts in which the process ran: who was stopped, suspended or busy for long has
        not listened. What is safe goes by the plain clock: see `live`.
        """
        if self.failed:
            return True
        if self.embedded or not self.wanted:
            return False
        return self._unheard > limits.ISOLATE_SECONDS and not self._hears_majority(len(self._cells))

    def refusal(self) -> tuple[str, type[NoQuorum]]:
        """Why nothing can be done from here, and the error that says it."""
        return (self.failed, StorageFailed) if self.failed else (_ISOLATED, NoQuorum)

    def fail(self, why: str) -> None:
        """Its engine writes nothing more: this node is not live, and never will be."""
        self.failed = why
        self.live_until = _NEVER
        self.lapses += 1
        self.over.set()
        self._on_lapse()

    def want(self, wanted: bool) -> None:
        """Say whether a process that serves nothing should find out whether a majority answers."""
        if wanted and not self.wanted:
            self._count_unheard()
            self._unheard = 0.0
        self.wanted = wanted or self.serves or self.isolated()

    # Proofs ---------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            self._count_unheard()
            self.look()
            await asyncio.sleep(_LOOK_SECONDS)

    def _count_unheard(self) -> None:
        now = self._clock.monotonic()
        self._unheard += min(now - self._looked_at, 2 * _LOOK_SECONDS)
        self._looked_at = now

    def look(self) -> None:
        """Find out whether this node is live no more; then ``on_lapse`` is called."""
        if self._was_live and not self.live():
            self._was_live = False
            self.lapses += 1
            self._on_lapse()

    async def _keep_proving(self, cell: str) -> None:
        while True:
            if self.wanted:
                await self._prove(cell)
            await asyncio.sleep(_PROOF_SECONDS)

    async def _prove(self, cell: str) -> None:
        incarnation, began_at, before = (
            self.incarnation,
            self._clock.monotonic(),
            self._highest[cell],
        )
        subject = subjects.life(cell, incarnation)
        proof = Record(subject, b"", Expect(subject, self._last[cell]))
        try:
            async with asyncio.timeout(limits.ISOLATE_SECONDS / 2):
                sequences = await self._engine.log.append(
                    cell, [proof if self.serves else Record(subjects.alive(cell), b"")]
                )
        except Conflict:
            await self._refused(cell, incarnation)
        except (NoQuorum, Unknown, Closed, TimeoutError):
            pass  # one that arrives later is found by the next, which is refused
        except InvalidName:
            self.wrote(cell, 0, before)
        else:
            self.wrote(cell, sequences[0], before)
            if incarnation == self.incarnation:
                self._last[cell] = sequences[0]
                self._proved(cell, began_at)

    def _proved(self, cell: str, began_at: float) -> None:
        self.look()  # a lapse that ends with this very proof was one
        self._count_unheard()
        self._unheard = min(self._unheard, self._clock.monotonic() - began_at)
        self._proven_at[cell] = began_at
        self.live_until = sorted(self._proven_at.values())[-self._majority] + limits.ISOLATE_SECONDS
        self._was_live = self.live()

    async def _refused(self, cell: str, incarnation: str) -> None:
        """Another proof of ours came first, whose outcome was not heard; or this incarnation is
        condemned."""
        before = self._highest[cell]
        try:
            stored = await self._engine.log.read(cell, subjects.life(cell, incarnation))
            if stored is None or stored.sequence < self._last[cell]:
                # A replica that lags, or a log that lost this proof: a write tells.
                self.wrote(
                    cell,
                    (await self._engine.log.append(cell, [Record(subjects.alive(cell), b"")]))[0],
                    before,
                )
        except (NoQuorum, Unknown, Closed):
            return
        if incarnation != self.incarnation:
            return
        if stored is None or _is_condemned(stored):
            if stored is not None or self._last[cell]:
                self.begin_again()
        elif stored.sequence > self._last[cell]:
            # else the replica that was read lags: again in a moment
            self._last[cell] = stored.sequence

    def highest(self, cell: str) -> int:
        """What a write that begins now is to be above: see `wrote`."""
        return self._highest[cell]

    def acknowledged(self, cell: str, sequence: int) -> None:
        """Note that a write of this node has this sequence. What is written from now on has a
        higher one, or the log lost it."""
        self._highest[cell] = max(self._highest[cell], sequence)

    def wrote(self, cell: str, sequence: int, before: int) -> None:
        """Note that a write has this sequence (0: there is no such cell). ``before``: the `highest`
        when it began.

        One that is not above that is evidence that the cell's log lost what it had.
        """
        self.acknowledged(cell, sequence)
        if before and sequence <= before:
            self._on_cell_lost(
                cell, f"its log goes up to {sequence}, and {before} was acknowledged to this node"
            )

    def begin_again(self) -> None:
        """End this incarnation, which was condemned or is believed to be dead, and go on as the
        next one."""
        self.incarnation = f"{base(self.incarnation)}~{number(self.incarnation) + 1}"
        self._proven_at = dict.fromkeys(self._cells, _NEVER)
        self._last = dict.fromkeys(self._cells, 0)
        self.live_until = _NEVER
        self._was_live = False
        self.lapses += 1
        self._on_condemned()

    # Others ---------------------------------------------------------------------------------------

    async def condemn(self, incarnation: str) -> bool:
        """See to it that another node is not live, and never will be; False where it may be, for
        all that is known."""
        found = await asyncio.gather(*(self._life_of(cell, incarnation) for cell in self._cells))
        passed = [
            seen
            for seen in found
            if seen is not None and seen[1] is not None and _is_condemned(seen[1])
        ]
        if len(passed) >= self._majority:
            return True
        await asyncio.sleep(limits.ISOLATE_SECONDS * 1.1)
        done = await asyncio.gather(
            *(self._condemn(seen, incarnation) for seen in found if seen is not None)
        )
        return sum(done) >= self._majority

    async def _life_of(self, cell: str, incarnation: str) -> tuple[str, Stored | None] | None:
        try:
            return cell, await self._engine.log.read(cell, subjects.life(cell, incarnation))
        except (NoQuorum, Unknown):
            return None

    async def _condemn(self, seen: tuple[str, Stored | None], incarnation: str) -> bool:
        cell, stored = seen
        if stored is not None and _is_condemned(stored):
            return True
        subject = subjects.life(cell, incarnation)
        expected = 0 if stored is None else stored.sequence
        try:
            await self._engine.log.append(
                cell, [Record(subject, _CONDEMNED, Expect(subject, expected))]
            )
        except (Conflict, Unknown):
            return await self._was_condemned(cell, incarnation, expected)
        except NoQuorum:
            return False
        return True

    async def _was_condemned(self, cell: str, incarnation: str, expected: int) -> bool:
        """Whether it was another's sentence that came first, or this very one after all, and no
        proof of life.

        A replica that shows no more than was expected lags: it is read again. Who would take that
        for life would begin anew, and have the shards of a dead node wait for as long again.
        """
        for attempt in range(_READS_MAX):
            if attempt:
                await asyncio.sleep(backoff.delay_seconds(attempt, self._random))
            found = await self._life_of(cell, incarnation)
            stored = None if found is None else found[1]
            if stored is not None and stored.sequence > expected:
                return _is_condemned(stored)
        return False


def _is_condemned(stored: Stored) -> bool:
    return bytes(stored.payload) == _CONDEMNED
