"""Hosts join, leave, are lost, removed and replaced, under load; what was acknowledged is there
after each of it.

The tests build on each other: a cohort of three goes from one membership to the next.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
from tests.cluster.app import Account

from holdfast import ConfigError, LocalCluster, Node, NoQuorum, NotDone, NotFound, OutcomeUnknown
from holdfast.admin.fleet import cohort
from holdfast.admin.fleet.hosts import GONE, JOINED, MEMBER, HostView, list_hosts, look
from holdfast.engines.nats import api
from holdfast.engines.nats.engine import NatsEngine
from holdfast.host.server.server_admin import ServerAdmin, Voters, peer_id
from holdfast.host.supervisor import Host
from holdfast.host.voting.voter import Voter

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(900),
]
APP = str(Path(__file__).parent / "app.py")
STREAMS = {"hfhosts", "g1reg", "g1blobs", "g1c0", "g1c1", "g1c2"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cohort")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(directory: Path) -> AsyncIterator[LocalCluster]:
    def report(event: str, facts: dict[str, object]) -> None:
        if event != "node-said":
            print(event, facts)  # a test that fails shows it

    async with LocalCluster(directory, [APP], report=report) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(cluster: LocalCluster) -> AsyncIterator[Node]:
    async with Node.join(cluster.urls) as made:
        await made.ready()
        await until(lambda: has_record(made))
        yield made


async def has_record(node: Node) -> bool:
    return len((await cohort.show(node)).hosts) >= 3


async def until(condition: Callable[[], object], seconds: float = 240.0) -> None:
    """Wait for a condition, which may be a coroutine; what cannot be told, or is not known, at the
    moment is not so yet."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                found = condition()
                if await found if asyncio.iscoroutine(found) else found:
                    return
            except (NotDone, NotFound):
                pass
            await asyncio.sleep(0.1)


async def host(node: Node, name: str) -> HostView:
    """Raises `NotFound` where none of that name is known, as of one that was removed and has only
    just started again."""
    for one in (await list_hosts(node.engine))[0]:
        if one.name == name:
            return one
    raise NotFound(name)


class Load:
    """Counts up accounts, and knows what was acknowledged."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.acknowledged = {f"load-{n}": 0 for n in range(12)}
        self.unknown = dict.fromkeys(self.acknowledged, 0)

    async def _work(self, name: str) -> None:
        while True:
            try:
                value = await self.node.agent(Account, name).ask(Account.add, 1)
            except OutcomeUnknown:
                self.unknown[name] += 1
                continue
            except NoQuorum:  # an election that took long: nothing was done
                continue
            self.acknowledged[name] += 1
            self._judge(name, value)
            await asyncio.sleep(0.05)

    def _judge(self, name: str, value: int) -> None:
        assert self.acknowledged[name] <= value <= self.acknowledged[name] + self.unknown[name], (
            name
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Load, until this ends; then all that was acknowledged has to be there."""
        self.acknowledged = {name: await self._value(name) for name in self.acknowledged}
        self.unknown = dict.fromkeys(self.acknowledged, 0)
        tasks = [asyncio.create_task(self._work(name)) for name in self.acknowledged]
        try:
            yield
            before = dict(self.acknowledged)
            # Something was done to the end, and is still done after what this was for.
            await until(
                lambda: _more(self.acknowledged, before) or any(task.done() for task in tasks)
            )
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert [error for error in ended if not isinstance(error, asyncio.CancelledError)] == []
        # the call that was cancelled
        self.unknown = {name: count + 1 for name, count in self.unknown.items()}
        await self.check()

    async def _value(self, name: str) -> int:
        return await self.node.agent(Account, name).ask(Account.value)

    async def check(self) -> None:
        for name in self.acknowledged:
            self._judge(name, await self._value(name))


def _more(counts: dict[str, int], before: dict[str, int]) -> bool:
    return all(counts[name] > before[name] + 1 for name in counts)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def load(node: Node) -> Load:
    return Load(node)


async def same_everywhere(node: Node) -> bool:
    """Whether the members keep every stream, with the same records in number and the same last
    sequence."""
    view = await look(node.engine)
    members = view.record.members
    copies = {
        name: {r.stream: r for r in view.kept[name].replicas}
        for name in members
        if name in view.kept
    }
    if len(copies) < len(members) or not view.settled() or view.record.target:
        return False
    wanted = {replica.copies for replica in view.leading.values()} == {len(members)}
    return wanted and all(set(kept) == STREAMS for kept in copies.values())


