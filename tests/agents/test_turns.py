"""A turn is committed whole, before anybody learns of it; what goes wrong in one leaves nothing
behind."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import Context
from pathlib import Path

import pytest
from tests.agents.kinds import Append, Count, Counter, Fault, Gate, serving, until

from holdfast import (
    Agent,
    BadMessage,
    BadState,
    HandlerFailed,
    Node,
    NotDone,
    ReplayMismatch,
    TooLarge,
    UnknownKind,
    handler,
    limits,
)
from holdfast.agents import guard, places
from holdfast.engines.base import Record
from holdfast.records.messages import Call
from holdfast.serving.delivery import from_call
from holdfast.serving.turns import reading


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


async def test_state_is_there_after_a_restart(path: Path) -> None:
    async with serving(path) as node:
        for name in ("a", "b", "ä/ö. *>", "日本"):
            assert await node.agent(Counter, name).ask(Counter.add, len(name)) == len(name)
    async with serving(path) as node:
        for name in ("a", "b", "ä/ö. *>", "日本"):
            assert await node.agent(Counter, name).ask(Counter.value) == len(name)
        assert await node.agent(Counter, "never").ask(Counter.value) == 0


async def test_a_reply_waits_for_the_acknowledgement(path: Path) -> None:
    async with serving(path) as node:
        agent = node.agent(Counter, "a")
        await agent.ask(Counter.add, 1)
        gate = Gate(node)
        asking = asyncio.create_task(agent.ask(Counter.add, 1))
        await until(lambda: reached(gate))
        assert not asking.done()
        assert await agent.ask(Counter.value) == 1, "a reader saw what was not committed"
        gate.open.set()
        assert await asking == 2
        assert await agent.ask(Counter.value) == 2


async def test_a_reply_waits_for_every_commit_that_its_turn_could_see(path: Path) -> None:
    async with serving(path) as node:
        agent = node.agent(Counter, "a")
        gate = Gate(node)
        adding = asyncio.create_task(agent.ask(Counter.add, 1))
        await asyncio.sleep(0.05)
        looking = asyncio.create_task(agent.ask(Counter.look))
        breaking = asyncio.create_task(agent.ask(Counter.break_after, 1))
        await asyncio.sleep(0.05)
        assert not looking.done() and not breaking.done() and not adding.done()
        gate.open.set()
        assert (await adding, await looking) == (1, 1)
        with pytest.raises(HandlerFailed):
            await breaking


async def test_turns_collapse_into_few_records(path: Path) -> None:
    async with serving(path) as node:
        agent = node.agent(Counter, "hot")
        before = node.statistics()["records"]
        replies = await asyncio.gather(*(agent.ask(Counter.add, 1) for _ in range(1000)))
        assert sorted(replies) == list(range(1, 1001))
        assert node.statistics()["turns"] >= 1000
        assert node.statistics()["records"] - before < 100


async def test_one_turn_at_a_time_per_agent_and_agents_side_by_side(path: Path) -> None:
    async with serving(path) as node:
        loop = asyncio.get_running_loop()
        started = loop.time()
        one = node.agent(Counter, "one")
        assert await asyncio.gather(*(one.ask(Counter.slow, 0.05) for _ in range(4))) == [
            1,
            2,
            3,
            4,
        ]
        assert loop.time() - started >= 0.2
        everybody = asyncio.Barrier(50)

        class Meeting(Agent[None]):
            @handler
            async def meet(self) -> None:
                await everybody.wait()

    async with serving(path, Meeting) as node:
        await asyncio.gather(
            *(node.agent(Meeting, f"many-{n}").ask(Meeting.meet) for n in range(50))
        )


async def test_an_exception_leaves_the_state_as_before(path: Path) -> None:
    async with serving(path) as node:
        agent = node.agent(Counter, "a")
        await agent.ask(Counter.add, 1)
        await agent.ask(Counter.note, "kept")
        with pytest.raises(HandlerFailed, match="broken after 5") as caught:
            await agent.ask(Counter.break_after, 5)
        assert caught.value.kind_of_error == "ValueError"
        assert "break_after" in caught.value.details
        assert await agent.ask(Counter.value) == 1
        assert await agent.ask(Counter.texts) == ["kept"]
        assert await agent.ask(Counter.add, 1) == 2
    async with serving(path) as node:
        assert await node.agent(Counter, "a").ask(Counter.texts) == ["kept"]


async def test_a_state_that_does_not_fit_names_the_field(path: Path) -> None:
    async with serving(path) as node:
        agent = node.agent(Counter, "a")
        await agent.ask(Counter.add, 1)
        with pytest.raises(BadState, match=r"\$\.n"):
            await agent.ask(Counter.spoil, "text")
        with pytest.raises(BadState):
            await agent.ask(Counter.spoil, [1])
        assert await agent.ask(Counter.add, 1) == 2


async def test_a_reply_too_large_is_refused_and_undone(path: Path) -> None:
    async with serving(path) as node:
        agent = node.agent(Counter, "a")
        with pytest.raises(TooLarge, match="long_reply"):
            await agent.ask(Counter.long_reply, limits.REPLY_BYTES_MAX + 1)
        assert await agent.ask(Counter.value) == 0
        assert (
            len(await agent.ask(Counter.long_reply, limits.REPLY_BYTES_MAX - 10))
            == limits.REPLY_BYTES_MAX - 10
        )


async def test_arguments_are_checked_with_the_name_of_the_field(path: Path) -> None:
    async with serving(path) as node:
        agent = node.agent(Counter, "a")
        with pytest.raises(BadMessage, match=r"\$\.by"):
            await agent.ask(Counter.add, "one")  # type: ignore[arg-type]
        with pytest.raises(BadMessage, match="by"):
            await agent.send(Counter.add, "one")  # type: ignore[arg-type]
        with pytest.raises(BadMessage):
            await agent.ask(Counter.add, 1, 2, 3)  # type: ignore[call-arg]
        with pytest.raises(BadMessage):
            await agent.ask(Counter.add, other=1)  # type: ignore[call-arg]
        with pytest.raises(BadMessage):
            await agent.ask(Counter.add, object())  # type: ignore[arg-type]
        with pytest.raises(TooLarge):
            await agent.ask(Counter.note, "x" * (limits.MESSAGE_BYTES_MAX + 1))
        assert await agent.ask(Counter.value) == 0


async def test_who_asks_readers_of_this_process_in_a_row_leaves_the_loop_to_others(
    path: Path,
) -> None:
    async with serving(path) as node:
        agent = node.agent(Counter, "a")
        await agent.ask(Counter.add, 1)
        rounds = 0

        async def others() -> None:
            nonlocal rounds
            while True:
                await asyncio.sleep(0)
                rounds += 1

        running = asyncio.create_task(others())
        for _ in range(800):
            assert await agent.ask(Counter.value) == 1
        assert rounds >= 90
        rounds = 0
        for _ in range(100):
            assert await node.ask_by_name("Counter/a", "value") == 1
        running.cancel()
        assert rounds >= 90


async def test_a_reader_cannot_write(path: Path) -> None:
    async with serving(path) as node:
        agent = node.agent(Counter, "a")
        with pytest.raises(HandlerFailed, match="immutable"):
            await agent.ask(Counter.sneak)
        for write in (agent.send, agent.tell):
            with pytest.raises(BadMessage, match="reader"):
                result = write(Counter.value)  # type: ignore[operator]
                if result is not None:
                    await result
        assert await agent.ask(Counter.value) == 0


async def test_a_kind_that_nobody_serves(path: Path) -> None:
    async with serving(path) as node:
        with pytest.raises(UnknownKind, match="Nothing"):
            await node.ask_by_name("Nothing/a", "x")
        with pytest.raises(UnknownKind, match="nothing"):
            await node.ask_by_name("Counter/a", "nothing")


async def test_by_names_alone(path: Path) -> None:
    async with serving(path) as node:
        assert await node.ask_by_name("Counter/a", "add", [2]) == 2
        assert await node.ask_by_name("Counter/a", "add", {"by": 3}) == 5
        assert await node.ask_by_name("Counter/a", "value") == 5
        with pytest.raises(BadMessage, match="by"):
            await node.ask_by_name("Counter/a", "add", {"by": "x"})
        with pytest.raises(BadMessage):
            await node.ask_by_name("Counter/a", "add", {"of": 1})


async def test_one_turn_that_the_log_refuses_harms_no_other(path: Path) -> None:
    async with serving(path) as node:

        async def refuse(real: Append, cell: str, records: Sequence[Record]) -> range:
            if any(b"poison" in record.payload for record in records):
                raise TooLarge("this one is too large")
            return await real(cell, records)

        gate = Gate(node)
        fault = Fault(node, ".st.", refuse)
        others = [
            asyncio.create_task(node.agent(Counter, f"o{n}").ask(Counter.add, 1))
            for n in range(100)
        ]
        guilty = node.agent(Counter, "guilty")
        before = asyncio.create_task(guilty.ask(Counter.note, "fine"))
        bad = asyncio.create_task(guilty.ask(Counter.note, "poison"))
        after = asyncio.create_task(guilty.ask(Counter.note, "later"))
        await asyncio.sleep(0.05)
        gate.open.set()
        assert await asyncio.gather(*others) == [1] * 100
        assert await before == ["fine"]
        with pytest.raises(TooLarge):
            await bad
        assert await after == ["fine", "later"]
        assert await guilty.ask(Counter.texts) == ["fine", "later"]
        assert fault.times > 1


async def test_without_a_quorum_turns_are_undone_and_their_callers_told(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from holdfast.errors import NoQuorum

    monkeypatch.setattr(limits, "QUORUM_WAIT_SECONDS", 0.3)
    # of a second attempt nobody knows what became
    monkeypatch.setattr(limits, "ATTEMPT_SECONDS", 1000.0)
    async with serving(path) as node:
        agent = node.agent(Counter, "a")
        await agent.ask(Counter.add, 1)
        broken = True

        async def refuse(real: Append, cell: str, records: Sequence[Record]) -> range:
            if broken:
                raise NoQuorum("no majority")
            return await real(cell, records)

        Fault(node, ".st.", refuse)
        with pytest.raises(NotDone):
            await agent.ask(Counter.add, 1)
        broken = False
        assert await agent.ask(Counter.add, 1) == 2


async def reached(gate: Gate) -> bool:
    return gate.waiting == 1


async def waits_to_be_written(node: Node, agent_id: str) -> bool:
    found = [shard.activations.get(agent_id) for shard in node._runtime.shards.values()]
    return any(activation is not None and activation.pending for activation in found)


class Steps:
    """Lets the batches that hold one agent's record through, one by one."""

    def __init__(self, node: Node, agent_id: str) -> None:
        self._let = asyncio.Semaphore(0)
        self.fault = Fault(node, f".st.{agent_id}", self._hold)

    async def _hold(self, real: Append, cell: str, records: Sequence[Record]) -> range:
        await self._let.acquire()
        return await real(cell, records)

    def let(self, count: int = 1) -> None:
        for _ in range(count):
            self._let.release()


