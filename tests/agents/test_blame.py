"""Which message is blamed when the process that had it in hand ended or stood still, and which is
not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec import field
from tests.agents.kinds import until

from holdfast import Agent, HandlerFailed, Node, Overloaded, State, codec, handler, limits, reader
from holdfast.agents.calls import Open
from holdfast.cluster.members.membership import Membership
from holdfast.cluster.members.standstills import Standstill, Standstills
from holdfast.cluster.ownership import ownership
from holdfast.records import agent_record
from holdfast.records.messages import ERROR, Call
from holdfast.serving.turns import attempts, poison
from holdfast.serving.turns.attempts import ANY_MESSAGE

DEADLY = codec.encode_raw(("deadly",))
runs: list[str] = []
ends = [asyncio.Event()]
"""The last one lets handlers end."""


class Done(State):
    names: list[str] = field(default_factory=list)


class Worker(Agent[Done]):
    @handler
    async def work(self, what: str) -> list[str]:
        runs.append(what)
        await ends[-1].wait()
        self.state.names.append(what)
        return self.state.names

    @handler
    async def later(self, what: str) -> None:
        self.set_timer("work", 0.0, Worker.work, what)

    @handler
    async def fail(self, what: str) -> None:
        runs.append(what)
        raise ValueError(what)

    @reader
    async def names(self) -> list[str]:
        return self.state.names

    @reader
    async def gaze(self, what: str) -> str:
        runs.append(what)
        await ends[-1].wait()
        return what


@pytest.fixture(autouse=True)
def fresh() -> None:
    runs.clear()
    ends.append(asyncio.Event())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


@asynccontextmanager
async def life(path: Path, ends: str = "in order") -> AsyncIterator[Node]:
    """One life of a node on the log. One that does not end in order leaves its claims behind, as a
    killed process does."""
    async with Node.join(f"local:{path}", serve=[Worker]) as node:
        await node.ready()
        yield node
        if ends != "in order":
            node._runtime.drop_shards(list(node._runtime.shards))


async def ran(what: str, times: int) -> None:
    async def there() -> bool:
        return runs.count(what) >= times

    await until(there)


async def lives(path: Path, what: str, *ends: str) -> AsyncIterator[Node]:
    """So many lives, in each of which the message that was sent in the first one runs, and how they
    end."""
    for number, end in enumerate(ends, 1):
        async with life(path, end) as node:
            if number == 1:
                await node.agent(Worker, "a").send(Worker.work, what)
            await ran(what, number)
            yield node


async def marks(node: Node, agent: str = "a") -> dict[str, int]:
    info = node.describe(f"Worker/{agent}")
    shard = node._runtime.shards[info.shard]
    stored = None
    # a newer record may have taken its place, which the loop hears of in one of its next turns
    while stored is None:
        await asyncio.sleep(0)
        stored = await node.engine.log.read_sequence(shard.cell, shard.index[f"Worker/{agent}"])
    return agent_record.decode(stored.payload, "").attempts


async def names(node: Node, agent: str = "a") -> list[str]:
    return await node.agent(Worker, agent).ask(Worker.names)


async def handled(node: Node, *expected: str, agent: str = "a") -> None:
    async def there() -> bool:
        return await names(node, agent) == list(expected)

    await until(there)


async def test_a_message_that_runs_through_stops_in_order_is_not_blamed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler of a minute, and a deploy each moment: what is given up at a stop was not begun."""
    monkeypatch.setattr(limits, "DRAIN_SECONDS", 0.2)
    async for _ in lives(path, "long", *["in order"] * 5):
        pass
    ends[-1].set()
    async with life(path) as node:
        await handled(node, "long")
        assert await node.dead_letters.all() == []
        assert await marks(node) == {}