async def identical(node: Node) -> None:
    """Wait until each stream was seen at the same last sequence on all members: then they hold the
    same records."""
    seen: set[str] = set()

    async def compare() -> bool:
        view = await look(node.engine)
        copies = [
            {r.stream: r for r in view.kept[name].replicas}
            for name in view.record.members
            if name in view.kept
        ]
        for stream in STREAMS:
            ends = {
                (r.messages, r.first_sequence, r.deleted) for r in (kept[stream] for kept in copies)
            }
            if len({kept[stream].last_sequence for kept in copies}) == 1:
                assert len(ends) == 1, (stream, ends)
                seen.add(stream)
        return seen == STREAMS

    await until(lambda: same_everywhere(node))
    await until(compare)


async def quiet(node: Node) -> bool:
    """Whether no follower is behind at all."""
    view = await look(node.engine)
    return all(
        peer.current and peer.lag < 10
        for replica in view.leading.values()
        for peer in replica.peers
    )


@pytest.mark.capability("A3")
async def test_a_host_joins_with_one_address(cluster: LocalCluster, node: Node) -> None:
    await cluster.add_host("h4")
    for url in cluster.urls:
        async with Node.join(url) as other:
            await until(
                lambda other=other: (
                    {m.name for m in other.members() if m.kinds} >= {"h1-1", "h2-1", "h3-1", "h4-1"}
                )
            )
    await until(lambda: any(member.host == "h4" and member.shards for member in node.members()))
    await node.ready()
    names = [f"moved-{n}" for n in range(40)]
    values = await asyncio.gather(
        *(node.agent(Account, name).ask(Account.add, 1) for name in names)
    )
    assert values == [1] * len(names)
    assert any(node.describe(f"Account/{name}").host == "h4" for name in names)
    async with Node.join(cluster.urls[3]) as other:
        assert await other.agent(Account, names[0]).ask(Account.value) == 1
    await until(lambda: has_joined(node, "h4"))
    assert [(await host(node, name)).state for name in ("h1", "h2", "h3")] == [MEMBER] * 3


async def has_joined(node: Node, name: str) -> bool:
    one = await host(node, name)
    return one.state == JOINED and one.replicas == 0 and one.trouble == ""


async def test_what_must_not_be_is_refused(cluster: LocalCluster, node: Node) -> None:
    before = await cohort.show(node)
    for name in ("h2", "h4"):
        with pytest.raises(ConfigError, match="alive"):
            await cohort.remove(node, name, print)
    with pytest.raises(NotFound, match="h9"):
        await cohort.remove(node, "h9", print)
    with pytest.raises(NotFound, match="never joined"):
        await cohort.replace(node, "h1", "h9", print)
    for members in (["h1"], ["h1", "h2"], ["h1", "h2", "h3", "h4"]):
        with pytest.raises(ConfigError, match="3 or 5"):
            await cohort.set_members(node, members, print)
    with pytest.raises(ConfigError, match="twice"):
        await cohort.set_members(node, ["h1", "h1", "h2"], print)
    assert await cohort.show(node) == before


async def replaced(node: Node, lost: str, new: str, members: list[str]) -> bool:
    """Whether a host is in the place of another by now: where no majority is there yet, the command
    says so at once."""
    return (await cohort.replace(node, lost, new, print)).members == members


@pytest.mark.capability("B5")
async def test_a_dead_host_is_replaced_and_the_loss_of_another_loses_nothing(
    cluster: LocalCluster, node: Node, load: Load
) -> None:
    async with load.running():
        await cluster.kill_host("h3")
        with pytest.raises(NotDone, match="not there"):
            await cohort.set_members(node, ["h1", "h3", "h4"], print)
        await until(lambda: is_gone(node, "h3"))
        await until(lambda: replaced(node, "h3", "h4", ["h1", "h2", "h4"]))
    await identical(node)
    assert "h3" not in (await cohort.remove(node, "h3", print)).hosts
    await until(lambda: quiet(node))
    await cluster.kill_host("h1")
    await load.check()
    async with load.running():
        pass  # it goes on


