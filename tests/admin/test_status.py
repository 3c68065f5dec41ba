"""What the status makes of what was seen."""

from __future__ import annotations

from holdfast.admin.presence import HostPresence, Presence
from holdfast.admin.status import DEGRADED, WELL, Status, judged
from holdfast.cluster.beats import Beat
from holdfast.cluster.cohort import Cohort

HOSTS = ["h1", "h2", "h3"]


def seen(record: Cohort | None) -> Presence:
    hosts = [HostPresence(name, True, record is not None) for name in HOSTS]
    beat = Beat("n-1", "h1", "h1-1", 1.0, ["Note"], 128, 0, "0.1.0")
    return Presence(hosts=hosts, nodes=[beat], record=record, answered=HOSTS, founders=3)


def test_nothing_is_called_well_before_it_is_known_who_votes() -> None:
    """Hosts that answer may not have read it yet, and without it too few copies would not be noticed."""
    found = judged(Status(shards=128, copies=3), seen(None))
    assert (found.state, found.voters) == (DEGRADED, 0) and "which hosts vote is not known yet" in found.problems[0]
    found = judged(Status(shards=128, copies=3), seen(Cohort(HOSTS, {})))
    assert (found.state, found.voters, found.problems) == (WELL, 3, [])