async def happened(steps: Steps, times: int) -> bool:
    return steps.fault.times == times


async def test_a_reader_between_two_commits_sees_the_first(path: Path) -> None:
    async with serving(path) as node:
        agent = node.agent(Counter, "a")
        steps = Steps(node, "Counter/a")
        first = asyncio.create_task(agent.ask(Counter.add, 1))
        await until(lambda: happened(steps, 1))
        second = asyncio.create_task(agent.ask(Counter.add, 1))
        await until(lambda: waits_to_be_written(node, "Counter/a"))
        assert await agent.ask(Counter.value) == 0
        steps.let()
        assert await first == 1
        await asyncio.sleep(0.05)
        assert not second.done()
        assert await agent.ask(Counter.value) == 1
        fresh = asyncio.create_task(agent.options(fresh=True).ask(Counter.value))
        await asyncio.sleep(0.05)
        assert not fresh.done()
        steps.let(9)
        assert await second == 2
        assert await fresh == 2
        assert await agent.ask(Counter.value) == 2


async def test_an_answer_from_memory_waits_for_the_commit_of_what_it_says(path: Path) -> None:
    async with serving(path) as node:
        agent = node.agent(Counter, "a").options(message_id="same")
        steps = Steps(node, "Counter/a")
        await agent.send(Counter.add, 5)
        await until(lambda: happened(steps, 1))
        asking = asyncio.create_task(agent.ask(Counter.add, 5))
        wrong = asyncio.create_task(agent.ask(Counter.add, 6))
        await asyncio.sleep(0.1)
        assert not asking.done()
        steps.let(9)
        assert await asking == 5
        with pytest.raises(ReplayMismatch):
            await wrong


