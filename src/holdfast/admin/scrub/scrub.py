"""Finds replicas that lost or changed records, and has them copied anew from the others.

The engine does not notice such a replica: it calls itself healthy and current, may become the
leader, and then records that were acknowledged cannot be read. So the replicas of every stream are
compared by content (`contents`), the checksum of every record is computed, and so are the digests
of all shards (`digests`).

A repair throws one replica of one stream away: the leader is moved to a verified good one, the host
stops its server, removes that stream's files and those of its Raft group, and starts it again, as
if that disk had been lost. The engine does not let an empty replica vote as if it had always been
empty, and copies it from the leader. This is done only where a majority of verified good replicas
is left, for one replica at a time, and what came of it is compared again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec

from holdfast import ids
from holdfast.admin.scrub import contents, digests
from holdfast.admin.scrub.contents import Contents, Difference
from holdfast.core.replicas import Verdict, judge, may_rebuild, spans
from holdfast.engines.nats import streams
from holdfast.engines.nats.engine import NatsEngine
from holdfast.engines.nats.replica import sizes
from holdfast.engines.nats.streams import StreamFacts
from holdfast.errors import (
    ConfigError,
    DataLoss,
    HoldfastError,
    InvalidName,
    NotDone,
    NotFound,
    Unknown,
)
from holdfast.host.operations import Rebuild as RebuildArguments
from holdfast.host.rpc.facts import Replicas
from holdfast.host.rpc.service import ANSWER_SECONDS, ask_host, ask_hosts

SPANS_MAX: Final = 50
AGENTS_MAX: Final = 50
REBUILD_SECONDS: Final = 120.0
"""How long a replica may get no further while it is copied."""

_TRIES: Final = 4
_CHECK_SECONDS: Final = 20.0
"""How long a host may take to find out whether its copy may be thrown away."""

_REPAIRS_MAX: Final = 3
"""Attempts at one stream: a leader may change under a copy."""

Rebuild = Callable[[str, str, str], Awaitable[None]]
"""Has the host of a server throw away its replica: takes the server, the stream and its Raft
group."""

Report = Callable[[str, dict[str, Any]], None]
"""Takes an event's name and its facts: ``comparing``, ``compared``, ``damage``, ``rebuilding``,
``rebuilt``."""


class Damage(msgspec.Struct):
    """Something that is wrong with a stream. ``code``:

    ``diverged``: the replica on ``server`` differs from the majority. ``undecided``: no majority
    agrees on an intact record. ``digest``: the replicas agree, but lack something that a shard's
    owner had. ``blob``: a blob's parts do not add up. ``unread``: a replica could not be compared.
    """

    code: str
    stream: str
    server: str
    text: str
    missing: int = 0
    altered: int = 0
    surplus: int = 0
    sequences: list[str] = []
    agents: list[str] = []
    repaired: bool = False


class Scrubbed(msgspec.Struct):
    """One stream that was compared."""

    stream: str
    servers: list[str]
    copies: int
    records: int
    bytes: int
    rounds: int
    damages: list[Damage]


class ScrubReport(msgspec.Struct):
    """What a scrub found."""

    streams: list[Scrubbed]

    @property
    def damages(self) -> list[Damage]:
        """All that is wrong, repaired or not."""
        return [damage for scrubbed in self.streams for damage in scrubbed.damages]

    @property
    def clean(self) -> bool:
        """Nothing is wrong, or it was repaired."""
        return all(damage.repaired for damage in self.damages)


async def scrub(
    engine: NatsEngine, *, rebuild: Rebuild | None = None, report: Report | None = None
) -> ScrubReport:
    """Compare the replicas of all streams; with ``rebuild``, repair what can be.

    Raises `NoQuorum` or `Unknown` where a stream cannot be read for some 20 s.
    """
    say = report or _ignore
    found: list[Scrubbed] = []
    for stream in await _again(lambda: streams.names(engine.connection)):
        say("comparing", {"stream": stream})
        scrubbed = await _again(lambda name=stream: _scrub_stream(engine, name))  # type: ignore[misc]
        for damage in scrubbed.damages:
            say("damage", msgspec.to_builtins(damage))
        if rebuild is not None and scrubbed.damages:
            scrubbed = await _repair(engine, scrubbed, rebuild, say)
        say(
            "compared",
            {"stream": stream, "records": scrubbed.records, "damages": len(scrubbed.damages)},
        )
        found.append(scrubbed)
    return ScrubReport(found)


async def _again(work: Callable[[], Awaitable[Any]]) -> Any:
    """Through an election, or a server's restart."""
    for attempt in range(_TRIES):
        try:
            return await work()
        except (NotDone, Unknown):
            if attempt == _TRIES - 1:
                raise
            await asyncio.sleep(1.0 + 2.0 * attempt)
    raise AssertionError("not reached")


# Comparing ----------------------------------------------------------------------------------------


