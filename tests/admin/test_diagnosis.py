"""What is made of a survey, where no real cluster can be had to look so at a chosen moment."""

from __future__ import annotations

import pytest

from holdfast.admin.doctor.doctor import diagnose
from holdfast.admin.doctor.findings import Finding
from holdfast.admin.doctor.survey import Survey
from holdfast.admin.presence import HostPresence, Presence
from holdfast.cluster.facts.cohort import Cohort, HostEntry
from holdfast.engines.nats.engine import stream_settings
from holdfast.engines.nats.streams import Group, Peer, State, StreamFacts

HOSTS = ("h1", "h2", "h3")


def just_after_the_loss_of(*gone: str) -> Survey:
    """The server of h1 leads a stream still, and believes that all its copies are current."""
    record = Cohort([*HOSTS], {host: HostEntry(f"{host}-s", "", "") for host in HOSTS})
    hosts = [HostPresence(host, host not in gone, True) for host in HOSTS]
    there = [host for host in HOSTS if host not in gone]
    group = Group("h1-s", "group", [Peer(f"{host}-s", current=True) for host in HOSTS[1:]])
    stream = StreamFacts(stream_settings("g1c0", 3), State(), group)
    return Survey(presence=Presence(hosts, [], record, 1, there), streams={"g1c0": stream})


def copies(survey: Survey) -> list[str]:
    found: list[Finding] = diagnose(survey).findings
    return [
        one.seen
        for cause in found
        for one in (cause, *cause.then)
        if one.code == "under-replicated"
    ]


@pytest.mark.parametrize(
    ("gone", "seen"),
    [
        ((), []),
        (("h3",), []),  # soon its server knows it, and says how many there are
        (("h2", "h3"), ["1 of 3 copies are current: h2-s is down, h3-s is down"]),
    ],
)
def test_copies_of_a_lost_majority_are_not_counted_though_a_server_does_not_know_it_yet(
    gone: tuple[str, ...], seen: list[str]
) -> None:
    assert copies(just_after_the_loss_of(*gone)) == seen
