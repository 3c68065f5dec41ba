"""A claim is followed by a recovery that notices what a replica lost or damaged."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.agents.kinds import Append, Counter, Fault, Receiver, serving, until

from holdfast import DeadlineExceeded, HoldfastError, Node, NoQuorum, limits
from holdfast.cluster.ownership.epochs import Claim
from holdfast.engines.base import Record
from holdfast.errors import Unknown
from holdfast.records import agent_record
from holdfast.serving.shards.shard import Shard


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


async def fill(path: Path) -> None:
    async with serving(path) as node:
        for n in range(300):
            await node.agent(Counter, f"a{n}").ask(Counter.add, n)
        for n in range(300):
            await node.agent(Counter, f"a{n}").ask(Counter.add, 1)


def all_suspect(node: Node) -> Callable[[Any], None]:
    """Have this node's calls look as if they had been in hand when a process died; return what
    sends them as they are."""
    send = node._router._send

    def suspected(opened: Any) -> None:
        opened.call.interrupted = True
        send(opened)

    node._router._send = suspected  # type: ignore[method-assign]
    return send


async def failures(path: Path) -> dict[str, str]:
    """What a node says that cannot recover."""
    errors: list[object] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: errors.append(context["exception"])
    )
    async with Node.join(f"local:{path}", serve=[Counter, Receiver]) as node:

        async def failed() -> bool:
            return bool(node.statistics()["recovery_failures"])

        await until(failed)
        with pytest.raises((DeadlineExceeded, HoldfastError)):
            await node.agent(Counter, "a7").options(timeout_seconds=0.3).ask(Counter.value)
        assert errors
        found: dict[str, str] = node.statistics()["recovery_failures"]
        return found


def change(path: Path, statement: str, *values: object) -> int:
    with sqlite3.connect(path) as connection:
        return connection.execute(statement, values).rowcount


async def test_a_lost_record_is_noticed(path: Path) -> None:
    await fill(path)
    assert change(path, "DELETE FROM records WHERE subject LIKE '%.st.Counter/a7'") == 1
    (text,) = (await failures(path)).values()
    assert "diverged" in text


async def test_a_flipped_byte_is_noticed(path: Path) -> None:
    await fill(path)
    with sqlite3.connect(path) as connection:
        where = "subject LIKE '%.st.Counter/a7'"
        ((payload,),) = connection.execute(f"SELECT payload FROM records WHERE {where}").fetchall()
        damaged = payload[:30] + bytes([payload[30] ^ 1]) + payload[31:]
        connection.execute(f"UPDATE records SET payload = ? WHERE {where}", (damaged,))
    (text,) = (await failures(path)).values()
    assert "checksum" in text and "Counter/a7" in text


async def test_blobs_that_no_record_names_are_swept(path: Path) -> None:
    await fill(path)
    async with serving(path) as node:
        info = node.describe("Counter/a7")
        own = f"{info.cell}.{info.shard}.Counter/a7"
        await node.engine.blobs.put(f"{own}.{info.shard}-1-1", b"left behind by an owner that died")
        # As an owner that died would leave it: its claim stands, and nobody let go of the shard.
        node._runtime.drop_shards(list(node._runtime.shards))
    async with serving(path) as node:

        async def swept() -> bool:
            return await node.engine.blobs.keys(own) == []

        await until(swept)
        assert await node.agent(Counter, "a7").ask(Counter.value) == 8


async def test_a_replica_that_is_catching_up_shows_a_record_and_later_the_one_that_replaced_it(
    path: Path,
) -> None:
    """Both come in one tail; the newer counts, and the digest is of it alone."""
    async with serving(path) as node:
        agent = node.agent(Counter, "a")
        await agent.ask(Counter.add, 1)
        shard = next(shard for shard in node._runtime.shards.values() if shard.index)
        subject = f"{shard.prefix}.st.Counter/a"
        old = await node.engine.log.read(shard.cell, subject)
        await agent.ask(Counter.add, 1)
        new = await node.engine.log.read(shard.cell, subject)
        assert old is not None and new is not None and old.sequence < new.sequence
        claim = Claim(new.sequence + 1, clean=True, chain="", settled=True)
        found = Shard(node._runtime, shard.number, shard.cell, claim)
        await found.recover([old, new])
        assert found.index == {"Counter/a": new.sequence}
        assert (found.digest, found.commit) == (shard.digest, shard.commit)
        found.stop()


async def test_what_goes_on_in_an_abandoned_agent_is_never_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message runs alone behind its mark; its agent is dropped; the task that waits for it must
    commit nothing."""
    # of a second attempt nobody knows what became
    monkeypatch.setattr(limits, "ATTEMPT_SECONDS", 1000.0)
    async with serving(path) as node:
        agent = node.agent(Counter, "a")
        await agent.ask(Counter.add, 1)
        shard = next(shard for shard in node._runtime.shards.values() if shard.index)
        activation = shard.activations["Counter/a"]
        activation.attempts = {"*": 1}
        send = all_suspect(node)
        asked = asyncio.create_task(agent.ask(Counter.slow, 30.0, 10))

        async def running() -> bool:
            return activation.state is not None and activation.state.n == 11

        await until(running)
        shard.drop(activation, NoQuorum("dropped by the test"))
        with pytest.raises(NoQuorum, match="by the test"):
            await asked
        node._router._send = send  # type: ignore[method-assign]
        # whatever waited for the log is written by now
        await node.agent(Counter, "b").ask(Counter.add, 1)
        stored = await node.engine.log.read(shard.cell, f"{shard.prefix}.st.Counter/a")
        assert stored is not None and stored.sequence == shard.index["Counter/a"]
        assert await agent.ask(Counter.add, 1) == 2
    async with serving(path) as node:
        assert await node.agent(Counter, "a").ask(Counter.value) == 2
        assert node.statistics()["recovery_failures"] == {}


