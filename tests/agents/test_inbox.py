"""Durable sends: once, in order, through failures; and what becomes of those that cannot be
handled."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.agents.kinds import Append, Counter, Fault, Gate, Receiver, serving, until

from holdfast import (
    Agent,
    NotFound,
    OutcomeUnknown,
    Overloaded,
    State,
    Unknown,
    codec,
    handler,
    limits,
)
from holdfast.engines.base import Record, Stored
from holdfast.records.messages import InboxMessage
from holdfast.serving.shards import inbox


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


class Sends(State):
    done: int = 0


class Sender(Agent[Sends]):
    @handler
    async def spread(self, to: str, count: int, fail: bool = False) -> int:
        for number in range(count):
            await self.agent(Receiver, to).send(
                Receiver.take, self.name, self.state.done * 1000 + number
            )
        self.state.done += 1
        if fail:
            raise RuntimeError("not sent")
        return self.state.done

    @handler
    async def too_many(self) -> None:
        for number in range(limits.TURN_RECORDS_MAX):
            await self.agent(Receiver, "r").send(Receiver.take, "x", number)


class Fragile(Agent[Sends]):
    @handler
    async def take(self, number: int) -> None:
        if number == 3:
            raise ValueError("three is bad")
        self.state.done += 1

    @handler
    async def mend(self) -> None: ...


async def test_a_send_is_handled_once_and_in_order(path: Path) -> None:
    async with serving(path) as node:
        receiver = node.agent(Receiver, "r")
        for number in range(100):
            await receiver.send(Receiver.take, "me", number)
        await until(lambda: has(receiver, 100))
        assert await receiver.ask(Receiver.all) == [("me", number) for number in range(100)]
    async with serving(path) as node:
        await asyncio.sleep(0.2)
        assert len(await node.agent(Receiver, "r").ask(Receiver.all)) == 100


async def has(receiver: Any, count: int) -> bool:
    return len(await receiver.ask(Receiver.all)) >= count


async def test_sends_at_once_keep_the_order_of_their_calls(path: Path) -> None:
    async with serving(path) as node:
        receiver = node.agent(Receiver, "r")
        await asyncio.gather(*(receiver.send(Receiver.take, "me", number) for number in range(200)))
        await until(lambda: has(receiver, 200))
        assert [number for _, number in await receiver.ask(Receiver.all)] == list(range(200))


async def test_sent_while_nobody_serves_the_agent(path: Path) -> None:
    from holdfast import Node

    async with serving(path) as node:
        await node.agent(Counter, "x").ask(Counter.add, 1)
    async with Node.join(f"local:{path}") as client:
        for number in range(5):
            await client.agent(Receiver, "r").send(Receiver.take, "me", number)
    async with serving(path) as node:
        receiver = node.agent(Receiver, "r")
        await until(lambda: has(receiver, 5))
        assert [number for _, number in await receiver.ask(Receiver.all)] == [0, 1, 2, 3, 4]


async def test_more_messages_than_are_held_in_memory(path: Path) -> None:
    count = limits.INBOX_READ_AHEAD * 2 + 50
    async with serving(path) as node:
        counter = node.agent(Counter, "slow")
        blocking = asyncio.create_task(counter.ask(Counter.slow, 0.7, 0))
        await asyncio.sleep(0.05)
        await asyncio.gather(*(counter.send(Counter.note, str(n)) for n in range(count)))
        await blocking

        async def done() -> bool:
            return len(await counter.ask(Counter.texts)) == count

        await until(done)
        assert await counter.ask(Counter.texts) == [str(n) for n in range(count)]


async def test_messages_that_come_while_a_backlog_is_read_keep_their_place(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The inbox holds read messages, sequences of unread ones, read ones again, and so on."""
    async with serving(path) as node:
        monkeypatch.setattr(limits, "INBOX_READ_AHEAD", 3)
        counter = node.agent(Counter, "mixed")
        sent = 0

        async def send(count: int) -> None:
            nonlocal sent
            await asyncio.gather(
                *(counter.send(Counter.hold, str(n)) for n in range(sent, sent + count))
            )
            sent += count

        for count in (9, 1, 1, 2, 1, 5, 1, 1, 1) * 20:
            await send(count)
            await asyncio.sleep(0.001 * count)

        async def done() -> bool:
            return len(await counter.ask(Counter.texts)) >= sent

        await until(done)
        assert await counter.ask(Counter.texts) == [str(n) for n in range(sent)]


