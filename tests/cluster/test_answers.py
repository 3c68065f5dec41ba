"""What hosts and nodes answer is checked where it enters: nonsense changes nothing that a command
shows, and is said."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from holdfast import LocalCluster, Node, Unknown, codec
from holdfast.admin import presence
from holdfast.cluster.facts.cohort import Cohort, HostEntry
from holdfast.engines.base import Message
from holdfast.engines.local.bus import LocalBus
from holdfast.host.rpc.facts import (
    Certificate,
    HeardAgo,
    HostFacts,
    HostSight,
    NodeAway,
    NodeFacts,
    Replicas,
)
from holdfast.host.rpc.service import (
    ALL_SUBJECT,
    HostService,
    Nothing,
    Operation,
    answers_door,
    ask_host,
    subject_of,
)
from holdfast.host.server.server_admin import Peer, Replica, ServerFacts, Voters
from holdfast.node.checkup import SUBJECT, NodeState, state_door

pytestmark = [pytest.mark.timeout(900)]
APP = str(Path(__file__).parent / "app.py")
HOSTS = ("h1", "h2", "h3")


def cohort(*names: str) -> Cohort:
    return Cohort(
        [*names], {name: HostEntry(f"{name}-s", f"{name}:1", f"nats://{name}:2") for name in names}
    )


SERVER = ServerFacts("h1-s", "2.12.0-RC.1", True, 1 << 30, 7, 8, "nats://h1:2", 11, True)
AWAY = NodeAway("h1-1", 5.0, 2, "exit status 1")
REPLICA = Replica(
    "g1c0",
    9,
    900,
    1,
    9,
    0,
    "h1-s",
    True,
    [Peer("h2-s", True, False, (1 << 63) - 1, (1 << 64) - 1)],
    3,
)
FACTS = HostFacts(
    "h1",
    10,
    "0.1.0.dev1+g5f",
    1.7e9,
    1.8e9,
    ["h1:1"],
    [NodeFacts("h1-1", "n-x", 12, True, 1)],
    SERVER,
)
FACTS.certificates, FACTS.modes, FACTS.entry = (
    [Certificate("/a", 1.9e9)],
    {"/h1": 0o700},
    HostEntry("s", "r", "u"),
)
GOOD: dict[str, tuple[Any, Any]] = {
    "facts": (HostFacts, FACTS),
    "sight": (
        HostSight,
        HostSight("h1", 1.8e9, -3.0, True, {"h2": 0.3}, cohort(*HOSTS), 17, 3, [AWAY]),
    ),
    "replicas": (Replicas, Replicas("h1-s", [REPLICA])),
    "voters": (Voters, Voters("h1-s", [Peer("h1-s", True)])),
    "heard": (HeardAgo, {"h2": 0.3}),
    "node": (
        NodeState,
        NodeState("n-x~2", "h1-1", "h1", "0.1.0", ["A"], True, [0, 127], {"g1c0": "why"}),
    ),
}
NUMBERS: list[Any] = [math.nan, math.inf, -math.inf, -1e300, "9" * 5000, None, [], {}, True]
WHOLE: list[Any] = [*NUMBERS, -1, (1 << 64) - 1, 0.5]
TEXTS: list[Any] = ["x" * 100_000, None, 7, [], b"\xff"]
LISTS: list[Any] = [None, "x", 7, {"a": 1}, [None], [[]]]
PATHS: dict[str, list[Any]] = {
    "facts/host": [*TEXTS, "", "h2"],
    "facts/pid": WHOLE,
    "facts/version": [*TEXTS, "2 \x1b[2J", "²", "1\n"],
    "facts/started_at": [*NUMBERS, -1.0],
    "facts/now": [*NUMBERS, -1.0, 1e13],
    "facts/cohort": [*LISTS, [""], ["x"] * 5000],
    "facts/nodes": [*LISTS, [{"name": "a"}], [{}] * 5000],
    "facts/nodes/0/name": [*TEXTS, ""],
    "facts/nodes/0/ends_recent": WHOLE,
    "facts/server/version": [*TEXTS, "²", "9" * 5000],
    "facts/server/memory_bytes": WHOLE,
    "facts/server_trouble": TEXTS,
    "facts/disk_bytes": WHOLE,
    "facts/disk_free_bytes": WHOLE,
    "facts/certificates/0/expires_at": [*NUMBERS, 1e300],
    "facts/entry": [["s", "r"], ["s" * 5000, "", ""], "x"],
    "facts/modes": [
        *LISTS[:3],
        {"/a": -1},
        {"/a": 1 << 40},
        {"x" * 100_000: 1},
        {str(n): 1 for n in range(1000)},
    ],
    "sight/host": [*TEXTS, "", "h2"],
    "sight/up_seconds": [*NUMBERS, 1e300],
    "sight/heard": [*LISTS[:3], {"": 1.0}, {"x" * 5000: 1.0}, {str(n): 1.0 for n in range(2000)}],
    "sight/heard/h2": [*NUMBERS, -0.1, 1e9],
    "sight/sequence": [*WHOLE, 1 << 62],
    "sight/away": [*LISTS[:-1], [msgspec.to_builtins(AWAY)] * 65],
    "sight/away/0/name": [*TEXTS, ""],
    "sight/away/0/seconds": [*NUMBERS, -0.1, 1e9],
    "sight/away/0/ends": WHOLE,
    "sight/away/0/why": TEXTS,
    "sight/founders": [*WHOLE, 5000],
    "sight/record": [
        "x",
        [],
        [["h1"]],
        [["h1"], {"": ["s", "r", "u"]}],
        [["h1"], {"h1": ["s", 7, "u"]}],
    ],
    "replicas/server": TEXTS,
    "replicas/replicas": LISTS,
    "replicas/replicas/0/messages": WHOLE,
    "replicas/replicas/0/last_sequence": WHOLE,
    "replicas/replicas/0/stream": TEXTS,
    "replicas/replicas/0/peers/0/name": TEXTS,
    "voters/leader": TEXTS,
    "voters/peers": LISTS,
    "heard/h2": [*NUMBERS, -0.1],
    "node/incarnation": [*TEXTS, "", "a b", "n-x~" + "9" * 5000],
    "node/name": [*TEXTS, ""],
    "node/kinds": [*LISTS, ["x" * 5000]],
    "node/live": [None, 1, "true"],
    "node/shards": [*LISTS, [-1], [1 << 50], [0] * 300_000],
    "node/recovery_failures": [*LISTS[:3], {"a": 7}, {"a": "x" * 100_000}],
}


def with_value(path: str, value: Any) -> tuple[str, Any]:
    """What is asked, and an answer to it in which one field has this value."""
    what, *places, last = path.split("/")
    plain = msgspec.msgpack.decode(codec.encode_raw(GOOD[what][1]))
    inner = plain
    for place in places:
        inner = inner[int(place) if isinstance(inner, list) else place]
    inner[last] = value
    return what, plain


def door_and_message(what: str, value: Any) -> tuple[Any, Message]:
    if what == "node":
        return state_door(), Message("hf.hr.q", "", codec.encode_raw(value))
    return answers_door(what, GOOD[what][0]), Message(
        "hf.hr.q", "", codec.encode_raw(("h1", value))
    )


BAD = [(path, n) for path, values in PATHS.items() for n in range(len(values))]


@pytest.mark.parametrize("what", GOOD)
def test_what_hosts_and_nodes_say_passes(what: str) -> None:
    door, message = door_and_message(what, GOOD[what][1])
    assert door.read(message) in (GOOD[what][1], ("h1", GOOD[what][1])) and door.dropped == 0


@pytest.mark.parametrize(("path", "number"), BAD)
def test_no_answer_passes_that_does_not_fit(
    path: str, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    answers_door.cache_clear()
    door, message = door_and_message(*with_value(path, PATHS[path][number]))
    assert door.read(message) is None and door.read(message) is None
    assert door.dropped == 2 and len(caplog.records) == 1, "it is said once"
    assert len(caplog.text) < 1000


# What a look makes of them ------------------------------------------------------------------------


async def look(*sights: HostSight) -> presence.Presence:
    """A look at hosts that answer so."""
    bus = LocalBus()
    services = [HostService(bus, sight.host, {"sight": _answering(sight)}) for sight in sights]
    for service in services:
        await service.start()
    try:
        return await presence.look(bus, seconds=0.2)
    finally:
        for service in services:
            await service.close()


def _answering(value: Any) -> Operation:
    async def answer(_: Nothing) -> Any:
        return value

    return Operation(Nothing, answer)


def sight(host: str, record: Cohort, sequence: int, *heard: str) -> HostSight:
    return HostSight(host, 1.8e9, 9.0, True, dict.fromkeys(heard, 0.1), record, sequence)


TRUE = [sight(host, cohort(*HOSTS), 17, *HOSTS) for host in HOSTS]
INVENTED = [
    cohort("x1", "x2", "x3"),
    cohort("h1", "x2", "x3"),
    Cohort(["x1"], cohort(*HOSTS).hosts),
    Cohort([*HOSTS], cohort(*HOSTS).hosts, ["x1", "x2", "x3"]),
]


@pytest.mark.parametrize("name", ["h1", "x1"])
@pytest.mark.parametrize("record", INVENTED)
@pytest.mark.parametrize("first", [True, False])
async def test_a_record_of_hosts_that_nobody_else_knows_does_not_count(
    record: Cohort, name: str, first: bool
) -> None:
    lie = sight(name, record, 1 << 60)
    found = await look(*((lie, *TRUE) if first else (*TRUE, lie)))
    assert found.record == cohort(*HOSTS) and found.sequence == 17 and not found.lost
    assert {host.name for host in found.hosts if host.member} == {*HOSTS} and not found.gone


async def test_a_majority_is_lost_only_where_no_host_knows_another_record() -> None:
    record = Cohort(["h2"], cohort(*HOSTS).hosts)
    alone, other = (sight(host, cohort(*HOSTS), 17) for host in ("h1", "h3"))
    lie = sight("h1", record, 18)
    found = await look(alone, other, lie)
    assert found.record == record and not found.lost, (
        "h1 and h3 are a majority of the three that they know of"
    )
    assert (
        (await look(alone)).lost
        and (await look(alone, lie)).lost
        and not (await look(alone, other)).lost
    )


async def test_the_newest_record_counts_while_the_others_do_not_have_it_yet() -> None:
    newest = sight("h1", cohort(*HOSTS, "h4", "h5"), 18, "h4", "h5")
    found = await look(
        newest, sight("h2", cohort(*HOSTS), 17, "h4"), sight("h5", cohort(*HOSTS), 17)
    )
    assert found.sequence == 18 and [host.name for host in found.gone] == ["h3"]


async def test_nobody_answers_for_another_host() -> None:
    bus = LocalBus()
    for answer in (("h2", None), ("h1", GOOD["sight"][1]), 7, ("h1",), ("", None)):
        raw = codec.encode_raw(answer)
        subscription = await bus.subscribe(
            subject_of("h1"), lambda m, raw=raw: bus.publish(m.reply, raw)
        )  # type: ignore[misc]
        if answer == ("h1", GOOD["sight"][1]):
            assert (await ask_host(bus, "h1", "sight", HostSight)).host == "h1"
        else:
            with pytest.raises(Unknown, match="h1"):
                await ask_host(bus, "h1", "sight", type(None))
        await subscription.close()


# A cluster ----------------------------------------------------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalCluster]:
    async with LocalCluster(tmp_path_factory.mktemp("hosts"), [APP]) as made:
        yield made


async def run(*arguments: str, at: list[str]) -> tuple[int | None, Any, str]:
    """A command's code, the JSON that it prints, and what it says beside."""
    command = [
        str(Path(sys.executable).parent / "holdfast"),
        *arguments,
        "--json",
        "--at",
        ",".join(at),
    ]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, cwd="/tmp")
    out, err = await process.communicate()
    return process.returncode, json.loads(out), err.decode()


