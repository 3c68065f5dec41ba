"""A message has one effect and one answer, however often it comes, before and after a failover."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.agents.kinds import Append, Count, Counter, Fault, Later, may_end, serving, until

from holdfast import (
    Agent,
    Conflict,
    DeadlineExceeded,
    HandlerFailed,
    Node,
    NoQuorum,
    OutcomeUnknown,
    Overloaded,
    ReplayMismatch,
    State,
    Unknown,
    WouldDeadlock,
    handler,
    limits,
)
from holdfast.engines.base import Expect, Record
from holdfast.records.messages import WAITS, Call


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


async def deliver(node: Node, call: Call) -> tuple[int, Any]:
    """Put a call into the node as one that came from elsewhere; return (outcome, reply or error's
    name)."""
    answered: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()

    def take(_reference: int, outcome: int, payload: bytes) -> None:
        if outcome != WAITS:  # which is said of an attempt that joins another, and is no answer
            answered.set_result((outcome, payload))

    node._runtime.intake.take(call, take)
    async with asyncio.timeout(240):
        outcome, payload = await answered
    value = msgspec.msgpack.decode(payload) if payload else None
    return outcome, value[0] if outcome == 1 else value


def add(number: int, low: int, seconds: float = 30.0, caller: str = "p-elsewhere") -> Call:

    return Call(
        "Counter/a",
        "add",
        msgspec.msgpack.encode([1]),
        1,
        caller,
        number,
        low,
        time.time() + seconds,
    )


async def test_a_retried_ask_gets_the_first_answer(path: Path) -> None:
    async with serving(path) as node:
        assert await deliver(node, add(1, 1)) == (0, 1)
        assert await deliver(node, add(2, 1)) == (0, 2)
        assert await deliver(node, add(1, 1)) == (0, 1)
    async with serving(path) as node:  # also from the record, after a restart
        assert await deliver(node, add(2, 1)) == (0, 2)
        assert await deliver(node, add(1, 1)) == (0, 1)
        assert await node.agent(Counter, "a").ask(Counter.value) == 2


async def test_two_attempts_in_hand_are_one(path: Path) -> None:
    async with serving(path) as node:
        answers = await asyncio.gather(deliver(node, add(1, 1)), return_exceptions=True)
        first = asyncio.create_task(
            deliver(
                node,
                msgspec.structs.replace(
                    add(5, 5), handler="slow", arguments=b"\x91\xcb?\xb9\x99\x99\x99\x99\x99\x9a"
                ),
            )
        )
        await asyncio.sleep(0.02)
        again = msgspec.structs.replace(
            add(5, 5), handler="slow", arguments=b"\x91\xcb?\xb9\x99\x99\x99\x99\x99\x9a"
        )
        assert await deliver(node, again) == (0, 2)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert answers == [(0, 1)]
        assert await node.agent(Counter, "a").ask(Counter.value) == 2


async def test_below_the_lowest_open_number_nothing_runs(path: Path) -> None:
    async with serving(path) as node:
        assert await deliver(node, add(1, 1)) == (0, 1)
        assert await deliver(node, add(3, 3)) == (0, 2)
        assert await deliver(node, add(1, 1)) == (1, "OutcomeUnknown")
        assert await deliver(node, add(2, 1)) == (1, "OutcomeUnknown")
        assert await node.agent(Counter, "a").ask(Counter.value) == 2


async def test_past_its_deadline_nothing_starts(path: Path) -> None:
    async with serving(path) as node:
        assert await deliver(node, add(1, 1, seconds=-0.01)) == (1, "DeadlineExceeded")
        assert await node.agent(Counter, "a").ask(Counter.value) == 0
        agent = node.agent(Counter, "a")
        slow = asyncio.create_task(agent.ask(Counter.wait))
        await asyncio.sleep(0.05)
        with pytest.raises((DeadlineExceeded, OutcomeUnknown)):
            await agent.options(timeout_seconds=0.1).ask(Counter.add, 10)
        may_end().set()
        assert await slow == 1
        await asyncio.sleep(0.1)
        assert await agent.ask(Counter.value) == 1


async def test_a_call_that_failed_does_not_run_when_an_old_attempt_turns_up(path: Path) -> None:
    async with serving(path) as node:
        call = msgspec.structs.replace(
            add(1, 1), handler="break_after", arguments=msgspec.msgpack.encode([3])
        )
        assert await deliver(node, call) == (1, "HandlerFailed")
        assert await deliver(node, msgspec.structs.replace(call)) == (1, "HandlerFailed")
    async with serving(path) as node:
        assert await deliver(node, msgspec.structs.replace(call)) == (1, "HandlerFailed")
        record = await node.inspect("Counter/a")
        assert record.version == 1


async def test_the_same_message_id_has_one_effect(path: Path) -> None:
    async with serving(path) as node:
        agent = node.agent(Counter, "a").options(message_id="order-7")
        assert await agent.ask(Counter.add, 5) == 5
        assert await agent.ask(Counter.add, 5) == 5
        with pytest.raises(ReplayMismatch, match="order-7"):
            await agent.ask(Counter.add, 6)
        with pytest.raises(ReplayMismatch):
            await agent.ask(Counter.look)
        await agent.send(Counter.add, 5)
    async with serving(path) as node:
        agent = node.agent(Counter, "a").options(message_id="order-7")
        assert await agent.ask(Counter.add, 5) == 5
        assert await node.agent(Counter, "a").ask(Counter.value) == 5


async def test_a_message_id_is_new_after_its_time(path: Path) -> None:
    class Numbers(State):
        n: int = 0

    class Forgets(Agent[Numbers], dedup_seconds=1000.0):
        @handler
        async def add(self) -> int:
            self.state.n += 1
            return self.state.n

    clock = Later()
    async with Node.join(f"local:{path}", serve=[Forgets], clock=clock) as node:
        agent = node.agent(Forgets, "a").options(message_id="x")
        assert await agent.ask(Forgets.add) == 1
        assert await agent.ask(Forgets.add) == 1
        clock.seconds = 1001.0
        await node.agent(Forgets, "a").ask(Forgets.add)
        assert await agent.ask(Forgets.add) == 3


async def test_a_table_full_of_young_ids_refuses(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MESSAGE_IDS_MAX", 10)
    async with serving(path) as node:
        agent = node.agent(Counter, "a")
        for n in range(10):
            await agent.options(message_id=f"m{n}").ask(Counter.add, 1)
        with pytest.raises(Overloaded):
            await agent.options(message_id="m10").ask(Counter.add, 1)
        assert await agent.options(message_id="m3").ask(Counter.add, 1) == 4
        assert await agent.ask(Counter.add, 1) == 11


# Unknown outcomes ---------------------------------------------------------------------------------


async def test_unknown_and_it_happened(path: Path) -> None:
    async with serving(path) as node:
        agent = node.agent(Counter, "a")
        await agent.ask(Counter.add, 1)

        async def happened(real: Append, cell: str, records: Sequence[Record]) -> range:
            result = await real(cell, records)
            if fault.times == 1:
                raise Unknown("the answer was lost")
            return result

        fault = Fault(node, ".st.Counter/a", happened)
        assert await agent.ask(Counter.add, 1) == 2
        assert await agent.ask(Counter.add, 1) == 3
        assert fault.times >= 2


async def test_unknown_and_it_did_not_happen(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # a second attempt would be written as well
    monkeypatch.setattr(limits, "ATTEMPT_SECONDS", 1000.0)
    async with serving(path) as node:
        agent = node.agent(Counter, "a")
        await agent.ask(Counter.add, 1)

        async def nothing(real: Append, cell: str, records: Sequence[Record]) -> range:
            if fault.times == 1:
                raise Unknown("the answer was lost")
            return await real(cell, records)

        fault = Fault(node, ".st.Counter/a", nothing)
        assert await agent.ask(Counter.add, 1) == 2
        assert fault.times == 2


async def test_unknown_and_it_happens_too_late(path: Path) -> None:
    """The batch arrives when its shard was claimed anew: its fence is old, so it never happens."""
    async with serving(path) as node:
        agent = node.agent(Counter, "a")
        await agent.ask(Counter.add, 1)
        late: list[tuple[Append, str, Sequence[Record]]] = []

        async def delayed(real: Append, cell: str, records: Sequence[Record]) -> range:
            if not late:
                late.append((real, cell, records))
                raise Unknown("the answer was lost")
            return await real(cell, records)

        Fault(node, ".st.Counter/a", delayed)
        assert await agent.ask(Counter.add, 1) == 2
        ((real, cell, records),) = late
        with pytest.raises(Conflict):
            await real(cell, records)
        assert await agent.ask(Counter.add, 1) == 3
    async with serving(path) as node:
        assert await node.agent(Counter, "a").ask(Counter.value) == 3


async def test_a_shard_that_was_taken_is_let_go_of(path: Path) -> None:
    """Another node wrote the epoch: nothing of the old owner is committed, and what it did is done
    by the next."""
    async with serving(path) as node:
        agent = node.agent(Counter, "a")
        await agent.ask(Counter.add, 1)
        info = node.describe("Counter/a")
        subject = f"{info.cell}.{info.shard}.epoch"
        stored = await node.engine.log.read(info.cell, subject)
        assert stored is not None
        asking = asyncio.create_task(agent.ask(Counter.add, 1))
        # A claim of another life of this very node's place; it is dead, so that this node takes the
        # shard again.
        await node.engine.log.append(
            info.cell, [Record(subject, stored.payload, Expect(subject, stored.sequence))]
        )
        assert await asking == 2
        assert await agent.ask(Counter.add, 1) == 3


# Calls inside turns -------------------------------------------------------------------------------


class Tries(State):
    runs: int = 0


RUNS: dict[str, int] = {}


class Caller(Agent[Tries]):
    @handler
    async def twice(self, name: str, fail_first: int) -> int:
        """Ask another agent, then fail so many times."""
        await self.agent(Counter, name).ask(Counter.add, 1)
        await self.agent(Counter, name).ask(Counter.add, 1)
        RUNS[name] = RUNS.get(name, 0) + 1
        if RUNS[name] <= fail_first:
            raise ValueError("again")
        self.state.runs += 1
        return self.state.runs

    @handler
    async def to_self(self) -> None:
        await self.agent(Caller, self.name).ask(Caller.to_self)

    @handler
    async def around(self, names: list[str]) -> None:
        await self.agent(Caller, names[0]).ask(Caller.around, names[1:])


async def test_a_turn_that_runs_again_repeats_the_same_calls(path: Path) -> None:
    RUNS.clear()
    async with serving(path, Caller, Counter) as node:
        await node.agent(Caller, "c").send(Caller.twice, "target", 2)
        caller = node.agent(Caller, "c")

        async def done() -> bool:
            try:
                return (await node.inspect("Caller/c")).state["runs"] == 1
            except Exception:
                return False

        await until(done)
        assert RUNS["target"] == 3
        assert await node.agent(Counter, "target").ask(Counter.value) == 2
        assert caller.agent_id == "Caller/c"


async def test_a_call_in_a_circle_is_refused_at_once(path: Path) -> None:
    async with serving(path, Caller, Counter) as node:
        with pytest.raises(WouldDeadlock):
            await node.agent(Caller, "me").ask(Caller.to_self)
        with pytest.raises((WouldDeadlock, HandlerFailed)) as caught:
            await node.agent(Caller, "a").ask(Caller.around, ["b", "c", "a"])
        assert "Caller/a" in str(caught.value)


async def test_the_outcome_of_a_message_is_told_later(path: Path) -> None:
    async with serving(path) as node:
        counter = node.agent(Counter, "a")
        assert (await counter.outcome("m-1")).status == "not seen"
        assert await counter.options(message_id="m-1").ask(Counter.add, 5) == 5
        with pytest.raises(HandlerFailed):
            await counter.options(message_id="m-2").ask(Counter.break_after, 1)
        await counter.options(message_id="m-3").send(Counter.wait)
        await counter.options(message_id="m-4").send(Counter.add, 1)

        async def waits() -> bool:
            return [(await counter.outcome(key)).status for key in ("m-3", "m-4")] == [
                "waiting",
                "waiting",
            ]

        await until(waits)
        may_end().set()
        assert (await counter.outcome("m-1")).status == "done"
        failed = await counter.outcome("m-2")
        assert (failed.status, failed.error) == ("failed", "HandlerFailed")
        assert "broken after 1" in failed.text

        async def done() -> bool:
            return (await counter.outcome("m-4")).status == "done"

        await until(done)
        assert (await counter.outcome("m-9")).status == "not seen"
    async with serving(path) as node:  # also from the record, after a restart
        assert (await node.agent(Counter, "a").outcome("m-3")).status == "done"
        assert await node.ask_by_name("Counter/a", "outcome", ["m-1"]) == {
            "status": "done",
            "error": "",
            "text": "",
        }


async def test_who_gives_up_does_not_take_the_message_from_others(path: Path) -> None:
    async with serving(path) as node:
        agent = node.agent(Counter, "a").options(message_id="m")
        first, second = (asyncio.create_task(agent.ask(Counter.slow, 0.3)) for _ in range(2))
        await asyncio.sleep(0.05)
        second.cancel()
        assert await first == 1
        with pytest.raises(asyncio.CancelledError):
            await second


async def test_a_turn_that_is_broken_off_by_its_node_does_not_cancel_what_it_asked(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs again elsewhere, and asks again under the same id."""
    # of a second attempt nobody knows what became
    monkeypatch.setattr(limits, "ATTEMPT_SECONDS", 1000.0)

    class Outer(Agent[Count]):
        @handler
        async def through(self) -> int:
            return await self.agent(Counter, "inner").ask(Counter.slow, 0.5)

    async with serving(path, Outer, Counter) as node:
        outer = node.agent(Outer, "o").options(message_id="m")
        asked = asyncio.create_task(outer.ask(Outer.through))
        await asyncio.sleep(0.2)
        shard = next(
            shard for shard in node._runtime.shards.values() if "Outer/o" in shard.activations
        )
        shard.drop(shard.activations["Outer/o"], NoQuorum("dropped by the test"))
        with pytest.raises(NoQuorum, match="by the test"):
            await asked
        assert await outer.ask(Outer.through) == 1
        assert await node.agent(Counter, "inner").ask(Counter.value) == 1