async def test_a_mark_goes_with_the_last_interrupted_message_unless_a_process_ended_behind_it(
    path: Path,
) -> None:
    """Else every later interrupted message of the agent would run alone on its node, and a second
    takeover take for ever."""
    async with serving(path) as node:
        agent = node.agent(Counter, "a")
        await agent.ask(Counter.add, 1)
        shard = next(shard for shard in node._runtime.shards.values() if shard.index)
        send = all_suspect(node)

        async def marks() -> dict[str, int]:
            stored = await node.engine.log.read_sequence(shard.cell, shard.index["Counter/a"])
            assert stored is not None
            return agent_record.decode(stored.payload, "").attempts

        assert sorted(await asyncio.gather(*(agent.ask(Counter.add, 1) for _ in range(5)))) == [
            2,
            3,
            4,
            5,
            6,
        ]
        assert await marks() == {}
        shard.claimed_at += 60  # however long this test takes
        activation = shard.activations["Counter/a"]
        # as it is found after the end of a process
        activation.attempts, activation.probation = {"*": 1}, False
        assert await agent.ask(Counter.add, 1) == 7
        assert await marks() == {"*": 1}
        node._router._send = send  # type: ignore[method-assign]
        assert await agent.ask(Counter.add, 1) == 8
        assert await marks() == {"*": 1}, "whoever asks again had no time to yet"
        shard.claimed_at -= 60 + 2 * limits.ATTEMPT_SECONDS
        assert await agent.ask(Counter.add, 1) == 9
        assert await marks() == {}


async def test_a_process_that_does_not_learn_what_became_of_its_writes_has_not_ended(
    path: Path,
) -> None:
    """The mark of an interrupted message is in the log, its turn's record is not: claimed again by
    the same process, it counts for nothing."""
    async with serving(path) as node:
        agent = node.agent(Counter, "a")
        await agent.ask(Counter.add, 1)
        all_suspect(node)
        lost = 0

        async def lose(real: Append, cell: str, records: Sequence[Record]) -> range:
            nonlocal lost
            (written,) = [
                agent_record.decode(one.payload, "")
                for one in records
                if one.subject.endswith(".st.Counter/a")
            ]
            if not written.attempts and lost < 5:
                lost += 1
                raise Unknown("lost by the test")
            return await real(cell, records)

        Fault(node, ".st.Counter/a", lose)
        assert await agent.ask(Counter.add, 10) == 11
        assert lost == 5


async def test_a_message_that_is_given_up_behind_its_mark_holds_nobody_up(path: Path) -> None:
    async with serving(path) as node:
        agent = node.agent(Counter, "a")
        await agent.ask(Counter.add, 1)
        shard = next(shard for shard in node._runtime.shards.values() if shard.index)
        shard.activations["Counter/a"].attempts = {"*": 1}
        all_suspect(node)
        async with node._runtime.quarantine:
            asked = asyncio.create_task(agent.ask(Counter.add, 10))

            async def waits() -> bool:
                return shard.activations["Counter/a"].running is not None

            await until(waits)
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
        async with asyncio.timeout(240):
            assert await agent.ask(Counter.add, 1) == 2
        stored = await node.engine.log.read_sequence(shard.cell, shard.index["Counter/a"])
        assert stored is not None and agent_record.decode(stored.payload, "").attempts.keys() <= {
            "*"
        }


async def test_a_suspect_that_cannot_be_run_holds_nobody_up(path: Path) -> None:
    async with serving(path) as node:
        agent = node.agent(Counter, "a")
        await agent.ask(Counter.add, 1)
        shard = next(shard for shard in node._runtime.shards.values() if shard.index)
        shard.interrupted_before = 1 << 60  # as after a claim from a process that died
        await node.send_by_name("Counter/a", "nothing")
        async with asyncio.timeout(240):
            assert await agent.ask(Counter.add, 1) == 2
            while not (letters := await node.dead_letters.all()):
                await asyncio.sleep(0.01)
        assert [letter.handler for letter in letters] == ["nothing"]
        assert not shard.busy()
