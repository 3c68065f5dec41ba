"""A node of which a part has ended does not limp: it ends as a whole, and tells whoever calls
why."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.agents.kinds import Counter, on, until
from tests.node.test_visits import APP, holdfast
from tests.patience import again, logged

from holdfast import (
    Agent,
    Closed,
    HoldfastError,
    Node,
    NoQuorum,
    NotDone,
    State,
    Unknown,
    handler,
    limits,
    loops,
    reader,
)
from holdfast.node.process import NodeSettings

BEGAN: list[str] = []


class Waiter(Agent[State]):
    @handler
    async def wait(self) -> None:
        BEGAN.append(self.name)
        await asyncio.Event().wait()


def parts(before: set[asyncio.Task[None]]) -> dict[str, asyncio.Task[None]]:
    """The tasks of a node, by what they run; those of its engine are the engine's own."""
    found = {}
    for task in asyncio.all_tasks() - before:
        code = getattr(task.get_coro(), "cr_code", None)
        if (
            code is not None
            and "/holdfast/" in code.co_filename
            and "/engines/" not in code.co_filename
        ):
            found[getattr(code, "co_qualname", code.co_name)] = task
    return found


@asynccontextmanager
async def joined(url: list[str]) -> AsyncIterator[tuple[Node, dict[str, asyncio.Task[None]]]]:
    before = asyncio.all_tasks()
    async with on(url, Counter, Waiter) as node:
        assert await node.agent(Counter, "a").ask(Counter.add, 1)
        yield node, parts(before)


async def lasting(url: list[str]) -> list[str]:
    """What runs in a node, once it is the same at two looks: what only a start needs has ended by
    then."""
    before = asyncio.all_tasks()

    async def the_same() -> list[str]:
        found = sorted(parts(before))
        await asyncio.sleep(0.5)
        assert sorted(parts(before)) == found
        return found

    async with joined(url):
        return await again(the_same, AssertionError)