async def test_a_send_of_a_turn_belongs_to_the_turn(path: Path) -> None:
    async with serving(path, Sender, Receiver) as node:
        sender, receiver = node.agent(Sender, "s"), node.agent(Receiver, "r")
        await sender.ask(Sender.spread, "r", 3)
        with pytest.raises(Exception, match="not sent"):
            await sender.ask(Sender.spread, "r", 3, fail=True)
        with pytest.raises(Exception, match="may send"):
            await sender.ask(Sender.too_many)
        await sender.ask(Sender.spread, "r", 2)
        await until(lambda: has(receiver, 5))
        await asyncio.sleep(0.1)
        assert await receiver.ask(Receiver.all) == [
            ("s", 0),
            ("s", 1),
            ("s", 2),
            ("s", 1000),
            ("s", 1001),
        ]


async def test_a_send_whose_outcome_is_unknown_is_not_sent_twice(path: Path) -> None:
    async with serving(path) as node:
        receiver = node.agent(Receiver, "r")

        async def lost_answer(real: Append, cell: str, records: Sequence[Record]) -> range:
            result = await real(cell, records)
            if fault.times % 2:
                raise Unknown("the answer was lost")
            return result

        fault = Fault(node, ".in.Receiver/r", lost_answer)
        for number in range(20):
            await receiver.send(Receiver.take, "me", number)
        await until(lambda: has(receiver, 20))
        await asyncio.sleep(0.2)
        assert [number for _, number in await receiver.ask(Receiver.all)] == list(range(20))


async def test_unknown_outcomes_while_messages_pour_in(path: Path) -> None:
    """A shard is claimed anew again and again while its neighbours' tail goes on: nothing is
    skipped."""
    async with serving(path) as node:
        receivers = [node.agent(Receiver, f"pour-{n}") for n in range(4)]

        async def sometimes(real: Append, cell: str, records: Sequence[Record]) -> range:
            result = await real(cell, records)
            if fault.times % 7 == 0:
                raise Unknown("the answer was lost")
            return result

        fault = Fault(node, ".st.Receiver/pour", sometimes)

        async def pour(receiver: Any) -> None:
            for number in range(400):
                await receiver.send(Receiver.take, "me", number)

        await asyncio.gather(*map(pour, receivers))
        for receiver in receivers:
            await until(lambda receiver=receiver: has(receiver, 400))  # type: ignore[misc]
            assert [number for _, number in await receiver.ask(Receiver.all)] == list(range(400))
        assert fault.times > 20


async def test_the_tail_of_an_older_claim_cannot_make_a_shard_skip_messages(path: Path) -> None:
    """It lost what came while the shard was nobody's; what it brings afterwards lies behind a
    gap."""
    async with serving(path) as node:
        receiver = node.agent(Receiver, "r")
        await receiver.send(Receiver.take, "me", 1)
        await until(lambda: has(receiver, 1))
        info = node.describe("Receiver/r")
        ahead = codec.seal(
            codec.encode_raw(InboxMessage("take", msgspec.msgpack.encode(["me", 3])))
        )
        stored = Stored(f"{info.cell}.{info.shard}.in.Receiver/r.ahead", info.epoch + 10_000, ahead)
        inbox.receive(node._runtime, [stored], {info.shard: info.epoch - 1})
        await receiver.send(Receiver.take, "me", 2)
        await until(lambda: has(receiver, 2))
        assert await receiver.ask(Receiver.all) == [("me", 1), ("me", 2)]


async def test_a_send_that_stays_unknown_says_so(path: Path) -> None:
    async with serving(path) as node:

        async def never(real: Append, cell: str, records: Sequence[Record]) -> range:
            raise Unknown("nobody answers")

        Fault(node, ".in.Receiver/r", never)
        with pytest.raises(OutcomeUnknown):
            await (
                node.agent(Receiver, "r").options(timeout_seconds=0.3).send(Receiver.take, "me", 1)
            )


