"""Whether an operation that costs copies or votes may be done: the host that carries it out finds
out itself.

The naive way is to trust whoever asks: a command looks at all hosts first. But anybody with the
client password can send the same message, to all hosts at once. So each such operation is checked
where it is carried out, from what the servers themselves say at that moment, and what takes a
server away for a while is done by one host at a time (`Exclusive`).

| operation | what it needs |
|---|---|
| `rebuild` | every other copy is whole and led elsewhere; and what `restart` needs |
| `restart` | the voters have a majority without this server; one at a time |
| `vote` | the cohort's record gives this host a vote |
| `stand_down` | the cohort's record gives it none |
| `evacuate` | it is gone, or not in the record; without it a majority of all copies is whole |
| `remove` | the same, and that no stream has its only copy there, as far as is known |
| `copies` | as many as the record has members, or more |
| `lead_elsewhere` | that server answers |
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from holdfast.cluster.facts import cohort
from holdfast.cluster.facts.cohort import Cohort
from holdfast.core.replicas import Extent, majority, why_keep
from holdfast.engines.nats import streams
from holdfast.engines.nats.streams import OURS, StreamFacts
from holdfast.errors import InvalidName, NoQuorum, NotDone, Unknown
from holdfast.host.rpc.facts import Replicas
from holdfast.host.rpc.service import ask_hosts
from holdfast.host.server.server_admin import Replica
from holdfast.host.this_host import ThisHost

_LOOKS: Final = 8
_LOOK_SECONDS: Final = 0.25
_ANSWER_SECONDS: Final = 2.0
_NO_RECORD: Final = "this cluster has no record of a cohort"


class Guards:
    """See the module; for one host."""

    def __init__(self, host: ThisHost) -> None:
        self._host = host

    # What there is --------------------------------------------------------------------------------

    async def _record_at(self) -> tuple[Cohort | None, int]:
        try:
            return await cohort.read(self._host.engine, cohort.CELL)
        except InvalidName:
            return None, 0

    async def _record(self) -> Cohort | None:
        return (await self._record_at())[0]

    async def _kept(self, record: Cohort, server: str = "") -> dict[str, Replicas]:
        """What each server keeps, by its own word; those that do not answer are not there.

        It waits for those who vote, and for the host of ``server``: a host of the record that is
        gone for long costs no time.
        """
        expected = [
            name
            for name, entry in record.hosts.items()
            if record.votes(name) or entry.server == server
        ]
        found = await ask_hosts(
            self._host.engine.bus,
            "replicas",
            Replicas,
            expected=expected,
            wait_seconds=_ANSWER_SECONDS,
        )
        return {kept.server: kept for kept in found.values() if isinstance(kept, Replicas)}

    @property
    def _own(self) -> str:
        return "" if self._host.server is None else self._host.server.name

    def _majority_without(self, record: Cohort, kept: Mapping[str, Replicas], server: str) -> None:
        """Raises `NoQuorum` where those who vote have no majority without a server."""
        members = record.target or record.members
        servers = {record.hosts[name].server for name in members if name in record.hosts}
        there = servers & kept.keys() - {server}
        if len(there) < majority(len(members)):
            gone = sorted(
                name
                for name in members
                if name in record.hosts and record.hosts[name].server not in kept
            )
            text = f"; {', '.join(gone)} does not answer: start it first" if gone else ""
            raise NoQuorum(
                f"without {server} only {len(there)} of {len(members)} servers that vote would be "
                f"left, which is no majority{text}"
            )

    # Each operation -------------------------------------------------------------------------------

    async def may_be_away(self) -> bool:
        """Raises `NoQuorum` where the others cannot do without this host's server; whether it is
        missed at all."""
        record = await self._record()
        if (
            record is None
            or not record.votes(self._host.settings.name)
            or len(record.target or record.members) == 1
        ):
            return False
        self._majority_without(record, await self._kept(record), self._own)
        return True

    async def may_discard(self, stream: str) -> None:
        """Raises `NoQuorum` where this server's copy of a stream may be needed."""
        record = await self._record()
        if record is None:
            raise NoQuorum("the cohort's record cannot be read")
        try:
            await _patiently(lambda: self._why_keep(record, stream))
        except NotDone as error:
            raise NoQuorum(
                f"the copy of {stream} on {self._own} is not thrown away: {error}"
            ) from None

    async def _why_keep(self, record: Cohort, stream: str) -> str:
        connection = self._host.engine.connection
        before = await streams.info(connection, stream)
        peers = {before.cluster.leader, *(peer.name for peer in before.cluster.replicas)}
        if self._own not in peers:
            return f"{stream} is kept by {', '.join(sorted(peers))}"
        behind = [peer for peer in before.cluster.replicas if peer.name != self._own]
        if bad := [peer.name for peer in behind if peer.offline or not peer.current]:
            return f"{', '.join(bad)} is away or does not follow its leader"
        if before.cluster.leader == self._own and behind:
            await streams.move_leader(connection, stream, behind[0].name)
            return f"it is led by {self._own}, and what the leader has is what is copied"
        kept = await self._kept(record)
        after = await streams.info(connection, stream)
        if after.cluster.leader != before.cluster.leader:
            return f"{stream} got another leader"
        self._majority_without(record, kept, self._own)
        said = {server: _extent(kept.get(server), stream) for server in peers}
        return why_keep(
            self._own,
            before.copies,
            said,
            before.cluster.leader,
            _extent_of(before),
            _extent_of(after),
        )

    async def may_vote(self, votes: bool, since: int) -> None:
        """Raises `NotDone` where the cohort's record, of the sequence ``since`` or newer, says
        otherwise of this host."""

        async def why_not() -> str:
            (record, sequence), name = await self._record_at(), self._host.settings.name
            if sequence < since:
                return f"the cohort's record {since} is not there, only {sequence}"
            wanted = record is not None and name in (record.target or record.members)
            says = "a vote" if wanted else "no vote"
            return (
                ""
                if wanted is votes
                else f"the cohort's record gives {name} {says}: change it with `holdfast cohort`"
            )

        await _patiently(why_not)

    async def may_be_emptied(self, server: str) -> None:
        """Raises `NotDone` where a server is to stay, or the others cannot do without it."""

        async def why_not() -> str:
            record = await self._record()
            return (
                _NO_RECORD
                if record is None
                else self._why_stay(record, await self._kept(record, server), server)
            )

        await _patiently(why_not)

    async def may_leave(self, server: str) -> None:
        """Raises `NotDone` also where a stream's only copy is a server's, or may be."""

        async def why_not() -> str:
            record = await self._record()
            if record is None:
                return _NO_RECORD
            names = await streams.names(self._host.engine.connection)
            kept = await self._kept(record, server)
            return self._why_stay(record, kept, server) or _only_copy(kept, server, names)

        await _patiently(why_not)

    def _why_stay(self, record: Cohort, kept: Mapping[str, Replicas], server: str) -> str:
        host = next((name for name, entry in record.hosts.items() if entry.server == server), "")
        if host in (record.target or record.members) and server in kept:
            return (
                f"host {host} votes, and its server {server} answers: change the cohort with "
                "`holdfast cohort replace`"
            )
        leading = {
            copy.stream: copy for one in kept.values() for copy in one.replicas if copy.leads
        }
        for stream, peers in sorted(_peers(kept, leading).items()):
            others = peers - {server}
            # Those who are left elect one of them, if they can: until then it is not known what
            # they lack.
            if not (others <= kept.keys() and len(others) < majority(len(peers))):
                return f"{stream} has no leader"
        for stream, copy in sorted(leading.items()):
            whole = {
                copy.leader,
                *(peer.name for peer in copy.peers if peer.current and not peer.offline),
            } - {server}
            if copy.copies > 1 and len(whole) < majority(copy.copies):
                return (
                    f"without {server} no majority of the {copy.copies} copies of {stream} is whole"
                )
        return ""

    async def may_have_copies(self, stream: str, copies: int) -> None:
        """Raises `InvalidName` for a stream of somebody else, `NotDone` for fewer copies than the
        cohort has hosts."""
        if not OURS.fullmatch(stream):
            raise InvalidName(f"{stream!r} is not a stream of Holdfast's")

        async def why_not() -> str:
            record = await self._record()
            wanted = 1 if record is None else len(record.target or record.members)
            fits = wanted <= copies <= max(cohort.SIZES)
            return (
                ""
                if fits
                else f"{stream} is to have {wanted} copies, as the cohort has hosts, and not "
                f"{copies}"
            )

        await _patiently(why_not)

    async def may_lead(self, server: str) -> None:
        """Raises `NoQuorum` where a server does not answer."""
        record = await self._record()
        if record is None or server not in await self._kept(record, server):
            raise NoQuorum(f"the server {server} does not answer, so it cannot lead")