async def test_a_stop_in_order_counts_for_nothing_between_two_ends(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ran behind the agent's mark, and behind its own; both times its owner let go of it."""
    monkeypatch.setattr(limits, "DRAIN_SECONDS", 0.2)
    async for _ in lives(path, "long", "killed", "in order", "killed", "in order", "in order"):
        pass
    ends[-1].set()
    async with life(path) as node:
        await handled(node, "long")
        assert await node.dead_letters.all() == []


@pytest.mark.parametrize("what", ["message", "timer"])
async def test_stops_in_order_between_its_ends_acquit_nobody(
    path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owners between let go of the shard before the message's turn came."""
    for times in range(1, 4):
        async with life(path, "killed") as node:
            if times == 1 and what == "timer":
                await node.agent(Worker, "a").ask(Worker.later, "deadly")
            elif times == 1:
                await node.agent(Worker, "a").send(Worker.work, "deadly")
            await ran("deadly", times)
        with monkeypatch.context() as patch:
            patch.setattr(poison, "start", lambda *_: None)
            async with life(path):
                pass
    async with life(path) as node:
        await given_up(node)
        assert [one.error for one in await node.dead_letters.all()] == [
            "this message ended 3 processes"
        ]
        assert runs.count("deadly") == 3


async def test_a_stop_in_order_is_known_to_whoever_comes_after_an_owner_that_wrote_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DRAIN_SECONDS", 0.2)
    async for _ in lives(path, "long", "killed", "killed", "in order"):
        pass
    with monkeypatch.context() as patch:
        patch.setattr(attempts, "_rewrite", lambda *_: None)
        patch.setattr(poison, "start", lambda *_: None)
        async with life(path, "killed"):
            pass
    ends[-1].set()
    async with life(path) as node:
        await handled(node, "long")
        assert await node.dead_letters.all() == []


async def test_a_stop_that_takes_all_its_time_blames_nobody(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody takes the shard over meanwhile, so it waits for the turn as long as it may, and then
    says that it let go."""
    monkeypatch.setattr(limits, "APPEND_TIMEOUT_SECONDS", 3.0)
    monkeypatch.setattr(ownership, "_DRAIN_SECONDS_MIN", 0.1)
    monkeypatch.setattr(limits, "DRAIN_SECONDS", 4.0)
    async for _ in lives(path, "long", *["in order"] * 3):
        pass
    async with life(path) as node:
        await ran("long", 4)
        ends[-1].set()
        await handled(node, "long")
        assert await marks(node) == {}


async def test_the_third_end_is_the_last_and_others_of_the_agent_are_handled(path: Path) -> None:
    for times in range(1, 4):
        async with life(path, "killed") as node:
            if times == 1:
                await node.agent(Worker, "a").send(Worker.work, "deadly")
                await node.agent(Worker, "a").send(Worker.work, "behind it")
            await ran("deadly", times)
    ends[-1].set()
    async with life(path) as node:
        await handled(node, "behind it")
        await given_up(node)
        assert [one.error for one in await node.dead_letters.all()] == [
            "this message ended 3 processes"
        ]
        assert runs.count("deadly") == 3


async def test_fresh_calls_of_its_agent_do_not_acquit_a_deadly_ask(path: Path) -> None:
    """Each owner handles some before its caller asks again."""
    given_up: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    for times in range(1, 5):
        async with life(path, "killed") as node:
            for shard in node._runtime.shards.values():
                shard.claimed_at += 60  # however long this test takes
            for _ in range(2):
                with pytest.raises(HandlerFailed):
                    await node.agent(Worker, "a").ask(Worker.fail, "fresh")
            deadline = time.time() + 60
            ask = Call(
                "Worker/a",
                "work",
                DEADLY,
                (7 << 16) | times,
                "elsewhere",
                7,
                7,
                deadline,
                interrupted=times > 1,
            )
            node._runtime.intake.take(
                ask, lambda _, outcome, payload: outcome == ERROR and given_up.set_result(payload)
            )
            if times < 4:
                await ran("deadly", times)
            else:
                async with asyncio.timeout(240):
                    assert b"this message ended 3 processes" in await given_up
    assert runs.count("deadly") == 3


async def test_a_mark_of_an_agent_goes_when_its_suspects_had_their_time(path: Path) -> None:
    async for _ in lives(path, "long", *["killed"] * 2):
        pass
    ends[-1].set()
    async with life(path) as node:
        await handled(node, "long")
        assert list(await marks(node)) == [ANY_MESSAGE]
        shard = node._runtime.shards[node.describe("Worker/a").shard]
        shard.claimed_at += 60  # however long this test takes
        await node.agent(Worker, "a").ask(Worker.work, "soon")
        assert list(await marks(node)) == [ANY_MESSAGE]
        shard.claimed_at -= 60 + 2 * limits.ATTEMPT_SECONDS
        await node.agent(Worker, "a").ask(Worker.work, "later")
        assert await marks(node) == {}


async def test_who_was_killed_by_somebody_is_tried_again_and_not_for_ever(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Standstills, "was_killed", lambda *_: True)
    most = 2 + limits.ALONE_ENDS_MAX
    async for _ in lives(path, "long", *["killed"] * most):
        pass
    async with life(path) as node:
        await given_up(node)
        assert await names(node) == []
        assert len(await node.dead_letters.all()) == 1
        assert runs.count("long") == most


async def given_up(node: Node) -> None:
    async def there() -> bool:
        return bool(await node.dead_letters.all())

    await until(there)


async def heard(node: Node, key: str, ended: bool = True) -> None:
    owner = f"n-{len(runs)}"
    still = Standstill(owner, 5.34, "Worker/a", key, "app.py:36 (spin)", ended=ended)
    node._runtime.standstills.note([still], [])


async def test_what_stood_still_runs_once_more_alone_behind_a_mark_that_says_why(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node_hears: list[Standstill] = []
    note = Standstills.__init__

    def told(self: Standstills, *given: Any) -> None:
        note(self, *given)
        self.note(node_hears, [])

    monkeypatch.setattr(Standstills, "__init__", told)
    async with life(path, "killed") as node:
        await node.agent(Worker, "a").send(Worker.work, "still")
        await node.agent(Worker, "b").send(Worker.work, "innocent")
        await ran("still", 1)
        await ran("innocent", 1)
        running = [
            a for s in node._runtime.shards.values() for a in s.activations.values() if a.running
        ]
        key = next(
            a.running.key for a in running if a.token == "Worker/a" and a.running is not None
        )
        node_hears.append(
            Standstill(node.incarnation, 5.34, "Worker/a", key, "app.py:36 (spin)", ended=True)
        )
    async with life(path, "killed") as node:
        await ran("still", 2)
        found = await marks(node)
        assert (
            attempts.why(found, attempts.name_of(key))
            == "stood still for 5.3 s in app.py:36 (spin)"
        )
        assert ANY_MESSAGE not in found
    node_hears.clear()  # the word is lost: what the log says is enough
    ends[-1].set()
    async with life(path) as node:
        await given_up(node)
        (letter,) = await node.dead_letters.all()
        assert letter.error == "stood still for 5.3 s in app.py:36 (spin)"
        assert runs.count("still") == 2
        assert await names(node) == []
        await handled(node, "innocent", agent="b")


@pytest.fixture
def hears(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[Standstill], list[str]]]:
    """What each node hears, from its first moment on: beats of a host."""
    beats: list[tuple[list[Standstill], list[str]]] = []
    make = Standstills.__init__

    def told(self: Standstills, *given: Any) -> None:
        make(self, *given)
        for still, killed in beats:
            self.note(still, killed)

    monkeypatch.setattr(Standstills, "__init__", told)
    return beats


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Processes of nodes that are there, as their hosts say."""
    living: list[str] = []
    monkeypatch.setattr(Membership, "_is_there", lambda _, incarnation: incarnation in living)
    return living


def key_in_hand(node: Node) -> str:
    running = [
        a.running
        for s in node._runtime.shards.values()
        for a in s.activations.values()
        if a.running
    ]
    return running[0].key


async def test_who_was_killed_amid_a_block_is_blamed_no_sooner(
    path: Path, hears: list[tuple[list[Standstill], list[str]]]
) -> None:
    most = 2 + limits.ALONE_ENDS_MAX
    async for node in lives(path, "slow", *["killed"] * most):
        still = Standstill(node.incarnation, 1.4, "Worker/a", key_in_hand(node), "app.py:1 (f)")
        hears[:] = [([still], []), ([], [node.incarnation])]
    async with life(path) as node:
        await given_up(node)
        assert [one.error for one in await node.dead_letters.all()] == [
            "this message ended 3 processes"
        ]


async def test_a_block_that_ended_nothing_excuses_nobody(
    path: Path, hears: list[tuple[list[Standstill], list[str]]]
) -> None:
    async for node in lives(path, "deadly", *["killed"] * 3):
        hears[:] = [([Standstill(node.incarnation, 1.2, "Worker/other", "k", "app.py:1 (f)")], [])]
    async with life(path) as node:
        await given_up(node)
        assert runs.count("deadly") == 3


async def two_end_before_they_judge(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(poison, "start", lambda *_: None)
        for _ in range(2):
            async with life(path, "killed"):
                pass


async def test_an_end_is_excused_behind_owners_that_ended_before_they_could_say_so(
    path: Path, hears: list[tuple[list[Standstill], list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their hosts' words are there; only the next two owners end before they commit anything."""
    async for node in lives(path, "innocent", *["killed"] * 3):
        other = Standstill(node.incarnation, 5.1, "Worker/other", "k", "app.py:1 (f)", ended=True)
    await two_end_before_they_judge(path, monkeypatch)
    hears[:] = [([other], [])]
    async with life(path) as node:
        await ran("innocent", 4)
        ends[-1].set()
        await handled(node, "innocent")
        assert await node.dead_letters.all() == []


async def test_it_is_said_how_a_message_stood_still_though_owners_since_then_ended_early(
    path: Path, hears: list[tuple[list[Standstill], list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its node could not name the message: only the function that ran is known."""
    async for node in lives(path, "holds the interpreter", *["killed"] * 3):
        held = Standstill(
            node.incarnation, 5.1, where="app.py:1 (work)", functions=("work",), ended=True
        )
    await two_end_before_they_judge(path, monkeypatch)
    hears[:] = [([held], [])]
    async with life(path) as node:
        await given_up(node)
        assert [one.error for one in await node.dead_letters.all()] == [held.text]


async def test_what_stood_still_long_ago_accuses_nobody_later(
    path: Path, hears: list[tuple[list[Standstill], list[str]]]
) -> None:
    """Its host says so for as long as it runs; which message it was is not known, only the
    function."""
    async with life(path, "killed") as node:
        await node.agent(Worker, "a").send(Worker.work, "first")
        await ran("first", 1)
        hears[:] = [([Standstill(node.incarnation, 5.1, functions=("work",), ended=True)], [])]
    ends[-1].set()
    async with life(path) as node:
        await handled(node, "first")
    ends.append(asyncio.Event())
    async for node in lives(path, "innocent", "killed"):
        before = await marks(node)
    async with life(path, "killed") as node:
        await ran("innocent", 2)
        assert ANY_MESSAGE in await marks(node) and ANY_MESSAGE not in before
    async with life(path) as node:
        await ran("innocent", 3)
        found = await marks(node)
        assert not any(attempts.why(found, name) for name in found)
        ends[-1].set()
        await handled(node, "first", "innocent")


@pytest.mark.parametrize("named", [False, True])
async def test_nobody_is_given_up_before_the_last_word_on_what_stood_still(
    path: Path, there: list[str], named: bool
) -> None:
    """The shard is taken over after 4 s, and the node is ended after 5: meanwhile its host may
    still name the cause."""
    async for node in lives(path, "innocent", *["killed"] * 3):
        other = Standstill(node.incarnation, 4.2, "Worker/other", "k", "app.py:1 (f)")
    there[:] = [other.incarnation]
    async with life(path) as node:
        heard = node._runtime.standstills
        for _ in range(10):
            heard.note([other] if named else [], [])
            await asyncio.sleep(0.05)
            assert await node.dead_letters.all() == [] and runs.count("innocent") == 3
        heard.note(
            [Standstill(other.incarnation, 5.1, "Worker/other", "k", "app.py:1 (f)", ended=True)],
            [],
        )
        there.clear()
        await ran("innocent", 4)
        ends[-1].set()
        await handled(node, "innocent")
        assert await node.dead_letters.all() == []


async def test_who_goes_on_after_it_lost_a_shard_has_not_ended(
    path: Path, there: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was not heard for a while, as its machine was busy; what ran alone there is not blamed for
    that."""
    async for node in lives(path, "innocent", *["killed"] * 3):
        there[:] = [node.incarnation]
    monkeypatch.setattr(Membership, "_goes_on", lambda _, incarnation: incarnation in there)
    async with life(path) as node:
        await ran("innocent", 4)
        ends[-1].set()
        await handled(node, "innocent")
        assert await node.dead_letters.all() == []


@pytest.mark.parametrize("long_before", [False, True])
async def test_what_blocked_a_node_when_it_lost_its_shard_is_blamed_though_it_goes_on(
    path: Path, there: list[str], monkeypatch: pytest.MonkeyPatch, long_before: bool
) -> None:
    """Its host says no more that it stands still once it goes on. A block that was over by then is
    none."""
    monkeypatch.setattr(poison, "_BEFORE_SECONDS", -60.0 if long_before else 1.6)
    async for node in lives(path, "blocks", *["killed"] * 3):
        blocks = Standstill(node.incarnation, 4.2, "Worker/a", key_in_hand(node), "app.py:1 (work)")
        there[:] = [node.incarnation]
    async with life(path) as node:
        heard = node._runtime.standstills
        for _ in range(10):
            heard.note([blocks], [])
            await asyncio.sleep(0.05)
        assert await node.dead_letters.all() == []
        monkeypatch.setattr(heard, "goes_on", lambda incarnation: incarnation in there)
        heard.note([], [])
        if long_before:
            await ran("blocks", 4)
            ends[-1].set()
            await handled(node, "blocks")
        else:
            await given_up(node)
        assert [one.error for one in await node.dead_letters.all()] == (
            [] if long_before else [blocks.text]
        )


async def test_a_word_that_is_false_costs_an_innocent_message_nothing_but_care(path: Path) -> None:
    async with life(path) as node:
        for number in range(3):
            agent = node.agent(Worker, "a").options(message_id=f"m{number}")
            await heard(node, f"m{number}")
            ends[-1].set()
            assert len(await agent.ask(Worker.work, f"w{number}")) == number + 1
        assert await marks(node) == {}


async def test_a_message_that_fails_alone_is_tried_again_and_not_blamed(path: Path) -> None:
    """Its own mark, of this very process, is no end."""
    async with life(path, "killed") as node:
        await node.agent(Worker, "a").send(Worker.work, "first")
        await ran("first", 1)
    async with life(path, "killed") as node:
        await ran("first", 2)
        await node.agent(Worker, "a").send(Worker.fail, "fails")
    ends[-1].set()
    async with life(path) as node:
        await handled(node, "first")
        await given_up(node)
        assert [one.kind_of_error for one in await node.dead_letters.all()] == ["ValueError"]
        assert runs.count("fails") == limits.ATTEMPTS_MAX
        node._runtime.shards[node.describe("Worker/a").shard].claimed_at -= (
            2 * limits.ATTEMPT_SECONDS
        )
        await node.agent(Worker, "a").ask(Worker.work, "new")
        assert await marks(node) == {}


async def test_a_reader_that_is_suspect_runs_behind_a_mark_and_leaves_none(path: Path) -> None:
    async with life(path, "killed") as node:
        await names(node)
    async with life(path) as node:
        ends[-1].set()
        await node.agent(Worker, "a").ask(Worker.work, "first")
        send = node._router._send

        def suspected(opened: object) -> None:
            opened.call.interrupted = True  # type: ignore[attr-defined]
            send(opened)  # type: ignore[arg-type]

        node._router._send = suspected  # type: ignore[method-assign,assignment]
        assert await asyncio.gather(
            *(node.agent(Worker, "a").ask(Worker.gaze, f"r{n}") for n in range(5))
        ) == [f"r{n}" for n in range(5)]

        async def unmarked() -> bool:
            return await marks(node) == {}

        await until(unmarked)
        shard = node._runtime.shards[node.describe("Worker/a").shard]
        activation = shard.activations["Worker/a"]
        # As it is found after two ends behind the mark of the very call.
        key = f"{node._router.caller}?{node._router._number + 1}"
        activation.attempts = {attempts.name_of(key): attempts.value(1, 1)}
        with pytest.raises(HandlerFailed, match="ended 3 processes") as failed:
            await node.agent(Worker, "a").ask(Worker.gaze, "deadly")
        assert "deadly" not in runs and failed.value.kind_of_error == ""


def asked_again(node: Node) -> None:
    """As the router does it where an attempt was not answered in its time."""
    for opened in list(node._router._open.values()):
        opened.call.interrupted = True
        node._router._send(opened)


@pytest.mark.parametrize("first", ["in order", "killed"])
@pytest.mark.parametrize("commits", [False, True])
async def test_further_attempts_of_a_reader_that_lasts_join_it_and_hold_nobody_up(
    path: Path, first: str, commits: bool
) -> None:
    async with life(path, first) as node:
        await node.agent(Worker, "a").ask(Worker.names)
    async with life(path) as node:
        agent = node.agent(Worker, "a")
        lasting = asyncio.create_task(agent.options(fresh=commits).ask(Worker.gaze, "slow"))
        await ran("slow", 1)
        for times in range(3):
            asked_again(node)
            with pytest.raises(HandlerFailed):
                await agent.ask(Worker.fail, f"meanwhile {times}")
        assert runs.count("slow") == 1 and not lasting.done()
        ends[-1].set()
        assert await lasting == "slow"
        shard = node._runtime.shards[node.describe("Worker/a").shard]
        assert not shard.activations["Worker/a"].readers


async def test_a_reader_that_may_have_ended_a_process_is_refused_where_too_many_wait(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with life(path, "killed") as node:
        await node.agent(Worker, "a").ask(Worker.names)
    async with life(path) as node:
        agent = node.agent(Worker, "a")
        working = asyncio.create_task(agent.ask(Worker.work, "first"))
        await ran("first", 1)
        shard = node._runtime.shards[node.describe("Worker/a").shard]
        monkeypatch.setattr(shard.activations["Worker/a"].kind, "mailbox_max", 3)
        send = node._router._send

        def suspected(opened: Open) -> None:
            opened.call.interrupted = True
            send(opened)

        monkeypatch.setattr(node._router, "_send", suspected)
        asking = [asyncio.create_task(agent.ask(Worker.gaze, f"r{number}")) for number in range(5)]
        done, _ = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
        assert isinstance(done.pop().exception(), Overloaded)
        ends[-1].set()
        found = await asyncio.gather(*asking, return_exceptions=True)
        assert [one for one in found if not isinstance(one, Overloaded)] == ["r0", "r1", "r2"]
        await working


def test_marks_by_names_that_look_like_others() -> None:
    for key in ("*", "!x", "=", "plain", "in:7"):
        found: dict[str, int] = {}
        attempts.put(found, ANY_MESSAGE, 5, 1)
        attempts.put(found, attempts.name_of(key), 9, 2, "it stood still")
        assert attempts.why(found, attempts.name_of(key)) == "it stood still"
        assert attempts.ends(found, attempts.name_of(key), epoch=11) == 2
        assert attempts.ends(found, attempts.name_of(key), epoch=9) == 1
        attempts.forget(found, attempts.name_of(key))
        assert list(found) == [ANY_MESSAGE]


def test_marks_make_room_for_newer_ones() -> None:
    found: dict[str, int] = {}
    attempts.put(found, ANY_MESSAGE, 5, 1)
    for number in range(100):
        attempts.put(found, f"m{number}", 5, 1, f"why {number}")
    assert ANY_MESSAGE in found and attempts.why(found, "m99") == "why 99"
    assert len(found) == 2 * limits.ATTEMPT_MARKS_MAX + 1


async def test_what_is_heard_has_a_bound_and_lasts_no_longer_than_it_is_said() -> None:
    known = Standstills()
    for number in range(2 * limits.STANDSTILLS_MAX):
        known.note(
            [Standstill(f"n-{number}", 6.0, f"K/{number}", f"m{number}", ended=True)],
            [f"n-{number}"],
        )
    assert (
        known.of("n-0") is None and known.named("K/0", "m0") is None and not known.was_killed("n-0")
    )
    assert known.of("n-300") is not None and known.was_killed("n-300~2")
    assert not known.under_way()
    known.note([Standstill("n-x", 1.5)], [])
    assert known.under_way()
    known.note([Standstill("n-x", 6.0, ended=True)], [])
    assert not known.under_way()
    assert known.rests("K/load") is None
    known.note([Standstill("n-y", 2.0, "K/load")], [])
    assert known.rests("K/load") is not None and known.named("K/load", "") is None


async def test_what_is_heard_is_forgotten_when_its_host_says_it_no_more() -> None:
    known = Standstills()
    blocks, loads = Standstill("n-a", 1.2, "K/a", "m"), Standstill("n-b", 1.2, "K/load")
    known.note([blocks, loads], [], "here")
    known.note([], [], "there")
    assert known.names and known.rests("K/load") is not None and known.stands("n-a")
    known.note([Standstill("n-a", 1.2, "K/a", "next")], [], "here")
    assert list(known.names) == [("K/a", "next")] and known.rests("K/load") is None
    known.note([], [], "here")
    assert not known.names and known.of("n-a") is None and not known.under_way()
    known.note(
        [
            Standstill("n-a", 5.1, "K/a", "m", ended=True),
            Standstill("n-b", 5.1, "K/load", ended=True),
        ],
        [],
        "here",
    )
    known.note([], [], "here")
    assert known.named("K/a", "m") is not None and known.rests("K/load") is not None


async def test_a_host_that_says_more_than_is_remembered_does_no_harm() -> None:
    known = Standstills()
    known.note([Standstill("n-a", 1.6)], [], "here")
    others = [Standstill(f"n-{number}", 1.6) for number in range(limits.STANDSTILLS_MAX)]
    known.note([*others, Standstill("n-a", 2.0)], [], "here")
    known.note([], [], "there")
    assert known.stands("n-a")
    known.note([], [], "here")
    assert not known.under_way()