async def _scrub_stream(engine: NatsEngine, stream: str) -> Scrubbed:
    facts = await streams.info(engine.connection, stream)
    servers = facts.servers(engine.server_name)
    found = await contents.compare(engine.connection, stream, servers)
    damages = _unread(stream, facts, servers)
    damages += _judged(stream, found, facts.copies)
    bad = {damage.server for damage in damages if damage.code == "diverged"}
    good = [server for server in servers if server not in bad]
    if good and not stream.endswith(("blobs", "reg")):
        failed = await digests.check_cell(engine.connection, stream, good[0])
        damages += [Damage("digest", stream, "", text) for text in failed.values()]
    damages += await _blobs(engine, stream, found)
    return Scrubbed(
        stream, servers, facts.copies, found.records, found.bytes, found.rounds, damages
    )


def _unread(stream: str, facts: StreamFacts, servers: Sequence[str]) -> list[Damage]:
    if len(servers) >= facts.copies:
        return []
    off = (
        ", ".join(peer.name for peer in facts.cluster.replicas if peer.offline)
        or "a server that is not known"
    )
    text = (
        f"{len(servers)} of {facts.copies} replicas were compared: {off} does not answer; start "
        "it, and scrub again"
    )
    return [Damage("unread", stream, off, text)]


def _judged(stream: str, found: Contents, copies: int) -> list[Damage]:
    """The differences, by the replica that is wrong."""
    verdicts = {sequence: judge(each.marks, copies) for sequence, each in found.differences.items()}
    damages = []
    servers = sorted({server for each in found.differences.values() for server in each.marks})
    for server in servers:
        missing = [s for s, verdict in verdicts.items() if server in verdict.missing]
        altered = [s for s, verdict in verdicts.items() if server in verdict.altered]
        surplus = [s for s, verdict in verdicts.items() if server in verdict.surplus]
        if wrong := sorted([*missing, *altered, *surplus]):
            more = " or more" if found.more else ""
            parts = {
                "lacks": len(missing),
                "shows otherwise": len(altered),
                "has too much": len(surplus),
            }
            text = ", ".join(f"{verb} {count}{more}" for verb, count in parts.items() if count)
            damages.append(
                Damage(
                    "diverged",
                    stream,
                    server,
                    f"of the records that a majority agrees on, it {text}",
                    len(missing),
                    len(altered),
                    len(surplus),
                    spans(wrong, SPANS_MAX),
                    _agents(found.differences, wrong),
                )
            )
    if open_ := sorted(sequence for sequence, verdict in verdicts.items() if verdict.undecided):
        text = (
            f"no majority of the {copies} replicas shows the same intact record: "
            f"{_how(found, verdicts, open_[0])}"
        )
        agents = _agents(found.differences, open_)
        damages.append(
            Damage("undecided", stream, "", text, sequences=spans(open_, SPANS_MAX), agents=agents)
        )
    return damages


def _how(found: Contents, verdicts: Mapping[int, Verdict], sequence: int) -> str:
    assert verdicts[sequence].undecided
    each = found.differences[sequence]
    shown = {
        server: "nothing"
        if mark is None
        else f"{mark.digest:016x}{'' if mark.intact else ' (damaged)'}"
        for server, mark in each.marks.items()
    }
    return f"at {sequence} " + ", ".join(f"{server} shows {what}" for server, what in shown.items())


def _agents(differences: Mapping[int, Difference], sequences: Sequence[int]) -> list[str]:
    """The agents that these records belong to; for others, their subjects."""
    found = dict.fromkeys(agent_of(differences[sequence].subject) for sequence in sequences)
    return [*list(found)[:AGENTS_MAX], *(["…"] if len(found) > AGENTS_MAX else [])]


def agent_of(subject: str) -> str:
    """The agent that a record belongs to, as ``KIND/NAME``; the subject itself where it belongs to
    none."""
    for token in subject.split("."):
        if "/" in token:
            try:
                return "/".join(ids.from_agent_token(token))
            except InvalidName:
                break
    return subject


async def _blobs(engine: NatsEngine, stream: str, found: Contents) -> list[Damage]:
    """Of the blobs whose parts did not add up as they were read: those that cannot be read now
    either."""
    damages = []
    for key in sorted(found.blobs):
        if any(each.subject.endswith(f".{key}") for each in found.differences.values()):
            continue  # a replica that differs in it is found as such
        try:
            await engine.blobs.get(key)
        except NotFound:
            continue  # it was deleted meanwhile
        except DataLoss as error:
            damages.append(Damage("blob", stream, "", str(error), agents=[agent_of(key)]))
    return damages


# Repairing ----------------------------------------------------------------------------------------


