"""A host guards its own copies and its vote: whoever asks, by a message of their own, and to
however many hosts at once."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from tests.cluster.app import Account

from holdfast import ConfigError, HoldfastError, LocalCluster, Node, NoQuorum, NotDone
from holdfast.cluster.facts import cohort
from holdfast.core.replicas import Extent, majority, why_keep
from holdfast.engines.nats import streams
from holdfast.engines.nats.engine import NatsEngine
from holdfast.errors import BadMessage, Conflict, InvalidName, NoResponders, StorageFailed, Unknown
from holdfast.host import guards
from holdfast.host.changes import Changes
from holdfast.host.directory import DirectoryLock
from holdfast.host.exclusive import Exclusive
from holdfast.host.rpc.facts import Replicas
from holdfast.host.rpc.service import ask_host
from holdfast.host.server.server_admin import Peer, Replica, Voters
from holdfast.host.voting.lost_votes import LostVotes

pytestmark = pytest.mark.timeout(900)
APP = str(Path(__file__).parent / "app.py")
AGENTS = 60


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalCluster]:
    async with LocalCluster(tmp_path_factory.mktemp("guards"), [APP]) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(cluster: LocalCluster) -> AsyncIterator[Node]:
    async with Node.join(cluster.urls) as made:
        await made.ready()
        yield made


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(240):
        while True:
            try:
                if await condition():
                    return
            except HoldfastError:
                pass
            await asyncio.sleep(0.2)


async def asked(node: Node, host: str, operation: str, arguments: Any = None) -> Any:
    """Ask as anybody with the client's password can, without a command in between. A host that is
    away is asked again."""
    async with asyncio.timeout(240):
        while True:
            try:
                return await ask_host(node.engine.bus, host, operation, object, arguments, 240)
            except (NoResponders, Unknown):
                await asyncio.sleep(0.2)
            except HoldfastError as error:
                return error


async def raft_group(node: Node, stream: str) -> str:
    assert isinstance(node.engine, NatsEngine)
    return (await streams.info(node.engine.connection, stream)).cluster.raft_group


async def copies(node: Node, cluster: LocalCluster, stream: str) -> list[tuple[int, int]]:
    """How far each copy goes, and how many records it has."""
    found = []
    for host in cluster.hosts:
        kept = await ask_host(node.engine.bus, host, "replicas", Replicas)
        found += [
            (copy.last_sequence, copy.messages) for copy in kept.replicas if copy.stream == stream
        ]
    return found


@pytest.mark.cluster
@pytest.mark.asyncio(loop_scope="module")
async def test_a_second_cluster_in_the_same_directory_is_refused(cluster: LocalCluster) -> None:
    directory = Path(_directory_of(cluster, "h1")).parent
    for hosts in (1, 3):
        with pytest.raises(ConfigError, match=f"process {os.getpid()}"):
            await LocalCluster(directory, [APP], hosts=hosts).start()
    with pytest.raises(ConfigError, match="belongs to a host that runs"):
        DirectoryLock(directory / "h1").take()


def _directory_of(cluster: LocalCluster, host: str) -> str:
    server = cluster.settings_of(host).server
    assert server is not None
    return server.directory


@pytest.mark.cluster
@pytest.mark.asyncio(loop_scope="module")
async def test_a_rebuild_sent_to_all_hosts_at_once_costs_nothing(
    cluster: LocalCluster, node: Node
) -> None:
    for n in range(AGENTS):
        await node.agent(Account, f"a{n}").ask(Account.add, n)
    begun = 0
    for stream in (node.manifest.cells[0], cohort.CELL):
        arguments = {"stream": stream, "raft_group": await raft_group(node, stream)}
        for _ in range(2):
            answers = await asyncio.gather(
                *(asked(node, host, "rebuild", arguments) for host in cluster.hosts)
            )
            assert sum(answer is None for answer in answers) <= 1, answers
            begun += sum(answer is None for answer in answers)
            assert all(isinstance(answer, NotDone) for answer in answers if answer is not None), (
                answers
            )

            async def all_whole(name: str = stream) -> bool:
                found = await copies(node, cluster, name)
                return len(found) == 3 and len(set(found)) == 1 and found[0][1] > 0

            await until(all_whole)
    assert begun > 0, "one at a time it is done"

    async def said() -> bool:
        counts = Counter([event.what async for event in node.events.read()])
        return min(counts["copy-discarded"], counts["copy-whole"]) >= begun

    await until(said)
    for n in range(AGENTS):
        assert await node.agent(Account, f"a{n}").ask(Account.value) == n


@pytest.mark.cluster
@pytest.mark.asyncio(loop_scope="module")
async def test_a_vote_is_the_records_to_give_and_to_take(cluster: LocalCluster, node: Node) -> None:
    record, _ = await cohort.read(node.engine, cohort.CELL)
    assert record is not None
    cell = node.manifest.cells[0]
    leaving, standing_down = [], []
    for host, entry in record.hosts.items():
        other = next(name for name in cluster.hosts if name != host)
        leaving += [
            asked(node, other, operation, {"server": entry.server})
            for operation in ("remove", "evacuate")
        ]
        standing_down.append(asked(node, host, "stand_down", {"sequence": 0}))
    copying = [
        asked(node, "h1", "copies", {"stream": cell, "copies": wanted}) for wanted in (0, 1, 2, 7)
    ]
    # A host that refuses looks several times before. So all are asked at once.
    answers = await asyncio.gather(*leaving, *standing_down, *copying)
    refused = await asked(node, "h1", "vote", {"sequence": (1 << 62) - 1})
    assert isinstance(refused, NotDone) and "is not there, only" in str(refused), refused
    assert isinstance(await asked(node, "h1", "vote", {"sequence": 1 << 62}), BadMessage)
    assert len(answers) == 13 and all(isinstance(answer, NotDone) for answer in answers), answers
    assert all("gives" in str(answer) for answer in answers[6:9]), answers
    assert isinstance(
        await asked(node, "h1", "copies", {"stream": "somebody-elses", "copies": 3}), InvalidName
    )
    assert isinstance(await asked(node, "h1", "lead_elsewhere", {"server": "nobody"}), NoQuorum)
    after, _ = await cohort.read(node.engine, cohort.CELL)
    assert after == record and len(await copies(node, cluster, cell)) == 3


@pytest.mark.cluster
@pytest.mark.asyncio(loop_scope="module")
async def test_work_of_a_host_that_died_is_taken_over_and_a_living_one_s_is_not(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, again = (
        Exclusive(node.engine, host, process) for host, process in ("ax", "by", "az")
    )
    async with asyncio.timeout(240):
        while True:
            with suppress(Conflict):  # a host that was at work in a test before
                await first.take("it works")
                break
            await asyncio.sleep(0.2)
    with pytest.raises(Conflict, match=r"host a is at work since .*: it works"):
        await second.take("it works as well")
    assert not await second.adopt()
    monkeypatch.setattr("holdfast.limits.EXCLUSIVE_SECONDS", 0.0)
    await first.renew()
    with pytest.raises(Conflict):
        await second.take("it is renewed, so it is seen for the first time")
    await asyncio.sleep(0.01)
    await second.take("it was not renewed")
    with pytest.raises(Conflict, match="host b"):
        await first.renew()
    await second.release()
    assert not await again.adopt()
    await again.take("it works")
    last = Exclusive(node.engine, "a", "new")
    assert await last.adopt(), "another life of the same host"
    await last.release()
    assert not await last.adopt()


@pytest.mark.cluster
@pytest.mark.asyncio(loop_scope="module")
async def test_nothing_that_is_needed_is_taken_away_while_a_host_is_gone(
    cluster: LocalCluster, node: Node
) -> None:
    record, _ = await cohort.read(node.engine, cohort.CELL)
    assert record is not None
    cell = node.manifest.cells[0]
    arguments = {"stream": cell, "raft_group": await raft_group(node, cell)}
    await cluster.kill_host("h3")
    *needed, leaving = await asyncio.gather(
        asked(node, "h1", "rebuild", arguments),
        asked(node, "h1", "restart"),
        asked(node, "h1", "evacuate", {"server": record.hosts["h2"].server}),
    )
    assert all(isinstance(answer, NoQuorum) for answer in needed), needed
    assert isinstance(leaving, NotDone), leaving
    for n in range(AGENTS):
        assert await node.agent(Account, f"a{n}").ask(Account.value) == n
    await cluster.start_host("h3")


@pytest.mark.cluster
@pytest.mark.asyncio(loop_scope="module")
async def test_work_that_an_orderly_stop_cuts_short_is_taken_up_by_the_next_process(
    node: Node,
) -> None:
    host = cast(Any, SimpleNamespace(engine=node.engine, settings=SimpleNamespace(name="c")))
    for cut_short in (True, False):
        changes = Changes(host, "before")
        begun = asyncio.Event()

        async def work(
            changes: Changes = changes, begun: asyncio.Event = begun, last: bool = cut_short
        ) -> None:
            await changes._exclusive.take("it works")
            async with changes._working():
                begun.set()
                while last:
                    await asyncio.sleep(60)

        changes._task = asyncio.create_task(work())
        await begun.wait()
        if not cut_short:
            await changes._task
        await changes.close()
        after = Exclusive(node.engine, "c", "after")
        assert await after.adopt() is cut_short
        await after.release()


@pytest.mark.cluster
@pytest.mark.asyncio(loop_scope="module")
async def test_a_copy_that_cannot_be_put_aside_is_not_said_to_be_whole(
    node: Node, tmp_path: Path
) -> None:
    said: list[str] = []
    failing = [True, False]

    async def restart(between: Callable[[], None]) -> None:
        between()
        if failing.pop(0):
            raise StorageFailed("the store stays as it is")

    host = SimpleNamespace(engine=node.engine, settings=SimpleNamespace(name="c"), system=None)
    host.server = SimpleNamespace(settings=SimpleNamespace(directory=str(tmp_path)))
    host.keeper, host.say = (
        SimpleNamespace(restart=restart),
        lambda event, facts: said.append(event),
    )
    copy = tmp_path / "copy"
    for wanted in ([], ["copy-discarded", "copy-not-whole"]):  # nobody says that it has everything
        copy.mkdir()
        changes = Changes(cast(Any, host), "now")
        await changes._exclusive.take("it gets a new copy")
        await changes._rebuild("s", [copy])
        assert said == wanted and list(tmp_path.iterdir()) == []
        after = Exclusive(node.engine, "c", "after")
        assert not await after.adopt(), "it is over"


@pytest.mark.cluster
@pytest.mark.asyncio(loop_scope="module")
async def test_a_host_that_does_not_vote_and_is_gone_is_not_waited_for(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, _ = await cohort.read(node.engine, cohort.CELL)
    assert record is not None
    gone = record.with_host("gone", cohort.HostEntry("gone-0", "127.0.0.1:1", "nats://127.0.0.1:2"))
    monkeypatch.setattr(guards, "_ANSWER_SECONDS", 120.0)
    async with asyncio.timeout(240):
        kept = await guards.Guards(cast(Any, SimpleNamespace(engine=node.engine)))._kept(gone)
    assert kept.keys() == {entry.server for entry in record.hosts.values()}


EXTENTS = st.builds(Extent, st.integers(0, 50), st.integers(0, 50))


@given(
    st.sampled_from([1, 3, 5]),
    st.lists(st.none() | EXTENTS, min_size=1, max_size=5),
    EXTENTS,
    EXTENTS,
    st.integers(0, 4),
)
def test_a_copy_is_only_thrown_away_where_all_others_are_whole(
    copies: int, extents: list[Extent | None], before: Extent, after: Extent, leads: int
) -> None:
    kept = {f"s{n}": extent for n, extent in enumerate(extents[:copies])}
    if why_keep("s0", copies, kept, f"s{leads}", before, after):
        return
    others = [extent for name, extent in kept.items() if name != "s0"]
    assert len(others) == copies - 1 >= majority(copies)
    assert f"s{leads}" in kept and leads != 0
    assert all(extent is not None and extent.last >= before.last for extent in others)
    own = kept["s0"]
    assert own is None or own.last <= after.last


def test_a_copy_is_thrown_away_where_the_others_have_all() -> None:
    whole = Extent(10, 7)
    for own in (whole, Extent(8, 5), Extent(10, 1), None):
        assert why_keep("a", 3, {"a": own, "b": whole, "c": whole}, "b", whole, whole) == ""
    for own in (Extent(11, 7), Extent(10, 8)):
        assert "this copy" in why_keep(
            "a", 3, {"a": own, "b": whole, "c": whole}, "b", whole, whole
        )
    assert "4 records" in why_keep(
        "a", 3, {"a": whole, "b": whole, "c": Extent(10, 4)}, "b", whole, whole
    )


@pytest.mark.parametrize(
    ("servers", "answering", "leaves", "why"),
    [
        ("abcde", "ab", "d", "s has no leader"),
        ("abc", "ac", "b", "s has no leader"),
        ("ab", "a", "b", ""),
        ("abc", "a", "b", "s has no leader"),
    ],
)
def test_nobody_leaves_while_it_is_not_known_what_the_others_lack(
    servers: str, answering: str, leaves: str, why: str
) -> None:
    """Of two copies, the one that is left has everything, and nobody to elect it."""
    record = cohort.Cohort(
        sorted(servers), {name: cohort.HostEntry(name, "", "") for name in servers}
    )
    kept = {
        name: Replicas(name, [replica(name, [other for other in servers if other != name])])
        for name in answering
    }
    assert guards.Guards(cast(Any, None))._why_stay(record, kept, leaves) == why


@pytest.mark.parametrize(
    ("streams_of", "leaves", "why"),
    [
        ({"a": ["s", "t"], "b": ["s", "t"]}, "c", ""),
        (
            {"a": ["s"], "b": ["s"]},
            "c",
            "no server that answers keeps t: its only copy may be that of c",
        ),
        ({"a": ["s", "t"], "b": ["s"]}, "c", ""),
        ({"a": ["s", "t"], "b": ["s"], "c": ["s"]}, "a", "the only copy of t is that of a"),
        ({"a": ["s", "t"], "b": ["s"], "c": ["s"]}, "b", ""),
    ],
)
async def test_nobody_leaves_who_has_or_may_have_the_only_copy(
    streams_of: dict[str, list[str]], leaves: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a cluster whose streams do not have all the copies yet that they are to have."""
    record = cohort.Cohort(["d"], {name: cohort.HostEntry(name, "", "") for name in "abcd"})
    keep = {
        stream: [name for name in streams_of if stream in streams_of[name]] for stream in ("s", "t")
    }
    kept = {
        name: Replicas(name, [led(stream, name, keep[stream]) for stream in mine])
        for name, mine in streams_of.items()
    }

    async def of_the_record(_: object) -> cohort.Cohort:
        return record

    async def of_the_servers(*_: object) -> dict[str, Replicas]:
        return kept

    async def names(_: object) -> list[str]:
        return ["s", "t"]

    monkeypatch.setattr(guards.Guards, "_record", of_the_record)
    monkeypatch.setattr(guards.Guards, "_kept", of_the_servers)
    monkeypatch.setattr(streams, "names", names)
    monkeypatch.setattr(guards, "_LOOKS", 1)
    asking = guards.Guards(cast(Any, SimpleNamespace(engine=SimpleNamespace(connection=None))))
    await asking.may_be_emptied(leaves)
    if why:
        with pytest.raises(NotDone, match=why):
            await asking.may_leave(leaves)
    else:
        await asking.may_leave(leaves)


def led(stream: str, server: str, keep: list[str]) -> Replica:
    others = [Peer(other, current=True) for other in keep if other != server]
    return Replica(stream, 9, 99, 1, 9, 0, keep[0], server == keep[0], others, len(keep))


def replica(server: str, others: list[str]) -> Replica:
    return Replica(
        "s", 9, 99, 1, 9, 0, "", False, [Peer(other) for other in others], len(others) + 1
    )


async def test_a_host_whose_server_does_not_vote_takes_no_votes_away() -> None:
    """Its server may be starting again: then it has no name either."""

    async def nobody() -> Voters:
        return Voters("", [])

    system = SimpleNamespace(voters=nobody, server_name=lambda: "")
    seat = SimpleNamespace(record=cohort.Cohort(["a"], {"a": cohort.HostEntry("a-1", "", "")}))
    assert await LostVotes(cast(Any, system), cast(Any, seat), cast(Any, None))._lost() == {}