async def is_gone(node: Node, name: str) -> bool:
    return (await host(node, name)).state == GONE


@pytest.mark.capability("A9")
async def test_a_host_with_its_directory_has_its_data_and_one_that_was_removed_has_no_vote(
    cluster: LocalCluster, node: Node
) -> None:
    server = (await host(node, "h1")).server
    await cluster.start_host("h1")
    await until(lambda: same_everywhere(node))
    assert (await host(node, "h1")).server == server
    removed = (cluster._hosts["h3"].settings.server.directory, "host.json")  # type: ignore[union-attr]
    former = json.loads(Path(*removed).read_text())["identity"]
    await cluster.start_host("h3")
    await until(lambda: has_joined(node, "h3"))
    assert not (await host(node, "h3")).server.endswith(former)
    assert (await cohort.show(node)).members == ["h1", "h2", "h4"]


@pytest.mark.parametrize("lost", ["", "jetstream"])
async def test_a_host_whose_disk_was_lost_gets_everything_from_the_others(
    cluster: LocalCluster, node: Node, directory: Path, load: Load, lost: str
) -> None:
    former = (await host(node, "h2")).server
    await cluster.stop_host("h2")
    shutil.rmtree(directory / "h2" / lost)
    await cluster.start_host("h2")
    await until(lambda: took_its_place(node, "h2", former))
    await identical(node)
    view = await look(node.engine)
    assert len(view.alive) == 3 and former not in view.alive
    await load.check()


async def begin_here(cluster: LocalCluster, name: str) -> Host:
    """Run a host in this process, with another server than before."""
    await cluster.stop_host(name)
    settings = cluster._hosts[name].settings
    assert settings.server is not None
    shutil.rmtree(settings.server.directory)
    here = Host(msgspec.structs.replace(settings, nodes=0), lambda _event, _facts: None)
    await here.start()
    return here


