"""What is wrong with a cluster, from what a survey saw of it: one small function per question, none
of which asks anybody.

The findings and what to do about them are one table in `findings`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Final

import msgspec

from holdfast import limits
from holdfast.admin.doctor.findings import Finding, finding, ordered
from holdfast.admin.doctor.survey import Survey, survey
from holdfast.admin.presence import gone_text
from holdfast.core.replicas import majority
from holdfast.engines.nats.engine import NatsEngine, stream_settings
from holdfast.engines.nats.streams import StreamFacts
from holdfast.errors import ConfigError, HoldfastError, NotDone
from holdfast.host.server.nats_server import VERSION_MIN

SKEW_SECONDS: Final = limits.CLOCK_SKEW_SECONDS / 5
EXPIRES_SECONDS: Final = 30 * 86400.0
DISK_LOW: Final = 0.10
DISK_FULL: Final = 0.01
RESTARTS: Final = 3
_UPTIME_PER_START_SECONDS: Final = 300.0


class Diagnosis(msgspec.Struct):
    """What a doctor found, the worst first, and how much it saw."""

    findings: list[Finding]
    hosts: int
    nodes: int
    streams: int


async def examine(engine: NatsEngine) -> Diagnosis:
    """Open the engine, look at the whole cluster, and close it again. It does not hang, and needs
    no majority."""
    try:
        await engine.open()
    except (NotDone, ConfigError) as error:
        return unreachable(error)
    try:
        return diagnose(await survey(engine))
    finally:
        await engine.close()


def unreachable(error: HoldfastError) -> Diagnosis:
    """What is said where no server takes a connection."""
    text = str(error)
    if "certificate has expired" in text:
        return Diagnosis([finding("certificate-expired", "a server", text)], 0, 0, 0)
    return Diagnosis([finding("unreachable", "the cluster", text)], 0, 0, 0)


def diagnose(seen: Survey) -> Diagnosis:
    """All findings of a survey."""
    found = [one for question in QUESTIONS for one in question(seen)]
    causes = by_cause(seen, list(dict.fromkeys(found)))
    return Diagnosis(ordered(causes), len(seen.hosts), len(seen.nodes), len(seen.streams))


# One cause, one finding ---------------------------------------------------------------------------

_OF_NO_QUORUM: Final = frozenset(
    {
        "no-leader",
        "under-replicated",
        "isolated-node",
        "unowned-shards",
        "host-down",
        "server-trouble",
        "host-silent",
    }
    | {"node-silent", "not-seen"}
)
"""What follows where no majority is there."""


def by_cause(seen: Survey, found: list[Finding]) -> list[Finding]:
    """Findings that follow from another one are put under it: a host that is lost is one finding,
    and not one a stream."""
    quorum = next((one for one in found if one.code == "no-quorum"), None)
    if quorum is not None:
        return _under(found, quorum, lambda one: one.code in _OF_NO_QUORUM)
    for name in [*(host.name for host in seen.presence.gone), *_without_server(seen)]:
        cause = next(
            (
                one
                for one in found
                if one.where == name and one.code in ("host-down", "server-trouble")
            ),
            None,
        )
        if cause is not None:
            lacking = {
                stream for stream, facts in seen.streams.items() if _lacks(seen, facts, name)
            }
            found = _under(
                found,
                cause,
                lambda one, few=lacking: one.code == "under-replicated" and one.where in few,  # type: ignore[misc]
            )
    return found


def _without_server(seen: Survey) -> list[str]:
    """Hosts that answer, and whose nats-server does not."""
    return [
        host.facts.host for host in seen.hosts if host.facts.directory and host.facts.server is None
    ]


def _lacks(seen: Survey, found: StreamFacts | HoldfastError, host: str) -> bool:
    """Whether a stream's copies are behind on this host, and on others only where these are gone as
    well."""
    if (
        not isinstance(found, StreamFacts)
        or seen.presence.record is None
        or host not in seen.presence.record.hosts
    ):
        return False
    behind = {one.name for one in found.cluster.replicas if one.offline or not one.current}
    known = seen.presence.record.hosts
    away = seen.gone_servers | {
        known[name].server for name in _without_server(seen) if name in known
    }
    return known[host].server in behind and behind <= away


def _under(
    found: list[Finding], cause: Finding, follows: Callable[[Finding], bool]
) -> list[Finding]:
    then = tuple(one for one in found if one is not cause and follows(one))
    if not then:
        return found
    whole = msgspec.structs.replace(cause, then=(*cause.then, *then))
    return [whole if one is cause else one for one in found if one not in then]


# The cohort ---------------------------------------------------------------------------------------


def _members(seen: Survey) -> Iterator[Finding]:
    up = {
        host.facts.host
        for host in seen.hosts
        if host.facts.server is not None and host.facts.server.votes
    }
    record = seen.presence.record
    if record is None:
        yield from _founders(seen, up)
        return
    lost = all(one.lost(up) for one in (record, *seen.presence.others))
    for names in record.sides if lost else []:
        there = sorted(up & {*names})
        if len(there) < majority(len(names)):
            missing = [_missing(seen, name) for name in sorted({*names} - up)]
            text = (
                f"{len(there)} of the {len(names)} hosts that vote are up: "
                f"{', '.join(there) or 'none'}"
            )
            yield finding("no-quorum", "the cohort", "; ".join([text, *missing]))
            return
    for host in seen.presence.gone:
        yield finding("host-down", host.name, gone_text(host).replace(host.name, "it", 1))


def _missing(seen: Survey, name: str) -> str:
    """Why a host that votes does not count."""
    gone = next((host for host in seen.presence.gone if host.name == name), None)
    if gone is not None:
        return gone_text(gone)
    answers = any(host.facts.host == name for host in seen.hosts)
    return f"the nats-server of {name} does not answer" if answers else f"{name} does not answer"


def _founders(seen: Survey, up: set[str]) -> Iterator[Finding]:
    """Before there is a record of who votes, what the hosts were told."""
    size = max(
        (len(host.facts.cohort) or 1 for host in seen.hosts if host.facts.server_pid), default=0
    )
    if not size:
        if not seen.hosts or all(not host.facts.directory for host in seen.hosts):
            yield finding("no-hosts", "the servers", "no host that answers runs a server")
    elif len(up) < size:
        text = f"{len(up)} of the cohort's {size} members answer: {', '.join(sorted(up)) or 'none'}"
        yield finding("no-quorum" if len(up) < majority(size) else "host-down", "the cohort", text)


def _silent(seen: Survey) -> Iterator[Finding]:
    for host, why in seen.silent.items():
        yield finding("host-silent", host, why)


def _same_names(seen: Survey) -> Iterator[Finding]:
    for one, other in combinations(seen.hosts, 2):
        if one.facts.host == other.facts.host and one.facts.pid != other.facts.pid:
            text = f"process {one.facts.pid} and process {other.facts.pid} answer to it"
            yield finding("same-name", one.facts.host, text)


def _clocks(seen: Survey) -> Iterator[Finding]:
    """The least by which two clocks differ for sure: an answer's way takes an unknown part of its
    time."""
    for one, other in combinations(seen.hosts, 2):
        apart = max(one.ahead_min - other.ahead_max, other.ahead_min - one.ahead_max)
        if apart > SKEW_SECONDS:
            where = f"{one.facts.host} and {other.facts.host}"
            yield finding("clock-skew", where, f"their clocks differ by at least {apart:.1f} s")


# Streams ------------------------------------------------------------------------------------------


def _leaders(seen: Survey) -> Iterator[Finding]:
    for stream, found in seen.streams.items():
        if isinstance(found, HoldfastError):
            yield finding("no-leader", stream, str(found))
        elif found.cluster.replicas and not found.cluster.leader:
            yield finding("no-leader", stream, "none of its servers leads it")


def _copies(seen: Survey) -> Iterator[Finding]:
    # A server that leads takes those who fell silent for current ones for some ten seconds.
    away = seen.gone_servers if seen.presence.lost else set()
    for stream, found in seen.streams.items():
        if not isinstance(found, StreamFacts):
            continue
        peers = found.cluster.replicas
        behind = [one for one in peers if one.offline or not one.current or one.name in away]
        # Without a leader the server that answers is one of the peers.
        current = len(peers) - len(behind) + (not peers or bool(found.cluster.leader))
        if current < found.copies:
            said = ", ".join(
                _behind(one.name, one.offline or one.name in away, one.lag) for one in behind
            )
            text = f"{current} of {found.copies} copies are current" + (f": {said}" if said else "")
            yield finding("under-replicated", stream, text)


def _too_few(seen: Survey) -> Iterator[Finding]:
    """Streams that are to have fewer copies than hosts vote, as a whole: it has one cause."""
    record = seen.presence.record
    voters = [] if record is None else min(record.sides, key=len, default=[])
    size = len(voters)
    few = {
        name: one.copies
        for name, one in seen.streams.items()
        if isinstance(one, StreamFacts) and one.copies < size
    }
    if few:
        count = min(few.values())
        text = (
            f"{count} cop{'y' if count == 1 else 'ies'} of {', '.join(sorted(few))}, though "
            f"{size} hosts vote"
        )
        yield finding(
            "too-few-copies", "the cluster", f"{text}: `holdfast cohort set {','.join(voters)}`"
        )


def _behind(name: str, offline: bool, lag: int) -> str:
    if offline:
        return f"{name} is down"
    return f"{name} is {lag} behind" if lag else f"{name} is not current"


def _diverged(seen: Survey) -> Iterator[Finding]:
    """Copies that never held the same number of records at the same last sequence, in any sample
    that shows both so."""
    compared: dict[tuple[str, str, str], list[bool]] = {}
    for sample in seen.replicas:
        kept = [(one.server, replica) for one in sample for replica in one.replicas]
        for (server, mine), (other, its) in combinations(kept, 2):
            if (
                mine.stream == its.stream
                and mine.last_sequence == its.last_sequence
                and server != other
            ):
                same = (mine.messages, mine.first_sequence) == (its.messages, its.first_sequence)
                compared.setdefault((mine.stream, *sorted((server, other))), []).append(same)  # type: ignore[arg-type]
    apart: dict[str, set[str]] = {}
    for (stream, server, other), samples in compared.items():
        if len(samples) > 1 and not any(samples):
            apart.setdefault(stream, set()).update((server, other))
    for stream, servers in apart.items():
        counts = {
            one.server: r.messages
            for one in seen.replicas[-1]
            for r in one.replicas
            if r.stream == stream
        }
        text = ", ".join(
            f"{server} has {count}" for server, count in sorted(counts.items()) if server in servers
        )
        yield finding("diverged", stream, f"records at the same last sequence: {text}")


def _settings(seen: Survey) -> Iterator[Finding]:
    for stream, found in seen.streams.items():
        if isinstance(found, StreamFacts):
            wanted = stream_settings(stream, found.copies)
            changed = {key: found.config.get(key, type(value)()) for key, value in wanted.items()}
            other = [
                f"{key} = {value!r} and not {wanted[key]!r}"
                for key, value in changed.items()
                if value != wanted[key]
            ]
            if other:
                yield finding("stream-settings", stream, ", ".join(other))


# Hosts --------------------------------------------------------------------------------------------


def _servers(seen: Survey) -> Iterator[Finding]:
    versions: dict[str, list[str]] = {}
    for host in seen.hosts:
        facts, server = host.facts, host.facts.server
        for trouble in filter(None, (facts.server_trouble, facts.seat_trouble)):
            yield finding("server-trouble", facts.host, trouble)
        if facts.directory and server is None and not facts.server_trouble:
            yield finding("server-trouble", facts.host, "its nats-server does not answer")
        uptime = facts.now - facts.started_at
        if (
            facts.server_starts > RESTARTS
            and uptime < facts.server_starts * _UPTIME_PER_START_SECONDS
        ):
            text = f"{facts.server_starts} starts in {uptime:.0f} s"
            yield finding("server-restarts", facts.host, text)
        if server is None:
            continue
        versions.setdefault(server.version, []).append(facts.host)
        numbers = tuple(
            int(part) for part in server.version.split("-")[0].split(".") if part.isdecimal()
        )
        if numbers < VERSION_MIN:
            yield finding(
                "old-server",
                facts.host,
                f"nats-server {server.version}; {_dotted(VERSION_MIN)} is needed",
            )
        if server.votes and not server.sync_always:
            yield finding(
                "not-synced", facts.host, "its server does not have `sync_interval: always`"
            )
    if len(versions) > 1:
        yield finding("mixed-servers", "the hosts", _by_version(versions))


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _by_version(versions: dict[str, list[str]]) -> str:
    return "; ".join(
        f"{version} on {', '.join(sorted(names))}" for version, names in sorted(versions.items())
    )


def _disks(seen: Survey) -> Iterator[Finding]:
    for host in seen.hosts:
        facts = host.facts
        if facts.disk_bytes:
            yield from disk(facts.host, facts.directory, facts.disk_free_bytes, facts.disk_bytes)


def disk(where: str, directory: str, free_bytes: int, size_bytes: int) -> Iterator[Finding]:
    """Whether a disk has room."""
    share = free_bytes / size_bytes
    if share < DISK_LOW:
        text = f"{free_bytes / 1e6:.0f} MB of {size_bytes / 1e6:.0f} MB are free at {directory}"
        yield finding("disk-full" if share < DISK_FULL else "disk-low", where, text)


def _permissions(seen: Survey) -> Iterator[Finding]:
    for host in seen.hosts:
        for path, mode in host.facts.modes.items():
            wrong = mode & (0o022 if path == host.facts.directory else 0o077)
            if wrong:
                yield finding("permissions", host.facts.host, f"{path} has mode {mode:03o}")


def _certificates(seen: Survey) -> Iterator[Finding]:
    for host in seen.hosts:
        for certificate in host.facts.certificates:
            left = certificate.expires_at - seen.at
            if left < EXPIRES_SECONDS:
                code = "certificate-expires" if left > 0 else "certificate-expired"
                ends = f"ends in {left / 86400:.1f} days" if left > 0 else "has ended"
                yield finding(code, host.facts.host, f"{certificate.path} {ends}")


def _versions(seen: Survey) -> Iterator[Finding]:
    versions: dict[str, list[str]] = {}
    for host in seen.hosts:
        versions.setdefault(host.facts.version, []).append(host.facts.host)
    for node in seen.nodes:
        if node.kinds:
            versions.setdefault(node.version, []).append(node.name)
    if len(versions) > 1:
        yield finding("mixed-versions", "the hosts and nodes", _by_version(versions))


# Nodes --------------------------------------------------------------------------------------------


def _nodes(seen: Survey) -> Iterator[Finding]:
    for node in seen.nodes:
        if node.kinds and not node.live:
            yield finding(
                "isolated-node",
                node.name,
                "it is not live: no proof of life of it was taken for 2 s",
            )
        if node.degraded:
            yield finding("stalled-loop", node.name, node.degraded)
        for cell, why in node.lost_cells.items():
            yield finding("cell-lost", node.name, f"{cell}: {why}")
        for cell, why in node.recovery_failures.items():
            yield finding("recovery-failure", node.name, f"{cell}: {why}")
    answered = {(node.host, node.name) for node in seen.nodes}
    for host in seen.hosts:
        for child in host.facts.nodes:
            if child.ready and (host.facts.host, child.name) not in answered:
                yield finding(
                    "node-silent",
                    child.name,
                    f"process {child.pid} on {host.facts.host} does not answer",
                )
            if child.ends_recent >= RESTARTS:
                text = (
                    f"it ended {child.ends_recent} times within ten minutes, the last time with "
                    f"{child.last_end}"
                )
                yield finding("node-restarts", child.name, text)


def _kinds(seen: Survey) -> Iterator[Finding]:
    serving = [node for node in seen.nodes if node.kinds]
    kinds = {kind for node in serving for kind in node.kinds}
    for node in serving:
        if lacking := sorted(kinds - set(node.kinds)):
            yield finding(
                "mixed-kinds",
                node.name,
                f"it serves {', '.join(node.kinds)}, and not {', '.join(lacking)}",
            )


def _shards(seen: Survey) -> Iterator[Finding]:
    expected = any(node.kinds for node in seen.nodes) or any(
        host.facts.nodes for host in seen.hosts
    )
    missing = seen.shards - seen.served
    if missing and expected:
        yield finding(
            "unowned-shards",
            "the cluster",
            f"{len(missing)} of {len(seen.shards)} shards have no owner",
        )
    if seen.dead_letters:
        yield finding("dead-letters", "the cluster", f"{seen.dead_letters} dead letters wait")


def _unseen(seen: Survey) -> Iterator[Finding]:
    for what in seen.unseen:
        yield finding("not-seen", "the cluster", what)


QUESTIONS: Final[tuple[Callable[[Survey], Iterator[Finding]], ...]] = (
    _members,
    _silent,
    _same_names,
    _clocks,
    _leaders,
    _too_few,
    _copies,
    _diverged,
    _settings,
    _servers,
    _disks,
    _permissions,
    _certificates,
    _versions,
    _nodes,
    _kinds,
    _shards,
    _unseen,
)
