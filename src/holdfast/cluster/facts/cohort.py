"""The cohort: which hosts vote and keep replicas. One record says it, in a cell of its own, and is
compared and set.

Who votes must never follow from who is visible now: two halves of a partition would each find
themselves complete. So it is written down, changed by a command only, and every host looks its own
part up in it. The record also knows the hosts that joined without a vote, so that one that is gone
is missed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from typing import Annotated, Final

import msgspec

from holdfast import chance, codec, limits
from holdfast.cluster.door import Name, Names, Text
from holdfast.core import backoff
from holdfast.engines.base import Engine, Expect, Record
from holdfast.errors import Conflict, DataLoss, NoQuorum, NotFound, Unknown
from holdfast.records import subjects

SIZES: Final = (1, 3, 5)
CELL: Final = "hfhosts"
"""It belongs to the servers, and not to what they keep: a restore leaves it alone."""


class HostEntry(msgspec.Struct, array_like=True, frozen=True):
    """A host that belongs to the cluster. ``server``: its nats-server's name in the engine, which
    changes when the host lost its disk. ``route``: where other servers reach it, ``url``: where
    clients do."""

    server: Text
    route: Text
    url: Text


class Cohort(msgspec.Struct, array_like=True, frozen=True):
    """Who votes. ``target``: the members that a change under way leads to; empty for none."""

    members: Names
    hosts: Annotated[dict[Name, HostEntry], msgspec.Meta(max_length=4096)]
    target: Names = []

    @property
    def sides(self) -> list[list[str]]:
        """The members, and those that a change leads to: a majority of each is needed."""
        return [names for names in (self.members, self.target) if names]

    def lost(self, up: Collection[str]) -> bool:
        """Whether too few hosts are up for a majority."""
        return any(2 * len({*names}.intersection(up)) <= len(names) for names in self.sides)

    def votes(self, host: str) -> bool:
        """Whether a host votes, or is about to."""
        return host in self.members or host in self.target

    def routes(self) -> list[str]:
        """Where the servers of all hosts are reached by others, members first."""
        return [
            self.hosts[name].route
            for name in sorted(self.hosts, key=lambda name: (not self.votes(name), name))
        ]

    def with_host(self, name: str, entry: HostEntry) -> Cohort:
        """The same, with a host added or changed."""
        return msgspec.structs.replace(self, hosts={**self.hosts, name: entry})

    def without(self, name: str) -> Cohort:
        """The same without a host. Raises `NotFound`."""
        if name not in self.hosts:
            raise NotFound(f"there is no host {name!r}: there are {', '.join(sorted(self.hosts))}")
        rest = {host: entry for host, entry in self.hosts.items() if host != name}
        return msgspec.structs.replace(self, hosts=rest)


_decode_cohort = codec.decoder(Cohort).decode


def _decode(payload: bytes) -> Cohort:
    try:
        cohort: Cohort = _decode_cohort(codec.unseal(payload, "the cohort's record"))
    except codec.ERRORS as error:
        raise DataLoss(f"the cohort's record cannot be read: {error}") from None
    return cohort


async def read(engine: Engine, cell: str) -> tuple[Cohort | None, int]:
    """The record and its sequence; None and 0 where the cluster has none yet. It may be stale.
    Raises `NoQuorum`."""
    stored = await engine.log.read(cell, subjects.cohort(cell))
    return (None, 0) if stored is None else (_decode(stored.payload), stored.sequence)


async def change(engine: Engine, cell: str, decide: Callable[[Cohort | None], Cohort]) -> Cohort:
    """Change the record: ``decide`` gets what it holds, and may be called again when somebody else
    was faster.

    Returns what the record holds now. Raises what ``decide`` raises, and `NoQuorum`, `Unknown`
    after a while.
    """
    random = chance.random()
    loop = asyncio.get_running_loop()
    end = loop.time() + limits.QUORUM_WAIT_SECONDS
    subject = subjects.cohort(cell)
    attempt = 0
    while True:
        attempt += 1
        try:
            found, sequence = await read(engine, cell)
            wanted = decide(found)
            if wanted != found:
                payload = codec.seal(codec.encode_raw(wanted))
                await engine.log.append(cell, [Record(subject, payload, Expect(subject, sequence))])
            return wanted
        except (Conflict, NoQuorum, Unknown):
            # Somebody else was faster, or this very write arrived: the next read tells.
            if loop.time() > end:
                raise
        await asyncio.sleep(backoff.delay_seconds(attempt, random, 0.5))


async def follow(engine: Engine, cell: str) -> AsyncIterator[Cohort]:
    """The record, and each newer one, for ever. Close it with ``aclose()``."""
    async for chunk in engine.log.tail(cell, [subjects.cohort(cell)]):
        for stored in chunk.records:
            yield _decode(stored.payload)