@pytest.mark.cluster
@pytest.mark.asyncio(loop_scope="module")
async def test_nonsense_in_answers_changes_nothing_that_commands_show(
    cluster: LocalCluster,
) -> None:
    async with Node.join(cluster.urls) as node:
        bus = node.engine.bus
        await node.ready()
        bad: dict[str, list[bytes]] = {
            what: [b"", b"\xc1", b"\x92\xa2h1", b"[" * 9000] for what in GOOD
        }
        for path, values in PATHS.items():
            for value in values:
                what, answer = with_value(path, value)
                bad[what].append(codec.encode_raw(answer if what == "node" else ("h1", answer)))
        bad["sight"].append(codec.encode_raw(("x1", sight("x1", INVENTED[0], 1 << 60))))

        def lie(message: Message) -> None:
            what = (
                "node" if message.subject == SUBJECT else msgspec.msgpack.decode(message.payload)[0]
            )
            for payload in bad.get(what, ()):
                bus.publish(message.reply, payload)

        subscriptions = [await bus.subscribe(subject, lie) for subject in (ALL_SUBJECT, SUBJECT)]

        async def hearing(command: str, right: Callable[[Any], bool], *kinds: str) -> Any:
            """What a command shows once nonsense reached it before all hosts had answered, which is
            all it waits for.

            It waits for a time. Where the machine is busy, a true answer may come later, so it is
            repeated until what it shows is ``right``. Nonsense that is believed would be believed
            each time.
            """
            shown: Any = None
            try:
                async with asyncio.timeout(240):
                    while True:
                        _, shown, said = await run(command, "--timeout", "120", at=cluster.urls)
                        assert len(said) < 5000 and "Traceback" not in said
                        assert all(
                            said.count(f"{kind} from 'h1' is dropped") <= 1 for kind in kinds
                        )
                        if all(f"{kind} from" in said for kind in kinds) and right(shown):
                            return shown
            except TimeoutError:
                raise AssertionError(f"{command} shows {shown}") from None

        status = await hearing(
            "status", lambda shown: shown.get("state") == "well", "an answer (sight)"
        )
        assert status["state"] == "well" and status["voters"] == 3 and status["problems"] == []
        assert [host["name"] for host in status["hosts"] if host["member"]] == [*HOSTS]

        def is_known(host: Any) -> bool:
            return bool(host["state"] != "member" or (host["disk_bytes"] and not host["behind"]))

        hosts = await hearing(
            "hosts",
            lambda shown: isinstance(shown, list) and all(map(is_known, shown)),
            "an answer (facts)",
        )
        members = {host["name"]: host for host in hosts if host["state"] == "member"}
        assert [*members] == [*HOSTS]
        assert all(
            one["disk_bytes"] > one["disk_free_bytes"] > 0 and one["behind"] == 0
            for one in members.values()
        )
        doctor = await hearing(
            "doctor",
            lambda shown: (
                shown.get("findings") == [] and (shown["hosts"], shown["nodes"]) == (3, 4)
            ),
            "an answer (facts)",
            "an answer (replicas)",
            "a node's answer",
        )
        assert doctor["healthy"] and doctor["findings"] == [], doctor
        assert (doctor["hosts"], doctor["nodes"]) == (3, 4)
        assert (await run("call", "Account/a", "add", "1", "--timeout", "240", at=cluster.urls))[
            0
        ] == 0
        for subscription in subscriptions:
            await subscription.close()