class Hopping(Agent[Count]):
    @handler
    async def hop(self, left: int) -> int:
        self.state.n += 1
        if left:
            self.agent(Hopping, f"h{left - 1}").tell(Hopping.hop, left - 1)
        return left


async def test_a_long_chain_of_tells_on_one_node_comes_to_its_end(path: Path) -> None:
    async with serving(path, Hopping) as node:
        await asyncio.gather(
            *(node.agent(Hopping, f"h{place}").ask(Hopping.hop, 0) for place in range(400))
        )
        await node.agent(Hopping, "h400").ask(Hopping.hop, 400)
        resident = node._runtime.resident

        async def at_the_end() -> bool:
            return resident["Hopping/h0"].state.n == 2

        await until(at_the_end)
        assert [token for token, one in resident.items() if one.running is not None] == []


async def test_an_agent_whose_error_cannot_be_described_goes_on(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_stack(error: BaseException) -> str:
        raise RecursionError

    async with serving(path) as node:
        agent = node.agent(Counter, "a")
        await agent.ask(Counter.add, 1)
        with monkeypatch.context() as patch:
            patch.setattr(places, "of", no_stack)
            with pytest.raises(HandlerFailed, match="ValueError"):
                await agent.ask(Counter.break_after, 1)
        assert await agent.ask(Counter.add, 1) == 2


async def test_a_plain_read_enters_code_of_users_twice(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its state is made, and it runs: plain arguments and replies hold no code."""
    made: list[Context] = []

    def fresh() -> Context:
        made.append(Context())
        return made[-1]

    async with serving(path) as node:
        agent = node.agent(Counter, "a")
        await agent.ask(Counter.add, 3)
        activation = node._runtime.resident["Counter/a"]
        answers: list[bytes] = []
        call = Call("Counter/a", "value", b"\x90", 1, "p-elsewhere")
        monkeypatch.setattr(guard, "fresh", fresh)
        reading.read(
            activation,
            from_call(call, lambda _reference, _outcome, payload: answers.append(payload)),
        )
        monkeypatch.undo()
        assert answers == [b"\x03"]
        assert len(made) == 2
