"""Handlers in threads and in worker processes: the loop goes on, and every promise is kept."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import threading
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from tests.agents.heavy import Heavy
from tests.agents.kinds import Count, Counter, serving, until

from holdfast import Agent, BadState, HandlerFailed, NoQuorum, TooLarge, handler, limits
from holdfast.serving.delivery import from_call
from holdfast.serving.turns import deadlocks
from holdfast.serving.workers.slots import Slots


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


async def test_a_turn_in_a_worker_process_is_committed_like_any_other(path: Path) -> None:
    async with serving(path, Heavy) as node:
        agent = node.agent(Heavy, "a")
        process, total = await agent.ask(Heavy.crunch, 2)
        assert process != os.getpid() and total == 2
        assert [await agent.ask(Heavy.crunch, 1) for _ in range(3)] == [
            (process, n) for n in (3, 4, 5)
        ]
        assert await agent.ask(Heavy.total) == 5
        assert await agent.ask(Heavy.far_total) != (os.getpid(), 5)
        assert (await agent.ask(Heavy.far_total))[1] == 5
    async with serving(path, Heavy) as node:
        assert await node.agent(Heavy, "a").ask(Heavy.total) == 5


async def test_a_thread_has_the_activations_attributes(path: Path) -> None:
    async with serving(path, Heavy) as node:
        made_in, thread = await node.agent(Heavy, "a").ask(Heavy.block, 0.0)
        assert made_in == os.getpid() and thread.startswith("holdfast-handler")


@pytest.mark.parametrize("method", [Heavy.block_until, Heavy.compute_until])
async def test_others_go_on_beside_it(path: Path, method: Any) -> None:
    enough = path.with_name("enough")
    async with serving(path, Heavy, Counter) as node:
        slow = asyncio.create_task(node.agent(Heavy, "a").ask(method, str(enough)))
        try:
            for expected in range(1, 101):
                assert await node.agent(Counter, "c").ask(Counter.add, 1) == expected
            assert await node.agent(Heavy, "a").ask(Heavy.total) == 0, (
                "a reader sees what is committed"
            )
            assert not slow.done()
        finally:
            enough.touch()
        await slow
        assert await node.agent(Heavy, "a").ask(Heavy.total) == 1


async def test_what_raises_in_a_worker_leaves_the_state(path: Path) -> None:
    async with serving(path, Heavy) as node:
        agent = node.agent(Heavy, "a")
        await agent.ask(Heavy.crunch, 1)
        with pytest.raises(HandlerFailed, match="broken after 5") as failed:
            await agent.ask(Heavy.break_after, 5)
        assert failed.value.kind_of_error == "ValueError" and "heavy.py" in failed.value.details
        with pytest.raises(TooLarge, match="1000005 bytes"):
            await agent.ask(Heavy.swell)
        with pytest.raises(BadState, match="total"):
            await agent.ask(Heavy.spoil)
        with pytest.raises(HandlerFailed, match="a reader writes nothing"):
            await agent.ask(Heavy.write_in_reader)
        assert await agent.ask(Heavy.total) == 1


async def test_a_worker_that_ends_fails_its_own_message_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "WORKER_CLOSE_SECONDS", 240.0)
    async with serving(path, Heavy) as node:
        other = asyncio.create_task(node.agent(Heavy, "b").ask(Heavy.compute, 1.0, 7))
        await asyncio.sleep(0.5)
        with pytest.raises(HandlerFailed, match=r"worker process of Heavy\.die ended with code 3"):
            await node.agent(Heavy, "a").ask(Heavy.die)
        assert await other == 7
        assert (await node.agent(Heavy, "a").ask(Heavy.crunch, 1))[1] == 1
        await node.agent(Heavy, "a").send(Heavy.die)

        async def buried() -> bool:
            return len(await node.dead_letters.all()) == 1

        await until(buried)
        assert (await node.agent(Heavy, "a").ask(Heavy.crunch, 1))[1] == 2


async def test_what_a_worker_sends_is_part_of_its_turn(path: Path) -> None:
    async with serving(path, Heavy, Counter) as node:
        agent = node.agent(Heavy, "a")
        with pytest.raises(HandlerFailed, match="after sending"):
            await agent.ask(Heavy.tell_others, "c", True)
        await agent.ask(Heavy.tell_others, "c", False)

        async def arrived() -> bool:
            return (
                await node.agent(Counter, "c").ask(Counter.value),
                await agent.ask(Heavy.rings),
            ) == (1, ["rung"])

        await until(arrived)
        await asyncio.sleep(0.2)
        assert await arrived()


@pytest.mark.parametrize("method", [Heavy.ask_in_process, Heavy.ask_in_thread])
async def test_a_worker_cannot_wait_and_is_told_so(path: Path, method: object) -> None:
    async with serving(path, Heavy, Counter) as node:
        with pytest.raises(HandlerFailed, match="cannot ask or tell"):
            await node.agent(Heavy, "a").ask(method, "c")  # type: ignore[arg-type]


async def test_a_worker_knows_what_a_turn_knows(path: Path) -> None:
    async with serving(path, Heavy) as node:
        name, agent_id, key, fence = (
            await node.agent(Heavy, "a/b").options(message_id="m").ask(Heavy.who)
        )
        assert (name, agent_id) == ("a/b", "Heavy/a/b") and len(key) == 32 and fence > 0
        assert await node.agent(Heavy, "a/b").options(message_id="m").ask(Heavy.who) == (
            name,
            agent_id,
            key,
            fence,
        )


async def test_a_worker_knows_whether_its_agent_is_its_own(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # else nobody knows what became of the first attempt
    monkeypatch.setattr(limits, "ATTEMPT_SECONDS", 1000.0)
    async with serving(path, Heavy) as node:
        agent, seen = node.agent(Heavy, "a"), tmp_path / "seen"
        assert await agent.ask(Heavy.is_live_in_process) and await agent.ask(
            Heavy.is_live_in_thread
        )
        asked = asyncio.create_task(agent.ask(Heavy.until_lost, str(seen)))

        async def says(text: str) -> bool:
            return seen.exists() and seen.read_text() == text

        await until(lambda: says("begun"))
        shard = next(shard for shard in node._runtime.shards.values() if shard.activations)
        shard.drop(shard.activations["Heavy/a"], NoQuorum("dropped by the test"))
        await until(lambda: says("lost"))
        with pytest.raises(NoQuorum):
            await asked


async def test_a_cancelled_call_ends_its_worker_process(path: Path) -> None:
    async with serving(path, Heavy) as node:
        agent = node.agent(Heavy, "a")
        process, _ = await agent.ask(Heavy.crunch, 1)
        asked = asyncio.create_task(agent.options(timeout_seconds=3600).ask(Heavy.compute, 3600.0))
        await asyncio.sleep(0.3)
        asked.cancel()
        async with asyncio.timeout(240):
            other, total = await agent.ask(Heavy.crunch, 1)
        assert (other != process, total) == (True, 2)

        async def is_gone() -> bool:
            try:
                os.kill(process, 0)
            except ProcessLookupError:
                return True
            return False

        await until(is_gone)


async def test_a_turn_waits_for_the_thread_of_one_that_was_cancelled(
    path: Path, tmp_path: Path
) -> None:
    async with serving(path, Heavy) as node:
        agent = node.agent(Heavy, "a")
        asked = asyncio.create_task(agent.ask(Heavy.block_until, str(tmp_path / "end")))
        await asyncio.sleep(0.2)
        asked.cancel()
        following = asyncio.create_task(agent.ask(Heavy.block, 0.0, 1))
        await asyncio.sleep(0.2)
        assert not following.done()
        (tmp_path / "end").touch()
        await following
        assert await agent.ask(Heavy.total) == 1


async def test_what_a_worker_did_for_a_shard_that_was_lost_is_dropped(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ATTEMPT_SECONDS", 1000.0)
    async with serving(path, Heavy) as node:
        agent = node.agent(Heavy, "a").options(message_id="m")
        asked = asyncio.create_task(agent.ask(Heavy.compute, 0.6))
        await asyncio.sleep(0.3)
        shard = next(shard for shard in node._runtime.shards.values() if shard.activations)
        shard.drop(shard.activations["Heavy/a"], NoQuorum("dropped by the test"))
        with pytest.raises(NoQuorum, match="by the test"):
            await asked
        assert await agent.ask(Heavy.compute, 0.6) == 1


def test_what_cannot_run_there_is_refused_where_it_is_written() -> None:
    with pytest.raises(TypeError, match=r"cannot import .*Local"):

        class Local(Agent[Count]):
            @handler(runs_in="process")
            async def work(self) -> None:
                pass

    with pytest.raises(TypeError, match="'thread' or 'process', not in 'fiber'"):
        handler(runs_in="fiber")(Heavy.crunch.function)  # type: ignore[call-overload]


async def test_a_loop_that_stands_still_is_noticed_and_named(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """On a busy machine the loop may stand still elsewhere as well: what is named is what
    counts."""
    async with serving(path, Heavy) as node:
        assert "(stall)" not in node.members()[0].degraded
        node._parts.stalls._recent.clear()
        async with asyncio.timeout(240):
            while "(stall)" not in caplog.text:  # a look that is late itself names nothing
                await node.agent(Heavy, "a").ask(Heavy.stall, 1.2)
                await asyncio.sleep(0.3)
        assert node.statistics()["stalls"] >= 1
        node._membership.beat()
        assert re.search(
            r"stood still \d+ times within a minute, for up to ", node.members()[0].degraded
        )
        assert "heavy.py:" in node.members()[0].degraded and "(stall)" in node.members()[0].degraded
        assert 'runs_in="process"' in caplog.text
        await node.agent(Heavy, "a").ask(Heavy.block, 1.2)
        await node.agent(Heavy, "a").ask(Heavy.compute, 1.2)
        assert "(block)" not in caplog.text and "(compute)" not in caplog.text


async def test_a_loop_that_stands_still_is_told_with_its_stack_while_it_does(path: Path) -> None:
    goes_on = path.with_name("goes on")
    said: list[str] = []

    def told(record: logging.LogRecord) -> bool:
        if "stall_until" in record.getMessage():
            said.append(record.getMessage())
            goes_on.touch()
        return True

    logger = logging.getLogger("holdfast.serving.stalls")
    logger.addFilter(told)
    try:
        async with serving(path, Heavy) as node:
            await node.agent(Heavy, "a").ask(Heavy.stall_until, str(goes_on))
    finally:
        logger.removeFilter(told)
    assert re.search(
        r"has stood still for \d\.\d s in heavy\.py:\d+ \(wait_for\) \(Heavy/a stall_until\)",
        said[0],
    )
    assert "in stall_until\n    wait_for(path)" in said[0]


async def test_code_that_keeps_the_interpreter_is_noticed_and_a_frozen_process_is_not(
    path: Path,
) -> None:
    async with serving(path, Heavy) as node:
        await node.agent(Heavy, "a").ask(Heavy.hog, 1.2)
        await asyncio.sleep(0.3)
        assert "stood still" in node._parts.stalls.text()
        pid, count = os.getpid(), node.statistics()["stalls"]
        waker = await asyncio.create_subprocess_shell(
            f"sleep 0.2; kill -STOP {pid}; sleep 1.5; kill -CONT {pid}"
        )
        await waker.wait()
        await asyncio.sleep(0.3)
        assert node.statistics()["stalls"] == count


class Endless(Agent[Count]):
    go_on = threading.Event()

    @handler(runs_in="thread")
    async def wait(self) -> int:
        self.go_on.wait(60)
        return 1


class Quick(Agent[Count]):
    @handler(runs_in="thread")
    async def count(self) -> int:
        self.state.n += 1
        return self.state.n


async def test_endless_handlers_of_one_kind_leave_others_theirs_and_are_named(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "HANDLER_THREADS_MAX", 2)
    monkeypatch.setattr(limits, "LONG_JOB_SECONDS", 0.05)
    Endless.go_on.clear()
    async with serving(path, Endless, Quick) as node:
        asks = [
            asyncio.ensure_future(node.agent(Endless, f"e{place}").ask(Endless.wait))
            for place in range(4)
        ]
        try:
            resident = node._runtime.resident
            named = re.compile(
                r"Endless/e\d: wait has run in a thread for \d s, and 2 of them run at a time"
            )

            async def all_run() -> bool:
                return len([one for one in resident.values() if one.running is not None]) == 4

            async def named_often() -> bool:
                return len(named.findall(caplog.text)) > 4

            await until(all_run)
            quick = [node.agent(Quick, f"q{place}").ask(Quick.count) for place in range(4)]
            assert await asyncio.gather(*quick) == [1] * 4
            await until(named_often)
            hints = []
            for one in resident.values():
                if (message := one.running) is not None and message.call is not None:
                    again = msgspec.structs.replace(message.call)
                    deadlocks.hint(
                        one,
                        message,
                        from_call(again, lambda _r, _o, text: hints.append(text.decode())),
                    )
            waits = "its handler wait waits until a thread is free"
            assert sorted(hints) == ["its handler wait runs"] * 2 + [waits] * 2
        finally:
            Endless.go_on.set()
        assert await asyncio.gather(*asks) == [1] * 4
        assert node._runtime.workers._slots["thread"]._held.total() == 0


class Noted(Agent[Count]):
    runs: ClassVar[list[str]] = []

    @handler(runs_in="thread")
    async def note(self, what: str) -> None:
        self.runs.append(what)


async def test_what_got_no_thread_is_never_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin, refused = threading.Thread.start, []

    def start(thread: threading.Thread) -> None:
        if thread.name.startswith("holdfast-handler") and not refused:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    Noted.runs.clear()
    async with serving(path, Noted) as node:
        with pytest.raises(HandlerFailed, match="can't start new thread"):
            await node.agent(Noted, "a").ask(Noted.note, "failed")
        await node.agent(Noted, "a").ask(Noted.note, "done")
        assert Noted.runs == ["done"], "a caller was told that the first one failed"


async def test_a_slot_goes_to_the_kind_with_the_fewest(path: Path) -> None:
    slots = Slots(2, "process")
    taken: list[str] = []

    async def take(kind: str) -> None:
        await slots.take(kind)
        taken.append(kind)

    tasks = [asyncio.ensure_future(take(kind)) for kind in ("a", "a", "a", "a", "b", "b", "b")]
    await asyncio.sleep(0)
    assert taken == ["a", "a", "b"]
    slots.release("b")
    await asyncio.sleep(0)
    assert taken[3:] == ["b"]
    tasks[-1].cancel()
    slots.release("a")
    await asyncio.sleep(0)
    assert taken[4:] == []
    slots.release("a")
    await asyncio.sleep(0)
    assert taken[4:] == ["a"]
    slots.release("b")
    await asyncio.sleep(0)
    assert taken[5:] == ["a"]
    await asyncio.gather(*tasks, return_exceptions=True)