async def _repair(engine: NatsEngine, before: Scrubbed, rebuild: Rebuild, say: Report) -> Scrubbed:
    """Have the diverged replicas of one stream copied anew, one at a time; return what was and what
    is still wrong."""
    now = before
    for _ in range(_REPAIRS_MAX * before.copies):
        damage = next(
            (one for one in now.damages if one.code == "diverged" and _may(now, one.server)), None
        )
        if damage is None:
            break
        try:
            await _rebuild_one(engine, now, damage.server, rebuild, say)
        except HoldfastError as error:
            damage.text += f"; it was not copied anew: {error}"
            return now
        now = await _again(lambda: _scrub_stream(engine, before.stream))
    left = {(damage.code, damage.server) for damage in now.damages}
    repaired = [damage for damage in before.damages if (damage.code, damage.server) not in left]
    for damage in repaired:
        damage.repaired = True
    for damage in now.damages:
        if damage.code == "diverged" and not _may(now, damage.server):
            damage.text += (
                "; it is not copied anew, because no majority of verified good replicas would be "
                "left"
            )
    now.damages = [*repaired, *now.damages]
    return now


def by_hosts(engine: NatsEngine) -> Rebuild:
    """Has the hosts do it. It raises `ConfigError` for a server that no host runs, and what the
    host answers."""

    async def rebuild(server: str, stream: str, raft_group: str) -> None:
        kept = await ask_hosts(engine.bus, "replicas", Replicas, wait_seconds=ANSWER_SECONDS)
        hosts = [
            host
            for host, found in kept.items()
            if isinstance(found, Replicas) and found.server == server
        ]
        if len(hosts) != 1:
            raise ConfigError(
                f"no host answers for the server {server}: stop that server, remove its "
                f"directories streams/{stream} and _js_/{raft_group}, start it, and scrub again"
            )
        # Where the answer is lost with the server, what follows shows whether it was done.
        with suppress(Unknown):
            arguments = RebuildArguments(stream, raft_group)
            await ask_host(engine.bus, hosts[0], "rebuild", type(None), arguments, _CHECK_SECONDS)

    return rebuild


def _may(scrubbed: Scrubbed, server: str) -> bool:
    diverged = {damage.server for damage in scrubbed.damages if damage.code == "diverged"}
    unread = {damage.server for damage in scrubbed.damages if damage.code == "unread"}
    unsure = any(damage.code in ("undecided", "digest", "blob") for damage in scrubbed.damages)
    return may_rebuild(server, scrubbed.copies, diverged, unread, unsure)


async def _rebuild_one(
    engine: NatsEngine, scrubbed: Scrubbed, server: str, rebuild: Rebuild, say: Report
) -> None:
    connection, stream = engine.connection, scrubbed.stream
    bad = {damage.server for damage in scrubbed.damages if damage.code == "diverged"}
    good = next(name for name in scrubbed.servers if name not in bad)
    facts = await _again(lambda: streams.info(connection, stream))
    if facts.cluster.leader in bad:
        # What is copied is what the leader has.
        await _again(lambda: streams.move_leader(connection, stream, good))
        facts = await _until(
            lambda: _led_by_one_of(engine, stream, bad), 30.0, f"{stream} is led by a good replica"
        )
    say("rebuilding", {"stream": stream, "server": server})
    await rebuild(server, stream, facts.cluster.raft_group)
    await _copied(engine, stream, server, good, say)
    say("rebuilt", {"stream": stream, "server": server})


async def _led_by_one_of(engine: NatsEngine, stream: str, bad: set[str]) -> StreamFacts | None:
    facts = await streams.info(engine.connection, stream)
    return facts if facts.cluster.leader and facts.cluster.leader not in bad else None


async def _until(ask: Callable[[], Awaitable[Any]], timeout_seconds: float, what: str) -> Any:
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout_seconds
    trouble = ""
    while loop.time() < end:
        try:
            found = await ask()
            if found:
                return found
        except (NotDone, Unknown) as error:
            trouble = f": {error}"
        await asyncio.sleep(0.2)
    raise Unknown(f"after {timeout_seconds:.0f} s it is not so that {what}{trouble}")


async def _copied(engine: NatsEngine, stream: str, server: str, good: str, say: Report) -> None:
    """Wait until the new replica is as far as a good one. Raises `Unknown` where it gets no
    further."""
    loop = asyncio.get_running_loop()
    most, moved_at = -1, loop.time()
    while True:
        try:
            found = await sizes(engine.connection, stream, [server, good])
        except HoldfastError as error:
            if not isinstance(error, (NotDone, Unknown)):
                raise
        else:
            new, old = found[server], found[good]
            if new.last_sequence >= old.last_sequence and new.messages >= old.messages * 0.99:
                return
            if new.messages > most:
                most, moved_at = new.messages, loop.time()
                say(
                    "copying",
                    {"stream": stream, "server": server, "messages": most, "of": old.messages},
                )
        if loop.time() - moved_at > REBUILD_SECONDS:
            raise Unknown(
                f"the replica of {stream} on {server} was thrown away, and is not copied after "
                f"{REBUILD_SECONDS:.0f} s: is its server up? The others have everything; scrub "
                "again"
            )
        await asyncio.sleep(0.3)


def _ignore(_event: str, _facts: dict[str, Any]) -> None:
    pass