async def test_what_keeps_failing_becomes_a_dead_letter_and_the_next_goes_on(path: Path) -> None:
    async with serving(path, Fragile) as node:
        agent = node.agent(Fragile, "f")
        for number in range(6):
            await agent.send(Fragile.take, number)

        async def dead() -> bool:
            return bool(await node.dead_letters.all())

        await until(dead)
        (letter,) = await node.dead_letters.all("Fragile/f")
        assert (letter.agent_id, letter.handler, letter.arguments) == ("Fragile/f", "take", [3])
        assert letter.kind_of_error == "ValueError"
        assert "three is bad" in letter.error and "take" in letter.details
        assert letter.attempts == limits.ATTEMPTS_MAX
        await until(lambda: state_is(node, "Fragile/f", 5))
    async with serving(path, Fragile) as node:
        (again,) = await node.dead_letters.all()
        assert again == letter
        assert (await node.inspect("Fragile/f")).state["done"] == 5
        with pytest.raises(NotFound):
            await node.dead_letters.replay("g1c0.1.dl.Fragile/f.99999")
        with pytest.raises(NotFound):
            await node.dead_letters.replay("nonsense")


async def state_is(node: Any, agent_id: str, done: int) -> bool:
    return bool((await node.inspect(agent_id)).state["done"] == done)


async def test_a_dead_letter_is_replayed_by_mended_code_or_dropped(path: Path) -> None:
    async with serving(path, Fragile) as node:
        for number in (3, 1, 3):
            await node.agent(Fragile, "f").send(Fragile.take, number)

        async def two_dead() -> bool:
            return len(await node.dead_letters.all()) == 2

        await until(two_dead)

    class Mended(Agent[Sends], kind="Fragile"):
        @handler
        async def take(self, number: int) -> None:
            self.state.done += number

    async with serving(path, Mended) as node:
        first, second = await node.dead_letters.all()
        await node.dead_letters.replay(first.id)
        await node.dead_letters.drop(second.id)
        for letter in (first, second):
            with pytest.raises(NotFound):
                await node.dead_letters.replay(letter.id)
            with pytest.raises(NotFound):
                await node.dead_letters.drop(letter.id)
        await until(lambda: state_is(node, "Fragile/f", 4))
        assert await node.dead_letters.all() == []


async def test_a_message_that_no_handler_fits_is_a_dead_letter_at_once(path: Path) -> None:
    async with serving(path) as node:
        await node.send_by_name("Counter/a", "add", ["text"])
        await node.send_by_name("Counter/a", "nothing", [])
        await node.send_by_name("Counter/a", "value", [])
        await node.agent(Counter, "a").send(Counter.add, 7)

        async def done() -> bool:
            return (
                len(await node.dead_letters.all()) == 3
                and await node.agent(Counter, "a").ask(Counter.value) == 7
            )

        await until(done)
        kinds = [
            (letter.handler, letter.kind_of_error, letter.attempts)
            for letter in await node.dead_letters.all()
        ]
        assert sorted(kinds) == [
            ("add", "BadMessage", 1),
            ("nothing", "UnknownKind", 1),
            ("value", "BadMessage", 1),
        ]


POISON = """
import asyncio, json, os, sys
from holdfast import Agent, Node, State, handler, reader

class Done(State):
    n: int = 0

class Victim(Agent[Done]):
    @handler
    async def take(self, deadly: bool) -> None:
        if deadly:
            os._exit(9)
        self.state.n += 1

    @handler
    async def arm(self, deadly: bool) -> None:
        self.set_timer("t", 0.0, Victim.take, deadly)

    @reader
    async def value(self) -> int:
        return self.state.n

async def main(path, first, how):
    async with Node.join(f"local:{path}", serve=[Victim]) as node:
        if first:
            for n in range(20):
                await node.agent(Victim, f"v{n}").send(Victim.take, False)
            method = Victim.take if how == "send" else Victim.arm
            sends = (node.agent(Victim, f"v{n}").send(method, n == 7) for n in range(20))
            await asyncio.gather(*sends, return_exceptions=True)
        await node.ready()
        while sum([await node.agent(Victim, f"v{n}").ask(Victim.value) for n in range(20)]) < 39:
            await asyncio.sleep(0.02)
        while not (letters := await node.dead_letters.all()):
            await asyncio.sleep(0.02)
        print(json.dumps([[l.agent_id, l.error] for l in letters]), flush=True)

asyncio.run(main(sys.argv[1], sys.argv[2] == "1", sys.argv[3]))
"""