async def test_the_former_server_of_a_host_loses_its_vote_though_the_new_one_does_not_know_it(
    cluster: LocalCluster, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    former = (await host(node, "h2")).server
    asked = ServerAdmin.voters

    async def as_a_new_server_may(self: ServerAdmin) -> Voters:
        found = await asked(self)
        return Voters(found.leader, [peer for peer in found.peers if peer.peer != peer_id(former)])

    monkeypatch.setattr(ServerAdmin, "voters", as_a_new_server_may)
    here = await begin_here(cluster, "h2")
    try:
        await until(lambda: took_its_place(node, "h2", former))
        monkeypatch.undo()
        servers = {(await host(node, name)).server for name in ("h1", "h2", "h4")}
        assert {peer.name for peer in (await voters(here)).peers} == servers
    finally:
        await here.stop()
    await cluster.start_host("h2")
    await identical(node)


async def test_a_vote_that_no_host_has_any_more_is_taken_away(
    cluster: LocalCluster, node: Node, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    voted: list[bool] = []

    async def forgets(_seat: object, system: ServerAdmin, lost: str, _may_leave: object) -> bool:
        voted.append(peer_id(lost) in {peer.peer for peer in (await system.voters_as_led()).peers})
        return True

    former = (await host(node, "h2")).server
    monkeypatch.setattr(Voter, "_succeed", forgets)
    here = await begin_here(cluster, "h2")
    try:
        await until(lambda: took_its_place(node, "h2", former))
        assert voted and voted[-1]
        await identical(node)
        assert peer_id(former) not in {peer.peer for peer in (await voters(here)).peers}
    finally:
        await here.stop()
    await cluster.start_host("h2")
    await load.check()


async def voters(here: Host) -> Voters:
    assert here.system is not None
    return await here.system.voters_as_led()


async def took_its_place(node: Node, name: str, former: str) -> bool:
    one = await host(node, name)
    return one.server != former and one.state == MEMBER and one.trouble == ""


@pytest.mark.soak
@pytest.mark.capability("B11")
async def test_leaders_are_spread(cluster: LocalCluster, node: Node) -> None:
    await until(lambda: same_everywhere(node))
    assert isinstance(node.engine, NatsEngine)
    target = (await host(node, "h4")).server
    cells = ["g1c0", "g1c1"]

    async def leaders() -> dict[str, str]:
        leading = (await look(node.engine)).leading
        return {
            stream: replica.leader
            for stream, replica in leading.items()
            if stream.startswith("g1c")
        }

    async def crowded() -> bool:
        found = await leaders()
        for cell in cells:
            if found.get(cell) != target:
                body = {"placement": {"preferred": target}}
                await api.call(node.engine.connection, f"STREAM.LEADER.STEPDOWN.{cell}", body, 2.0)  # type: ignore[attr-defined]
        return all(found.get(cell) == target for cell in cells)

    await until(crowded)
    await until(lambda: even(leaders))


async def even(leaders: Callable[[], object]) -> bool:
    found = await leaders()  # type: ignore[misc]
    return len(found) == 3 and len(set(found.values())) == 3


@pytest.mark.capability("D6")
async def test_from_three_to_five_and_back_under_load(
    cluster: LocalCluster, node: Node, load: Load
) -> None:
    await cluster.add_host("h5")
    await until(lambda: has_joined(node, "h5"))
    async with load.running():
        assert (await cohort.add(node, ["h3", "h5"], print)).members == [
            "h1",
            "h2",
            "h3",
            "h4",
            "h5",
        ]
        await until(lambda: same_everywhere(node))
        assert (await cohort.set_members(node, ["h1", "h4", "h5"], print)).members == [
            "h1",
            "h4",
            "h5",
        ]
        await until(lambda: same_everywhere(node))
    for name in ("h2", "h3"):
        await until(lambda name=name: has_joined(node, name))


async def test_the_commands_say_it(cluster: LocalCluster, node: Node) -> None:
    async def holdfast(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "holdfast.cli.main", *arguments, "--at", cluster.urls[0]]
        process = await asyncio.create_subprocess_exec(*command, stdout=-1, stderr=-2)
        printed, _ = await process.communicate()
        return process.returncode or 0, printed.decode()

    hosts, shown, removed = await asyncio.gather(
        holdfast("hosts", "--json"), holdfast("cohort", "show"), holdfast("remove", "h4")
    )
    code, printed = hosts
    assert code == 0, printed
    assert {one["name"]: one["state"] for one in json.loads(printed)} == {
        "h1": MEMBER, "h2": JOINED, "h3": JOINED, "h4": MEMBER, "h5": MEMBER,
    }  # fmt: skip
    code, printed = shown
    assert code == 0 and "h1, h4, h5 vote" in printed and "h2, h3 joined without a vote" in printed
    code, printed = removed
    assert code == 2 and "alive" in printed


async def test_without_a_majority_nothing_is_removed(cluster: LocalCluster, node: Node) -> None:
    await cluster.kill_host("h4")
    await cluster.kill_host("h5")
    await until(lambda: is_refused(node, "h4"))
    with pytest.raises(NoQuorum):
        await cohort.replace(node, "h4", "h2", print)


async def is_refused(node: Node, name: str) -> bool:
    """For want of a majority, once it is not taken for alive any more."""
    try:
        await cohort.remove(node, name, print)
    except NoQuorum:
        return True
    except ConfigError as error:
        assert "alive" in str(error)
        return False
    raise AssertionError("it was removed without a majority")


@pytest.mark.soak
@pytest.mark.timeout(1800)
async def test_hosts_come_and_go_for_a_while(cluster: LocalCluster, node: Node, load: Load) -> None:
    """Each round another host of five is lost and replaced by one of the others, under load."""
    for name in cluster.hosts:
        await cluster.start_host(name)
    names = sorted(cluster.hosts)
    async with load.running():
        for turn in range(10):
            await until(lambda: same_everywhere(node), 300)
            members = (await cohort.show(node)).members
            lost, spare = members[turn % 3], next(name for name in names if name not in members)
            await cluster.kill_host(lost)
            await until(lambda lost=lost: is_gone(node, lost))
            await cohort.replace(node, lost, spare, print)
            await cluster.start_host(lost)
            await until(lambda lost=lost: has_joined(node, lost), 300)


@pytest.mark.asyncio(loop_scope="function")
async def test_a_single_host_is_not_joined(tmp_path: Path) -> None:
    async with LocalCluster(tmp_path, hosts=1, nodes=0) as cluster:
        with pytest.raises(ConfigError, match="single host"):
            await cluster.add_host("h2")
