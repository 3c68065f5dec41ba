"""Whatever the code of one agent raises, its own message fails with a text that says where, and all
else goes on."""

from __future__ import annotations

import asyncio
import decimal
import logging
import signal
import subprocess
import sys
import traceback
from contextvars import ContextVar
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tests.agents.kinds import on, serving, until
from tests.agents.rogues import NAMES, Broken, Pit, Rogue, throw

from holdfast import (
    Agent,
    BadMessage,
    BadState,
    HandlerFailed,
    HoldfastError,
    Node,
    OutcomeUnknown,
    State,
    handler,
    limits,
    reader,
)
from holdfast.agents import child_tasks
from holdfast.agents.calls import Open

tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


WAYS = (
    Rogue.at_once,
    Rogue.before_it_waits,
    Rogue.after_it_waited,
    Rogue.in_a_group,
    Rogue.in_a_thread,
    Rogue.read_at_once,
    Rogue.read_and_wait,
)


async def test_what_a_handler_or_a_reader_raises_fails_its_own_message(url: list[str]) -> None:
    async with on(url, Rogue) as node:
        agent, other = node.agent(Rogue, "a"), node.agent(Rogue, "b")
        expected = await agent.ask(Rogue.add)
        for name in NAMES:
            for way in WAYS:
                with pytest.raises(HandlerFailed) as caught:
                    async with asyncio.timeout(240):
                        await agent.ask(way, name)  # type: ignore[call-overload]
                text = str(caught.value)
                assert f"Rogue.{way.name}" in text and "rogues.py:" in text, text
                assert len(text) < 2 * limits.ERROR_TEXT_MAX
                assert "rogues.py" in caught.value.details and caught.value.__notes__
            expected += 1
            assert await agent.ask(Rogue.add) == expected, "the state is that of the turn before"
            assert await other.ask(Rogue.value) == 0
        assert not node._runtime.tasks.failures


async def test_what_a_durable_message_or_a_timer_raises_stops_no_others(
    url: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "BACKOFF_SECONDS_MIN", 0.001)
    async with on(url, Rogue) as node:
        agent, other = node.agent(Rogue, "sent"), node.agent(Rogue, "beside")
        for name in NAMES:
            await agent.send(Rogue.at_once, name)
            await node.send_by_name("Rogue/sent", "take", [{"how": name}])
            await other.send(Rogue.add)
        await other.ask(Rogue.remind, NAMES)

        async def done() -> bool:
            return await other.ask(Rogue.value) == len(NAMES) and "" in await other.ask(Rogue.rings)

        await until(done)
        count = 2 * len(NAMES) + len(NAMES)

        async def buried() -> bool:
            return len(await node.dead_letters.all()) == count

        await until(buried, 300)
        assert await agent.ask(Rogue.add) == 1 and await other.ask(Rogue.rings) == [""]
        letters = [letter for letter in await node.dead_letters.all() if letter.handler != "take"]
        assert all("rogues.py:" in letter.error for letter in letters)
        assert not node._runtime.tasks.failures


async def test_what_values_raise_is_a_bad_message(tmp_path: Path) -> None:
    async with on([f"local:{tmp_path / 'log.db'}"], Rogue) as node:
        agent = node.agent(Rogue, "a")
        for name in NAMES:
            with pytest.raises(BadMessage):
                await node.ask_by_name("Rogue/a", "take", [{"how": name}])
            with pytest.raises(HoldfastError):
                await agent.ask(Rogue.give, name)
            assert await agent.ask(Rogue.value) == 0