async def _patiently(why_not: Callable[[], Awaitable[str]]) -> None:
    """Ask some times whether it may be done: a replica that was read may lag. Raises `NotDone` with
    the last reason."""
    why = ""
    for look in range(_LOOKS):
        if look:
            await asyncio.sleep(_LOOK_SECONDS)
        try:
            why = await why_not()
        except (NotDone, Unknown) as error:
            why = str(error)
        if not why:
            return
    raise NotDone(why)


def _only_copy(kept: Mapping[str, Replicas], server: str, names: Sequence[str]) -> str:
    """Why a server's store may have what no other has; empty where it has not. ``names``: of all
    streams there are."""
    copies = {
        copy.stream
        for one in kept.values()
        for copy in one.replicas
        if copy.leads or copy.copies > 1
    }
    alone = {
        copy.stream
        for copy in (kept[server].replicas if server in kept else ())
        if copy.copies == 1
    }
    for stream in names:
        if stream not in copies:
            return (
                f"no server that answers keeps {stream}: its only copy may be that of {server}, so "
                "start that one first; where its disk is lost, restore a backup as a new cluster"
            )
        if stream in alone:
            return f"the only copy of {stream} is that of {server}: it has to be moved first"
    return ""


def _peers(kept: Mapping[str, Replicas], leading: Mapping[str, Replica]) -> dict[str, set[str]]:
    """Of each stream of several copies without a leader, the servers that keep it, as far as these
    say."""
    found: dict[str, set[str]] = {}
    for server, one in kept.items():
        for copy in one.replicas:
            if copy.stream not in leading and copy.copies > 1:
                found.setdefault(copy.stream, set()).update(
                    (server, *(peer.name for peer in copy.peers))
                )
    return found


def _extent(kept: Replicas | None, stream: str) -> Extent | None:
    found = (
        next((copy for copy in kept.replicas if copy.stream == stream), None)
        if kept is not None
        else None
    )
    return None if found is None else Extent(found.last_sequence, found.messages)


def _extent_of(facts: StreamFacts) -> Extent:
    return Extent(facts.state.last_seq, facts.state.messages)
