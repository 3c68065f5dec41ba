"""A member as it is heard: late and doubled beats, false words, and the lives that follow each
other."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from holdfast import ConfigError, Node, codec, limits
from holdfast.cluster.facts.events import unheard
from holdfast.cluster.members.beats import (
    BEAT_SUBJECT,
    HOST_SUBJECT,
    Beat,
    HostBeat,
    Member,
    beat_door,
    host_door,
)
from holdfast.cluster.members.membership import Membership
from holdfast.cluster.ownership.planner import Planner
from holdfast.core import plan
from holdfast.core.contest import Contest
from holdfast.core.pools import PoolRecord, Table
from holdfast.engines.base import Message

BEAT = limits.BEAT_SECONDS


def beat(number: int, **other: Any) -> Beat:
    return msgspec.structs.replace(
        Beat("n-a", "h", "n", 0.0, ["A"], 1, 2, "0.1"), number=number, **other
    )


def test_a_beat_that_is_late_or_twice_changes_nothing() -> None:
    member = Member(beat(5), 0.0)
    assert member.take(beat(7), 1.0) and member.beat.number == 7
    for number in (7, 6, 5, 1, 6):
        assert not member.take(beat(number), 1.1)
    assert member.heard_at == 1.0 and member.take(beat(8), 1.2)


def test_a_number_that_was_not_its_own_does_not_silence_a_node() -> None:
    member = Member(beat(5), 0.0)
    assert member.take(beat(1 << 40), BEAT)
    taken = [member.take(beat(6 + n), BEAT * (2 + n)) for n in range(8)]
    assert not taken[0] and all(taken[4:]), "before it would be suspected"
    assert BEAT * (2 + taken.index(True)) - BEAT < limits.SUSPECT_SECONDS


def test_a_process_of_the_version_before_does_not_count() -> None:
    member = Member(beat(0), 0.0)
    assert all(member.take(beat(0), at) for at in (0.4, 0.8))


@pytest.mark.parametrize("word", [True, False])
def test_later_beats_lift_a_word(word: bool) -> None:
    member = Member(beat(5), 0.0)
    assert member.call_dead(0.1, word=word) and member.dead and member.word is word
    assert not member.call_dead(0.1, word=word), "it is no news"
    assert not member.take(beat(5), 0.2) and member.dead
    assert member.take(beat(6), 0.3) and member.dead, "this one may have been under way"
    assert member.take(beat(7), 0.7) and not member.dead and not member.word
    assert member.call_dead(0.8, word=word) is not word, (
        "a host's word counts once, while the node is heard"
    )
    member = Member(beat(5), 0.0, outlived=True)
    assert member.call_dead(BEAT * 4, word=True), "and again where it is not heard"


def test_a_hosts_word_counts_after_a_goodbye() -> None:
    member = Member(beat(5), 0.0)
    assert member.call_dead(0.1, word=False) and not member.word
    assert member.call_dead(0.2, word=True) and member.word and member.dead


def test_silence_is_lifted_by_one_beat_and_a_sentence_by_none() -> None:
    member = Member(beat(5), 0.0, dead=True)
    assert member.take(beat(6), 9.0) and not member.dead
    member = Member(beat(5), 0.0, dead=True, final=True)
    assert not any(member.take(beat(6 + n), 1.0 + n) for n in range(9)) and member.dead


GOOD = {
    "incarnation": ["n-5f3a", "n-5f3a~2", "n_x~12345"],
    "host": ["a host", "h.example.org"],
    "capacity": [0.01, 1.0, 1000.0],
    "warm": [[], list(range(128))],
}
BAD = {
    "incarnation": [
        "",
        "a b",
        "n-x.y",
        "n-x~",
        "n-x~0",
        "n-x~" + "9" * 5000,
        "n-x\n",
        "n*",
        "x" * 200,
        7,
        None,
    ],
    "host": ["", "x" * 5000, 3],
    "name": ["", ["a"]],
    "started_at": [math.nan, math.inf, -1.0, "now"],
    "kinds": [[""], ["A"] * 5000, "A"],
    "shards": [-1, 1 << 40, 1.5],
    "agents": [-1, (1 << 64) - 1],
    "capacity": [math.nan, math.inf, -math.inf, 0.0, -1.0, 1e-320, 1001.0, "1"],
    "labels": [["x"] * 5000],
    "state_versions": [[-1], [1 << 40]],
    "warm": [[-1], [1 << 50], [0] * 300_000],
    "record_version": [-1],
    "generation": [-1, 1 << 50],
    "degraded": ["x" * 10_000],
    "number": [-1, (1 << 64) - 1],
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, some in BAD.items() for value in some]
)
def test_no_field_passes_that_does_not_fit(
    field: str, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    door = beat_door()
    fields = [*msgspec.structs.astuple(beat(1))]
    fields[Beat.__struct_fields__.index(field)] = value
    message = Message("hf.beat", "", msgspec.msgpack.encode(fields))
    assert door.read(message) is None and door.read(message) is None
    assert door.dropped == 2 and len(caplog.records) == 1, "it is said once"
    assert len(caplog.records[0].getMessage()) < 400


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, some in GOOD.items() for value in some]
)
def test_all_that_fits_passes(field: str, value: Any) -> None:
    sent = beat(1, **{field: value})
    assert beat_door().read(Message("hf.beat", "", codec.encode_raw(sent))) == sent


@pytest.mark.parametrize("reply", ["a..b", ">", "x.*", ".", "y" * 5000])
def test_a_reply_that_is_not_a_subject_is_not_answered(reply: str) -> None:
    assert host_door().read(Message("hf.host", reply, codec.encode_raw(HostBeat("h", [])))) is None


@pytest.mark.parametrize(
    "value",
    [
        HostBeat("", []),
        HostBeat("h", ["a b"]),
        HostBeat("h", [], ["~"]),
        HostBeat("h", [], [], "a b"),
        HostBeat("h", [], voters=-1),
        HostBeat("h", [], voters=5000),
        HostBeat("h", ["n"] * 5000),
    ],
)
def test_a_hosts_beat(value: HostBeat) -> None:
    assert host_door().read(Message("hf.host", "", codec.encode_raw(value))) is None


def test_many_sources_are_not_all_said(caplog: pytest.LogCaptureFixture) -> None:
    door = beat_door()
    for number in range(1000):
        assert door.read(Message("hf.beat", "", msgspec.msgpack.encode([f"n-{number}"]))) is None
    assert door.dropped == 1000 and len(caplog.records) < 100


def test_a_shard_that_is_taken_again_and_again_is_left_alone_for_longer() -> None:
    contest, now, taken = Contest(Random(1)), 0.0, 0
    assert contest.may_take(3, now)
    while now < 120.0:
        now += 0.1
        if contest.may_take(3, now):
            taken += 1
            contest.lost(3, now)
    assert 5 < taken < 40
    assert contest.may_take(4, 0.0), "another one is free"
    assert contest.may_take(3, now + limits.CONTEST_SECONDS_MAX)
    assert contest.lost(3, now + 4 * limits.CONTEST_SECONDS_MAX) == 1, (
        "it is forgiven after a while"
    )


async def test_a_claim_in_the_log_lifts_a_word_that_is_older_than_a_tail_may_lag() -> None:
    membership = Membership(cast(Any, None), cast(Any, None), False)
    now = asyncio.get_running_loop().time()
    for name, ago in (("n-old", 10.0), ("n-new", 0.0)):
        heard = msgspec.structs.replace(beat(5), incarnation=name)
        membership._members[name] = Member(
            heard, now - ago, dead=True, word=True, called_at=now - ago
        )
        membership.proved(name)
    assert not membership._members["n-old"].dead and membership._members["n-new"].dead
    membership._members["n-old"] = Member(beat(5), now, dead=True, final=True, called_at=now - 10.0)
    membership.proved("n-old")
    assert membership._members["n-old"].dead, "a sentence is final"


async def test_a_process_is_there_as_long_as_its_host_says_so_and_goes_on_when_it_is_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    membership = Membership(cast(Any, None), cast(Any, None), False)
    monkeypatch.setattr(
        membership, "_loop", loop := SimpleNamespace(time=lambda: loop.now, now=100.0)
    )
    heard = membership.standstills

    def host(*nodes: str) -> None:
        membership._on_host(Message(HOST_SUBJECT, "", codec.encode_raw(HostBeat("h", list(nodes)))))

    def node(incarnation: str, number: int) -> None:
        said = beat(number, incarnation=incarnation, generation=membership._generation)
        membership._on_beat(Message(BEAT_SUBJECT, "", codec.encode_raw(said)))

    assert not heard.is_there("n-a") and not heard.goes_on("n-a")
    host("n-a", "n-b")
    node("n-a", 1)
    assert heard.is_there("n-a") and heard.is_there("n-a~2") and heard.goes_on("n-a")
    loop.now += limits.SUSPECT_SECONDS + 0.1
    assert heard.is_there("n-a") and not heard.goes_on("n-a"), "it is silent"
    node("n-a~2", 2)
    node("n-a", 3)
    assert heard.goes_on("n-a") and not heard.goes_on("n-b")
    node("n-a~999999999", 9)
    for number in range(4, 4 + 2 * limits.LIFTING_BEATS):
        loop.now += BEAT
        node("n-a~2", number)
    assert heard.goes_on("n-a"), "somebody made a life of it up"
    host("n-b")
    assert not heard.is_there("n-a") and heard.is_there("n-b"), "it ended"
    loop.now += limits.TAKEOVER_SECONDS + 0.1
    assert not heard.is_there("n-b"), "its host is silent"


@pytest.mark.parametrize("whole", [True, False])
async def test_one_member_never_ends_the_planner(
    whole: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = beat(1), beat(1, incarnation="n-b")
    table = Table([PoolRecord("main", 0, 8)], {"A": "main"})
    parts = {
        "membership": SimpleNamespace(live=lambda: [good, bad], warm=dict),
        "placement": SimpleNamespace(table=table, manifest=SimpleNamespace(cells=["c"])),
        "epochs": SimpleNamespace(holders=dict),
        "life": SimpleNamespace(incarnation="n-a"),
        "on_event": unheard,
    }
    planner = Planner(**cast(Any, parts))
    if whole:
        planner.look()
        before = planner.plan
        assert set(before.owners.values()) == {"n-a", "n-b"}
        monkeypatch.setattr(plan, "make", lambda *_: 1 / 0)
        planner.look()
        assert planner.plan is before, "the one before is kept"
    else:
        bad.labels = cast(Any, None)
        for _ in range(3):
            planner.look()
        assert set(planner.plan.owners.values()) == {"n-a"}, "it is left out"
        assert len(caplog.records) == 1, "it is said once"


@pytest.mark.parametrize("name", ["a b", "a.b", "a~0", "*", "x" * 200])
async def test_a_node_takes_no_name_that_the_others_would_drop(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="incarnation"):
        async with Node.join(f"local:{tmp_path / 'log.db'}", incarnation=name):
            pass