async def test_a_part_that_is_cancelled_ends_its_node(
    url: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    names = await lasting(url)
    assert len(names) >= 7, names
    for name in (
        names
        if url[0].startswith("local")
        else ["Liveness._keep_proving", "Ownership._run", "Membership._run"]
    ):
        caplog.clear()
        async with joined(url) as (node, there):
            there[name].cancel()

            async def refused(node: Node = node) -> bool:
                try:
                    await node.agent(Counter, "a").options(timeout_seconds=5).ask(Counter.add, 1)
                except Closed as error:
                    return "has failed" in str(error) and "was cancelled" in str(error)
                except (NotDone, Unknown):
                    return False
                return False

            await until(refused)
            with pytest.raises(Closed, match="has failed"):
                await node.agent(Counter, "a").send(Counter.add, 1)
            assert f"the node {node.name} ends" in caplog.text, name
    assert await lasting(url) == names, "nothing is left of the others"


async def test_what_is_open_when_a_part_ends_is_answered(url: list[str]) -> None:
    BEGAN.clear()
    async with joined(url) as (node, there):
        agents = [node.agent(Waiter, f"{n}").options(timeout_seconds=600) for n in range(3)]
        asked = [asyncio.create_task(agent.ask(Waiter.wait)) for agent in agents]
        async with asyncio.timeout(240):
            while len(BEGAN) < len(asked):
                await asyncio.sleep(0.01)
        there["Ownership._run"].cancel()
        for one in asked:
            with pytest.raises((Closed, Unknown), match="has failed"):
                async with asyncio.timeout(240):
                    await one


async def test_a_node_that_is_closed_in_order_says_nothing(
    url: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    async with joined(url) as (_, there):
        assert there
    assert not logged(caplog)


async def test_whoever_closes_a_node_waits_for_its_turns(tmp_path: Path) -> None:
    async with on([f"local:{tmp_path / 'log.db'}"], Counter) as node:
        asked = asyncio.create_task(node.agent(Counter, "a").ask(Counter.slow, 0.3))

        async def runs() -> bool:
            return any(one.running for one in node._runtime.resident.values())

        await until(runs)
        given_up, one, other = (asyncio.create_task(node.close()) for _ in range(3))
        await asyncio.sleep(0)
        given_up.cancel()
        await node.close()
        assert await asked == 1, "the turn was finished, and its caller was told"
        await asyncio.gather(one, other)


PROGRAM = """
import asyncio, logging, sys
from holdfast import Agent, Node, State, handler, limits, run

# A machine without time is told of stalls, and of tasks that take long to end.
logging.getLogger("holdfast.serving.stalls").disabled = True
limits.LEFT_SECONDS = 60.0

class Greeter(Agent[State]):
    @handler
    async def greet(self) -> int:
        return 1

async def main():
    urls = sys.argv[2].split()
    founds = {} if urls[0].startswith("local:") else {"found": True, "replicas": 3}
    node = await Node.open(urls, serve=[Greeter], **founds)
    await node.agent(Greeter, "a").ask(Greeter.greet)
    raise ValueError("an error of the program's")

(run if sys.argv[1] == "run" else asyncio.run)(main())
"""


@pytest.mark.parametrize("runs", ["run", "asyncio.run"])
def test_a_program_that_fails_without_closing_its_node_shows_its_own_error(
    url: list[str], runs: str
) -> None:
    command = [sys.executable, "-c", PROGRAM, runs, " ".join(url)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert ended.returncode == 1 and ended.stderr.endswith(
        "ValueError: an error of the program's\n"
    ), ended.stderr
    said, _, _ = ended.stderr.partition("Traceback")
    assert (
        said.startswith("the program ended, and did not close the node ") and said.count("\n") == 1
    ), ended.stderr
    assert ended.stderr.count("Traceback") == 1 and not ended.stdout, ended.stderr


FAMILY = """
import asyncio, sys
from holdfast import Node, run

class Family(Agent[State]):
    @handler
    async def beget(self, exits: bool) -> None:
        async def child() -> None:
            if exits:
                sys.exit(3)
            raise KeyboardInterrupt("as told")

        await asyncio.gather(child())

async def serve() -> None:
    async with Node.join("local:dev.db", serve=[Adder, Family]):
        print("serving", flush=True)
        await asyncio.sleep(600)

if __name__ == "__main__":
    run(serve())
"""


@pytest.mark.parametrize(
    "program", ["-m holdfast run app.py --at local:dev.db", "-m holdfast.node", "app.py"]
)
def test_a_task_of_a_turn_ends_no_program_on_a_loop_of_ours(tmp_path: Path, program: str) -> None:
    (tmp_path / "app.py").write_text(APP + FAMILY)
    with subprocess.Popen(
        [sys.executable, *program.split()],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdin is not None and process.stdout is not None
            if program.endswith("node"):
                settings = NodeSettings(["local:dev.db"], os.getpid(), apps=["app.py"])
                process.stdin.write(msgspec.json.encode(settings).decode() + "\n")
                process.stdin.flush()
            said = process.stdout.readline()
            assert "serving" in said or "ready" in said
            assert holdfast(tmp_path, "call", "Adder/a", "add").strip() == "1"
            for exits, error in (
                ("true", "SystemExit: 3"),
                ("false", "KeyboardInterrupt: as told"),
            ):
                told = holdfast(tmp_path, "call", "Family/a", "beget", exits, code=1)
                assert "HandlerFailed" in told and error in told
            assert holdfast(tmp_path, "call", "Adder/a", "add").strip() == "2"
            assert process.poll() is None
        finally:
            process.kill()


class Stubborn(Agent[State]):
    ends = asyncio.Event()

    async def goes_on(self) -> None:
        BEGAN.append(self.name)
        while not self.ends.is_set():
            with suppress(asyncio.CancelledError):
                await self.ends.wait()

    @handler
    async def handle(self) -> None:
        await self.goes_on()

    @reader
    async def read(self) -> None:
        await self.goes_on()


@pytest.mark.parametrize("method", [Stubborn.handle, Stubborn.read])
async def test_a_handler_that_swallows_each_cancellation_keeps_no_node_open(
    tmp_path: Path, method: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "DRAIN_SECONDS", 0.1)
    monkeypatch.setattr(limits, "CANCELLED_SECONDS", 5.0)  # long enough for all others to end
    BEGAN.clear()
    Stubborn.ends = asyncio.Event()
    before = asyncio.all_tasks()
    node = await Node.open(f"local:{tmp_path / 'log.db'}", serve=[Stubborn])
    asked = asyncio.create_task(node.agent(Stubborn, "a").ask(method))

    async def began() -> bool:
        return bool(BEGAN)

    try:
        await until(began)
        async with asyncio.timeout(240):
            await node.close()
        with pytest.raises(HoldfastError):
            await asked
        (said,) = [
            record.getMessage()
            for record in caplog.records
            if "goes on though" in record.getMessage()
        ]
        assert said.startswith(f"Stubborn/a: {method.name} ")
    finally:
        Stubborn.ends.set()
        await asyncio.gather(*(asyncio.all_tasks() - before), return_exceptions=True)
    assert len(logged(caplog)) == 1
    async with Node.join(f"local:{tmp_path / 'log.db'}", serve=[Stubborn]):
        pass


async def test_a_part_that_cannot_be_closed_keeps_no_other_open(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    async def bad() -> None:
        raise NoQuorum("no majority")

    def raises(*_: object) -> None:
        raise SystemExit("who hears of it raises")

    monkeypatch.setattr(limits, "DRAIN_SECONDS", 3.0)
    before = asyncio.all_tasks()
    for close in (bad, never):
        async with on([f"local:{tmp_path / 'log.db'}"], Counter) as node:
            close_ownership, node._ownership.close = node._ownership.close, close  # type: ignore[method-assign]
            with monkeypatch.context() as patch, pytest.raises(SystemExit):
                patch.setattr(loops, "report", raises)
                node._parts.ending.failed("a part failed", None)
            await node.close()
            with suppress(HoldfastError):
                await close_ownership()
            assert not node._runtime.shards and node._parts.ending._failing is not None
            assert "its Ownership could not be closed" in caplog.text
            with pytest.raises(Closed, match=r"has failed \(a part failed\)"):
                await node.ready()
            with pytest.raises(Closed, match="has failed"):
                await node.agent(Counter, "a").ask(Counter.add, 1)
        caplog.clear()
    node = await Node.open(f"local:{tmp_path / 'log.db'}", serve=[Counter])
    close_ownership, node._ownership.close = node._ownership.close, bad  # type: ignore[method-assign]
    with pytest.raises(NoQuorum):
        await node.close()
    await close_ownership()
    assert not node._runtime.shards
    assert asyncio.all_tasks() <= before
    # the engine was closed as well
    async with on([f"local:{tmp_path / 'log.db'}"], Counter) as node:
        assert await node.agent(Counter, "a").ask(Counter.add, 1) == 1


async def test_a_hosts_node_that_serves_nothing_is_heard_of_as_well(tmp_path: Path) -> None:
    """Its host ends a node that says nothing for twenty seconds: `holdfast up` without an app is
    such a one."""
    async with Node.join(f"local:{tmp_path / 'log.db'}", incarnation="n-1") as node:
        heard = asyncio.Event()
        node._parts.stalls.tell = lambda what, _: heard.set() if what == "pulse" else None
        async with asyncio.timeout(240):
            await heard.wait()