@pytest.mark.parametrize("attribute", ["how", "how_init"])
async def test_state_code_that_raises_is_a_bad_state_of_that_agent_alone(
    url: list[str], attribute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds: list[Any] = [Broken, Rogue]
    async with on(url, *kinds) as node:
        assert await node.agent(Broken, attribute).ask(Broken.add, 5) == 5
    monkeypatch.setattr(limits, "BACKOFF_SECONDS_MIN", 0.001)
    for name in ("StopIteration", "SystemExit", "CancelledError", "Mute"):
        monkeypatch.setattr(Broken, attribute, name)
        async with on(url, *kinds) as node:
            agent, other = node.agent(Broken, attribute), node.agent(Rogue, "a")
            before = len(await node.dead_letters.all())
            await agent.send(Broken.add, 1)
            for call in (agent.ask(Broken.add, 1), agent.ask(Broken.value)):
                with pytest.raises(BadState, match=r"rogues\.py:"):
                    async with asyncio.timeout(240):
                        await call

            async def buried(node: Node = node, count: int = before + 1) -> bool:
                return len(await node.dead_letters.all()) == count

            await until(buried)
            assert await other.ask(Rogue.add) and not node._runtime.tasks.failures
            monkeypatch.setattr(Broken, attribute, "")
            assert await agent.ask(Broken.value) == 5, "mended, it is served again"
    async with on(url, *kinds) as node:
        assert await node.agent(Broken, attribute).ask(Broken.add, 1) == 6
        stored = await node.inspect(f"Broken/{attribute}")
        assert stored.state == {"n": 6, "trap": ""}


class Tenants(Agent[None]):
    """Its turns set what reaches whoever runs in the same context."""

    @handler
    async def at_once(self, name: str) -> tuple[str, int]:
        seen = tenant.get(), decimal.getcontext().prec
        tenant.set(name)
        decimal.getcontext().prec = len(name)
        return seen

    @handler
    async def waits(self, name: str) -> tuple[str, int]:
        seen = tenant.get(), decimal.getcontext().prec
        tenant.set(name)
        decimal.getcontext().prec = len(name)
        await asyncio.sleep(0)
        assert (tenant.get(), decimal.getcontext().prec) == (name, len(name))
        return seen

    @handler(runs_in="thread")
    async def in_a_thread(self, name: str) -> tuple[str, int]:
        seen = tenant.get(), decimal.getcontext().prec
        tenant.set(name)
        decimal.getcontext().prec = len(name)
        return seen

    @reader
    async def reads(self, name: str) -> tuple[str, int]:
        seen = tenant.get(), decimal.getcontext().prec
        tenant.set(name)
        decimal.getcontext().prec = len(name)
        return seen

    @handler
    async def through(self, name: str) -> list[tuple[str, int]]:
        seen = await self.waits_too(name)
        tenant.set(name)
        other = self.agent(Tenants, "other")
        seen += [
            await other.ask(way, name) for way in (Tenants.at_once, Tenants.waits, Tenants.reads)
        ]
        assert tenant.get() == name
        return seen

    async def waits_too(self, name: str) -> list[tuple[str, int]]:
        decimal.getcontext().prec = len(name)
        await asyncio.sleep(0)
        return []


async def test_what_a_turn_sets_in_its_context_reaches_nobody(url: list[str]) -> None:
    decimal.getcontext()  # there is one, which a copy of this context would share
    async with on(url, Tenants) as node:
        agent = node.agent(Tenants, "a")
        tenant.set("the program's")
        for way in (Tenants.at_once, Tenants.waits, Tenants.in_a_thread, Tenants.reads) * 3:
            assert await agent.ask(way, "somebody") == ("nobody", 28), way
        assert await agent.ask(Tenants.through, "somebody") == [("nobody", 28)] * 3
        assert (tenant.get(), decimal.getcontext().prec) == ("the program's", 28)
        for name in ("x", "y"):
            await agent.send(Tenants.at_once, name)
            await agent.send(Tenants.waits, name)
        assert await agent.options(fresh=True).ask(Tenants.reads, "z") == ("nobody", 28)


async def test_failures_are_told_in_the_log_of_the_node(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with on([f"local:{tmp_path / 'log.db'}"], Rogue) as node:
        agent = node.agent(Rogue, "a")

        def lines(*parts: str) -> int:
            return sum(
                all(part in record.getMessage() for part in parts) for record in caplog.records
            )

        with pytest.raises(HandlerFailed) as caught:
            await agent.ask(Rogue.before_it_waits, "Odd")
        assert (
            lines("Rogue/a: before_it_waits, asked, failed: ", "Odd", "rogues.py:", "in throw") == 1
        )
        shown = "".join(traceback.format_exception(caught.value))
        assert "raise ERRORS[how]()" in shown and "rogues.py" in shown, (
            "the remote traceback is shown with the error"
        )
        assert str(Path.cwd()) not in caught.value.details
        await agent.send(Rogue.at_once, "Mute")
        await agent.ask(Rogue.remind, ["SystemExit"])

        async def buried() -> bool:
            return len(await node.dead_letters.all()) == 2

        await until(buried)
        assert lines("Rogue/a: at_once, sent, failed, attempt 1 of 5", "Mute", "rogues.py:")
        assert lines("Rogue/a: ring, set as a timer, failed, attempt 1 of 5", "SystemExit")
        assert lines("is a dead letter now, after 5 attempts") == 2
        caplog.clear()
        for _ in range(300):
            with pytest.raises(HandlerFailed):
                await agent.ask(Rogue.at_once, "TimeoutError")
        assert 1 <= len(caplog.records) < 100, "the same is not said again and again"
        await asyncio.sleep(limits.COMPLAINT_SECONDS)
        with pytest.raises(HandlerFailed):
            await agent.ask(Rogue.at_once, "TimeoutError")
        assert lines("like it since the last line") >= 1


class Family(Agent[Pit]):
    """Its turns begin tasks that raise whatever they like."""

    @handler
    async def gather(self, how: str) -> None:
        async def child() -> None:
            await asyncio.sleep(0)
            throw(how)

        await asyncio.gather(child(), asyncio.sleep(0.001))
        raise ValueError("gathered")  # a task that raises CancelledError is cancelled, and others

    @handler
    async def group(self, how: str) -> None:
        async def child() -> None:
            throw(how)

        async with asyncio.TaskGroup() as group:
            group.create_task(child())
        raise ValueError("grouped")


async def test_a_task_of_a_turn_ends_no_process_of_ours(tmp_path: Path) -> None:
    asyncio.get_running_loop().set_task_factory(child_tasks.factory)
    async with on([f"local:{tmp_path / 'log.db'}"], Family) as node:
        agent = node.agent(Family, "a")
        for name in NAMES:
            for way in (Family.gather, Family.group):
                with pytest.raises(HandlerFailed):
                    async with asyncio.timeout(240):
                        await agent.ask(way, name)
        assert not node._runtime.tasks.failures


PROGRAM = """
import asyncio, signal, sys, time
from holdfast import Agent, Node, State, handler

class Busy(Agent[State]):
    @handler
    async def work(self) -> None:
        print("begun", flush=True)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            sum(range(1000))

    @handler
    async def wait(self) -> None:
        print("begun", flush=True)
        await asyncio.sleep(60)

async def main(log, way):
    async with Node.join("local:" + log, serve=[Busy]) as node:
        await node.agent(Busy, "a").ask(getattr(Busy, way))

if sys.argv[3] == "handler":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
if sys.argv[3] == "plain":
    asyncio.new_event_loop().run_until_complete(main(*sys.argv[1:3]))
else:
    asyncio.run(main(*sys.argv[1:3]))
"""


@pytest.mark.parametrize(
    ("way", "how", "sent", "code"),
    [
        ("work", "plain", signal.SIGINT, -signal.SIGINT),
        ("work", "handler", signal.SIGTERM, 7),
        ("wait", "runner", signal.SIGINT, -signal.SIGINT),
    ],
)
def test_a_signal_means_the_whole_program(
    tmp_path: Path, way: str, how: str, sent: signal.Signals, code: int
) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    with subprocess.Popen(
        [sys.executable, str(program), str(tmp_path / "log.db"), way, how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == "begun\n"
        child.send_signal(sent)
        _, errors = child.communicate(timeout=400)
    assert child.returncode in (code, 130), errors
    assert "HandlerFailed" not in errors


class Unmade(State):
    how: ClassVar[str] = ""
    n: int = 0

    def __post_init__(self) -> None:
        throw(Unmade.how)


class Newborn(Agent[Unmade], state_version=2):
    """A new one has no state while ``Unmade.how`` names an error."""

    @handler
    async def add(self, by: int) -> int:
        self.state.n += by
        return self.state.n

    @reader
    async def value(self) -> int:
        return self.state.n


async def test_a_new_agent_whose_state_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "BACKOFF_SECONDS_MIN", 0.001)
    names = ("KeyboardInterrupt", "CancelledError", "Mute", "TimeoutError")
    for mended in ("at once", "later"):
        kinds: list[Any] = [Newborn, Rogue]
        monkeypatch.setattr(Unmade, "how", "Odd")
        async with serving(tmp_path / "log.db", *kinds) as node:
            agent, before = node.agent(Newborn, mended), len(await node.dead_letters.all())
            for name in names:
                monkeypatch.setattr(Unmade, "how", name)
                await agent.send(Newborn.add, 1)
            for call in (agent.ask(Newborn.add, 1), agent.ask(Newborn.value)):
                with pytest.raises(
                    BadState, match=r"a new state of Newborn cannot be made: \w+.*rogues\.py:"
                ):
                    await call

            async def buried(node: Node = node, count: int = before + len(names)) -> bool:
                return len(await node.dead_letters.all()) == count

            await until(buried)
            assert (await node.inspect(f"Newborn/{mended}")).state is None
            assert await node.agent(Rogue, mended).ask(Rogue.add) == 1
            if mended == "at once":
                monkeypatch.setattr(Unmade, "how", "")
                assert await agent.ask(Newborn.value) == 0
                assert await asyncio.gather(*(agent.ask(Newborn.add, 1) for _ in range(3))) == [
                    1,
                    2,
                    3,
                ]
            assert not node._runtime.tasks.failures
        monkeypatch.setattr(Unmade, "how", "")
        async with serving(tmp_path / "log.db", *kinds) as node:
            assert await node.agent(Newborn, mended).ask(Newborn.value) == 3 * (mended == "at once")
            assert await node.agent(Newborn, mended).ask(Newborn.add, 5) == 5 + 3 * (
                mended == "at once"
            )
            assert (await node.inspect(f"Newborn/{mended}")).state["n"] == 5 + 3 * (
                mended == "at once"
            )


async def test_a_log_that_raises_fails_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Raises(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.name.startswith("holdfast"):
                raise KeyError(record.name)

    monkeypatch.setattr(limits, "BACKOFF_SECONDS_MIN", 0.001)
    monkeypatch.setattr(logging.getLogger(), "handlers", [Raises()])
    async with serving(tmp_path / "log.db", Rogue) as node:
        agent = node.agent(Rogue, "a")
        await agent.send(Rogue.at_once, "Odd")
        for way in WAYS:
            with pytest.raises(HandlerFailed):
                await agent.ask(way, "Odd")  # type: ignore[call-overload]
        await agent.ask(Rogue.remind, ["Odd"])

        async def buried() -> bool:
            return len(await node.dead_letters.all()) == 2

        await until(buried)
        assert await agent.ask(Rogue.add) == 1 and not node._runtime.tasks.failures


async def test_a_refusal_that_is_not_recorded_vouches_for_no_other_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path / "log.db", Newborn) as node:
        router = node._router
        answered = router._answered

        def late(opened: Open, reference: int, outcome: int, payload: bytes) -> None:
            opened.unanswered |= 1  # another attempt is on its way
            answered(opened, reference, outcome, payload)

        for agent in (node.agent(Newborn, "a"), node.agent(Newborn, "b").options(message_id="id")):
            monkeypatch.setattr(Unmade, "how", "Odd")
            with pytest.raises(BadState):
                await agent.ask(Newborn.add, 1)
            with monkeypatch.context() as patch:
                patch.setattr(router, "_answered", late)
                with pytest.raises(BadState):
                    await agent.ask(Newborn.value)
                with pytest.raises(OutcomeUnknown, match=r"cannot be made: Odd.*earlier attempt"):
                    await agent.ask(Newborn.add, 1)
            monkeypatch.setattr(Unmade, "how", "")
            assert await agent.ask(Newborn.add, 1) == 1
