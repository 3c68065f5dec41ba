"""One at a time in the whole cluster: work that takes a server away, or throws a copy away.

Two hosts that each find all other copies whole, and then both throw theirs away, have lost a
majority. So whoever begins such work writes itself into one record in the hosts' own cell, by
compare-and-set, and writes it again while it works. A record that was not written again for
`limits.EXCLUSIVE_SECONDS` belongs to a host that died in the middle: the next one takes its place.
Each host measures that on its own clock, from the moment at which it first saw the record, so no
clocks have to agree. A host that comes back finds its own record, finishes what it means, and takes
it away.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

import msgspec

from holdfast import codec, limits
from holdfast.clock import SYSTEM_CLOCK
from holdfast.cluster.facts import cohort
from holdfast.engines.base import Engine, Expect, Record
from holdfast.errors import Conflict, DataLoss, HoldfastError, InvalidName, Unknown

_SUBJECT: Final = f"{cohort.CELL}.exclusive"
_TRIES: Final = 3


class Holder(msgspec.Struct, array_like=True, frozen=True):
    """Who works. ``process``: one life of the host. ``since``: s since 1970 on its clock, for
    people. ``times``: written."""

    host: str = ""
    process: str = ""
    what: str = ""
    since: float = 0.0
    times: int = 0


class Exclusive:
    """See the module; for one host."""

    def __init__(self, engine: Engine, host: str, process: str) -> None:
        self._engine = engine
        self._host = host
        self._process = process
        self._sequence = 0
        self._own: Holder | None = None
        self._seen = (0, 0.0)
        """Another's newest record, and when it was first seen."""

    async def take(self, what: str) -> None:
        """Begin. Raises `Conflict` naming who works, `NoQuorum`, `Unknown`."""
        if self._own is not None:
            raise Conflict(
                f"host {self._host} is at work: {self._own.what}. Try again when that is done"
            )
        holder, sequence = await self._read()
        if holder.host and holder.host != self._host and not self._is_stale(sequence):
            raise Conflict(
                f"host {holder.host} is at work since {_time(holder.since)}: {holder.what}. One "
                "host at a time: try again when that is done, or after "
                f"{limits.EXCLUSIVE_SECONDS:.0f} s where that host is gone"
            )
        own = Holder(self._host, self._process, what, SYSTEM_CLOCK.now())
        await self._write(own, sequence)

    async def adopt(self) -> bool:
        """Go on with what a former life of this host began; False where it began nothing."""
        holder, sequence = await self._read()
        if holder.host != self._host:
            return False
        await self._write(
            msgspec.structs.replace(holder, process=self._process, times=holder.times + 1), sequence
        )
        return True

    async def renew(self) -> None:
        """Say that the work goes on. Raises `Conflict` where another host took its place,
        `NoQuorum`, `Unknown`."""
        if self._own is None:
            raise Conflict("nothing is under way")
        await self._write(
            msgspec.structs.replace(self._own, times=self._own.times + 1), self._sequence
        )

    async def release(self) -> None:
        """End. What cannot be written is left to become void."""
        own, self._own = self._own, None
        if own is not None:
            try:
                await self._write(Holder(times=own.times + 1), self._sequence)
            except HoldfastError:
                pass
            finally:
                self._own = None

    def _is_stale(self, sequence: int) -> bool:
        now = SYSTEM_CLOCK.monotonic()
        if self._seen[0] != sequence:
            self._seen = (sequence, now)
        return now - self._seen[1] > limits.EXCLUSIVE_SECONDS

    async def _read(self) -> tuple[Holder, int]:
        try:
            stored = await self._engine.log.read(cohort.CELL, _SUBJECT)
        except InvalidName:
            raise Conflict("this cluster is not founded yet") from None
        if stored is None:
            return Holder(), 0
        try:
            return msgspec.msgpack.decode(
                codec.unseal(stored.payload, _SUBJECT), type=Holder
            ), stored.sequence
        except (DataLoss, *codec.ERRORS):
            return Holder(), stored.sequence

    async def _write(self, holder: Holder, expected: int) -> None:
        record = Record(_SUBJECT, codec.seal(codec.encode_raw(holder)), Expect(_SUBJECT, expected))
        for attempt in range(_TRIES):
            try:
                self._sequence = (await self._engine.log.append(cohort.CELL, [record]))[0]
                self._own = holder
                return
            except (Conflict, Unknown):
                # It may be this very write that came first; else another host's.
                found, sequence = await self._read()
                if found == holder:
                    self._sequence, self._own = sequence, holder
                    return
                if attempt == _TRIES - 1 or sequence > expected:
                    self._own = None
                    raise Conflict(
                        f"host {found.host or '(none)'} was faster: {found.what or 'it is done'}"
                    ) from None
            await asyncio.sleep(0.1)


def _time(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds))