@pytest.mark.parametrize("how", ["send", "timer"])
async def test_a_deadly_message_ends_three_processes_at_most(path: Path, how: str) -> None:
    ends = 0
    for attempt in range(6):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            POISON,
            str(path),
            "1" if attempt == 0 else "0",
            how,
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == 9
        ends += 1
    assert 1 <= ends <= limits.UNCLEAN_ENDS_MAX
    ((agent_id, error),) = json.loads(out)
    assert agent_id == "Victim/v7"
    assert "ended 3 processes" in error


async def test_a_full_mailbox_refuses(path: Path) -> None:
    released = asyncio.Event()

    class Small(Agent[Sends], mailbox_max=5):
        @handler
        async def wait(self) -> None:
            await released.wait()

    async with serving(path, Small) as node:
        agent = node.agent(Small, "s")
        waiting = [asyncio.create_task(agent.ask(Small.wait)) for _ in range(6)]
        for _ in range(6):  # one runs, five wait
            await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="5 messages"):
            await agent.ask(Small.wait)
        released.set()
        assert await asyncio.gather(*waiting) == [None] * 6
        await agent.ask(Small.wait)


async def test_a_node_that_cannot_write_takes_so_much_and_no_more(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was taken is carried out and answered, the rest is refused at once; memory does not grow
    with what comes."""
    monkeypatch.setattr(limits, "UNWRITTEN_TURNS_MAX", 50)

    crowded = asyncio.Event()

    class Asker(Agent[Sends]):
        @handler
        async def relay(self, name: str) -> int:
            await crowded.wait()
            return await self.agent(Counter, name).ask(Counter.add)

    async with serving(path, Counter, Asker) as node:
        relayed = asyncio.create_task(node.agent(Asker, "r").ask(Asker.relay, "inner"))
        gate = Gate(node)
        (committer,) = node._runtime.committers.values()
        first = asyncio.create_task(node.agent(Counter, "first").ask(Counter.add))

        async def writing() -> bool:
            return gate.waiting > 0

        await until(writing)  # what comes now waits behind this batch
        asks = [
            asyncio.create_task(node.agent(Counter, f"c{n}").ask(Counter.add)) for n in range(200)
        ]

        async def full() -> bool:
            return committer.waiting >= 50 and sum(ask.done() for ask in asks) >= 150

        await until(full)
        taken = committer.waiting
        crowded.set()
        named = node.agent(Counter, "named").options(message_id="once").ask(Counter.add)
        waits = asyncio.create_task(named)

        async def both_came() -> bool:
            return committer.waiting > taken and node._runtime.router.retries > 0

        await until(both_came)
        refused = [ask for ask in asks if ask.done()]
        assert not relayed.done()
        assert not waits.done(), (
            "one with an id may have been done before: it is not said that it was not"
        )
        assert len(asks) - len(refused) == 50
        gate.open.set()
        for ask in refused:
            with pytest.raises(Overloaded, match="wait to be written"):
                await ask
        assert [await ask for ask in asks if ask not in refused] == [1] * (200 - len(refused))
        assert await relayed == 1, "what a turn asks for is part of what was taken"
        assert await waits == await first == 1
        assert await node.agent(Counter, "c199").ask(Counter.add) == 1, (
            "what was refused was not done"
        )


async def test_tell_is_best_effort_and_cheap(path: Path) -> None:
    async with serving(path) as node:
        agent = node.agent(Counter, "t")
        for _ in range(50):
            agent.tell(Counter.add, 1)

        async def done() -> bool:
            return await agent.ask(Counter.value) == 50

        await until(done)


async def test_a_second_copy_that_comes_after_the_first_was_purged_is_dropped(path: Path) -> None:
    """As after an append whose outcome was unknown, made again when the first one had been handled
    and forgotten."""
    async with serving(path) as node:
        receiver = node.agent(Receiver, "r")
        await receiver.send(Receiver.take, "me", 1)
        await until(lambda: has(receiver, 1))
        info = node.describe("Receiver/r")
        copy = InboxMessage("take", msgspec.msgpack.encode(["me", 1]), node._router.caller, 1)
        subject = f"{info.cell}.{info.shard}.in.Receiver/r.{node._router.caller}-1-again"
        await node.engine.log.append(
            info.cell, [Record(subject, codec.seal(codec.encode_raw(copy)))]
        )
        await receiver.send(Receiver.take, "me", 2)
        await until(lambda: has(receiver, 2))
    async with serving(path) as node:
        await asyncio.sleep(0.2)
        assert await node.agent(Receiver, "r").ask(Receiver.all) == [("me", 1), ("me", 2)]
