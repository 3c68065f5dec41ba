"""Worker processes: what their code prints is text, what breaks one stays with it, and a broken one
is replaced."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.agents.kinds import Counter, serving, until
from tests.agents.workshop import Neighbour, Workshop

from holdfast import HandlerFailed, Node, limits
from holdfast.children import PROCESSORS
from holdfast.serving.workers import pool, soundness

on_one_loop = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    async with serving(
        tmp_path_factory.mktemp("workers") / "log.db", Workshop, Neighbour, Counter
    ) as made:
        yield made


def agent(node: Node, name: str) -> Any:
    return node.agent(Workshop, name)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@on_one_loop
async def test_what_a_worker_prints_is_shown_with_its_agent(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    await agent(node, "one").ask(Workshop.say, "1")
    await agent(node, "two").ask(Workshop.say, "[/2] \x1b[31m")
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "Workshop/one: 1",
        "Workshop/one: raw \\xff 1",
        "Workshop/two: [/2] \\x1b[31m",
        "Workshop/two: raw \\xff [/2] \\x1b[31m",
    ]
    assert (
        "Workshop/one: err 1" in printed.err
        and "Workshop/one: WARNING workshop: logged 1" in printed.err
    )


@on_one_loop
async def test_programs_may_print_as_much_as_they_like(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (await agent(node, "git").ask(Workshop.programs)).startswith("git version")
    printed = capsys.readouterr()
    assert "Workshop/git: git version" in printed.out and "... 291808 more" in printed.out
    assert "Workshop/git: yyyy" in printed.err
    assert await agent(node, "git").ask(Workshop.read_input) == ""


@pytest.mark.parametrize("fail", [False, True])
@on_one_loop
async def test_what_a_job_changed_is_put_back(node: Node, fail: bool) -> None:
    before, process = (
        await agent(node, "a").ask(Workshop.looks),
        await agent(node, "a").ask(Workshop.process),
    )
    if fail:
        with pytest.raises(HandlerFailed, match="after all that"):
            await agent(node, "b").ask(Workshop.leave_behind, True)
    else:
        assert await agent(node, "b").ask(Workshop.leave_behind, False) == process
    assert await agent(node, "a").ask(Workshop.looks) == before
    assert await agent(node, "a").ask(Workshop.process) == process


@pytest.mark.parametrize("what", ["thread", "program", "limit", "priority", "stdout", "word"])
@on_one_loop
async def test_what_cannot_be_put_back_ends_the_process(
    node: Node, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    process = await agent(node, "leaver").ask(Workshop.leave, what)
    assert await agent(node, "a").ask(Workshop.process) != process
    assert "is replaced" in caplog.text
    await until(lambda: _gone(process))
    if what == "program":
        program = await agent(node, "leaver").ask(Workshop.number)
        await until(lambda: _gone(program))
    if what == "word":
        assert "the library lost its connection" in caplog.text


async def _gone(pid: int) -> bool:
    return not runs(pid)


@on_one_loop
async def test_a_daemon_thread_and_a_program_that_ended_are_no_reason(node: Node) -> None:
    process = await agent(node, "leaver").ask(Workshop.leave, "nothing")
    assert await agent(node, "a").ask(Workshop.process) == process


@on_one_loop
async def test_elsewhere_nothing_can_be_said_to_be_broken(node: Node) -> None:
    assert await agent(node, "a").ask(Workshop.say_broken_here) is False


@on_one_loop
async def test_kinds_share_no_process(node: Node) -> None:
    processes = {
        await agent(node, "a").ask(Workshop.process),
        await node.agent(Neighbour, "a").ask(Neighbour.process),
    }
    assert len(processes) == 2 and processes == {
        await agent(node, "b").ask(Workshop.process),
        await node.agent(Neighbour, "b").ask(Neighbour.process),
    }


@on_one_loop
async def test_a_broken_device_harms_nobody_else(node: Node) -> None:
    """The error that says so may be the cause of another one."""
    neighbour = await node.agent(Neighbour, "a").ask(Neighbour.process)
    process = await agent(node, "a").ask(Workshop.use_device, 1)
    with pytest.raises(HandlerFailed, match="99") as failed:
        await agent(node, "bad").ask(Workshop.use_device, 99)
    assert failed.value.kind_of_error == "KeyError"
    for name in "abcdef":
        assert await agent(node, name).ask(Workshop.use_device, 1) != process
    assert await node.agent(Neighbour, "b").ask(Neighbour.process) == neighbour


@pytest.mark.parametrize("kind", ["plain", "group"])
@on_one_loop
async def test_the_same_error_of_two_agents_in_a_row_replaces_the_process(
    node: Node, kind: str
) -> None:
    process = await agent(node, "a").ask(Workshop.use_library, kind)
    for name, first in (("a", True), ("a", False), ("b", False)):
        with pytest.raises(HandlerFailed, match="connection is gone"):
            await agent(node, name).ask(Workshop.use_library, kind, first)
    assert await agent(node, "c").ask(Workshop.use_library, kind) != process


@on_one_loop
async def test_what_every_process_raises_replaces_one_process_at_most(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "WORKER_DOUBT_SECONDS", 1000.0)
    processes = set()
    for number in range(12):
        with pytest.raises(HandlerFailed, match="no such product"):
            await agent(node, f"refused-{number}").ask(Workshop.refuse)
        if number % 2:
            processes.add(await agent(node, "a").ask(Workshop.process))
    for number in range(12):
        with pytest.raises(HandlerFailed, match="no such product"):
            await agent(node, f"refused-{number}").ask(Workshop.refuse)
    assert len({*processes, await agent(node, "a").ask(Workshop.process)}) <= 2


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("kill", r"Workshop\.end was killed by signal 9 \(SIGKILL: out of memory\?\)"),
        ("kill-with-forks", "was killed by signal 9"),
        ("segfault", r"was killed by signal 11 \(SIGSEGV\)"),
        ("exit", "ended with code 7"),
        ("close", "ended with code 1"),
        ("garbage", "said what cannot be read"),
        ("long", "said what cannot be read .*4294967295 bytes"),
        ("system-exit", "enough"),
        ("interrupt", "KeyboardInterrupt"),
        ("bad-text", "_Unprintable"),
    ],
)
@on_one_loop
async def test_whatever_ends_a_worker_fails_that_message_alone(
    node: Node, how: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how != "kill-with-forks":  # they keep its pipes open, so it is waited for as long as this
        monkeypatch.setattr(limits, "WORKER_CLOSE_SECONDS", 240.0)
    with pytest.raises(HandlerFailed, match=text):
        await agent(node, "ender").ask(Workshop.end, how)
    assert await agent(node, f"after-{how}").ask(Workshop.add) == 1


@on_one_loop
async def test_a_process_that_died_with_nothing_to_do_fails_no_message(node: Node) -> None:
    process = await agent(node, "a").ask(Workshop.process)
    os.kill(process, signal.SIGKILL)
    assert await agent(node, "a").ask(Workshop.process) != process
    frozen = await agent(node, "a").ask(Workshop.process)
    os.kill(frozen, signal.SIGSTOP)
    asked = asyncio.create_task(agent(node, "a").ask(Workshop.process))
    await until(lambda: _is_stopped(frozen))
    os.kill(frozen, signal.SIGKILL)  # the job was handed to it, and not begun
    assert await asked != frozen


async def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@on_one_loop
async def test_a_stuck_process_is_found_and_replaced(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = await agent(node, "a").ask(Workshop.process)
    monkeypatch.setattr(limits, "WORKER_BEGIN_SECONDS", 0.5)
    monkeypatch.setattr(limits, "WORKER_ATTEMPTS_MAX", 50)  # a new one may not begin so soon either
    os.kill(process, signal.SIGSTOP)
    asked = asyncio.create_task(agent(node, "a").ask(Workshop.process))
    await until(lambda: _gone(process))
    monkeypatch.undo()
    assert await asked != process
    monkeypatch.setattr(limits, "WORKER_GRACE_SECONDS", 0.1)
    with suppress(Exception):
        await agent(node, "slow").options(timeout_seconds=0.5).ask(Workshop.sleep, 3600.0)
    async with asyncio.timeout(240):
        assert await agent(node, "slow").ask(Workshop.add) == 1


@on_one_loop
async def test_more_jobs_than_processes_wait_and_few_processes_are_kept(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asyncio.gather(*(agent(node, f"many-{n}").ask(Workshop.add) for n in range(20)))
    processes = {await agent(node, f"many-{n}").ask(Workshop.process) for n in range(20)}
    assert len(processes) <= PROCESSORS
    pool = node._runtime.workers._processes
    assert pool is not None and len(pool._timers) <= PROCESSORS * 2
    monkeypatch.setattr(limits, "WORKERS_IDLE_MAX", 1)
    await agent(node, "a").ask(Workshop.process)
    await node.agent(Neighbour, "a").ask(Neighbour.process)

    async def one_is_left() -> bool:
        return len(pool._timers) == 1

    await until(one_is_left)
    monkeypatch.setattr(limits, "WORKER_IDLE_SECONDS", 0.05)
    last = await node.agent(Neighbour, "a").ask(Neighbour.process)
    await until(lambda: _gone(last))


def test_what_says_that_a_process_is_broken() -> None:
    class CudaError(Exception):
        pass

    class Inner(CudaError):
        pass

    def chained(error: Exception, cause: Exception) -> Exception:
        error.__cause__ = cause
        return error

    for error in (
        MemoryError(),
        Inner("x"),
        chained(KeyError(), chained(ValueError(), Inner())),
        ExceptionGroup("several", [ValueError(), ExceptionGroup("inner", [MemoryError()])]),
        RuntimeError("CUDA error: device-side assert triggered"),
    ):
        assert soundness.why_broken(error), error
    loop = ValueError()
    loop.__cause__ = loop
    for harmless in (
        None,
        ValueError("CUDA error"),
        loop,
        OSError("gone"),
        ExceptionGroup("g", [KeyError()]),
    ):
        assert not soundness.why_broken(harmless), harmless


APP = """
from holdfast import Agent, State, handler, reader
import os
class Count(State):
    n: int = 0
class {name}(Agent[Count]):
    @handler(runs_in="process")
    async def who(self) -> str:
        import helper
        return f"{name} {{os.path.basename(os.path.dirname(__file__))}} {{helper.NAME}}"
"""
PROGRAM = """
import asyncio, sys
from holdfast import Node
from holdfast.node.loading import load_agents
async def main():
    apps = sys.argv[2:]
    kinds = [cls for app in apps for cls in load_agents(app)]
    async with Node.join("local:" + sys.argv[1], serve=kinds) as node:
        for cls in kinds:
            print(await node.agent(cls, "x").ask(cls.who), flush=True)
if __name__ == "__main__":
    asyncio.run(main())
"""


def run_program(directory: Path, text: str, *arguments: str) -> list[str]:
    (directory / "program.py").write_text(textwrap.dedent(text))
    done = subprocess.run(
        [sys.executable, "program.py", *arguments],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_applications_with_one_name_and_files_called_like_modules(tmp_path: Path) -> None:
    """Two ``app.py``, and in the working directory files called like modules of the standard
    library."""
    for name, helper in (("a", "one"), ("b", "one"), ("c", "one")):
        (tmp_path / name).mkdir()
        (tmp_path / name / ("random.py" if name == "c" else "app.py")).write_text(
            APP.format(name=name.upper())
        )
        (tmp_path / name / "helper.py").write_text(f"NAME = {helper!r}")
    for module in ("queue", "socket", "msgspec"):
        (tmp_path / "a" / f"{module}.py").write_text("raise RuntimeError('the wrong one')")
    apps = ["a/app.py", "b/app.py", "c/random.py"]
    assert run_program(tmp_path, PROGRAM, "log.db", *apps) == ["A a one", "B b one", "C c one"]


def test_a_class_of_the_program_itself(tmp_path: Path) -> None:
    text = (
        APP.format(name="Main").replace("import helper", "").replace("{helper.NAME}", "{__name__}")
        + """
import asyncio
from holdfast import Node
async def main():
    async with Node.join("local:log.db", serve=[Main]) as node:
        print(await node.agent(Main, "x").ask(Main.who))
if __name__ == "__main__":
    asyncio.run(main())
"""
    )
    assert run_program(tmp_path, text)[0].split()[0::2] == ["Main", "__mp_main__"]


def test_a_class_of_a_command_is_refused_in_words(tmp_path: Path) -> None:
    text = textwrap.dedent(APP.format(name="Main").replace("import helper", ""))
    text += textwrap.dedent("""
        import asyncio
        from holdfast import Node, HandlerFailed
        async def main():
            async with Node.join("local:log.db", serve=[Main]) as node:
                try:
                    await node.agent(Main, "x").ask(Main.who)
                except HandlerFailed as error:
                    print(error)
        asyncio.run(main())
    """)
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=tmp_path, capture_output=True, text=True, timeout=400
    )
    assert "put it into a file" in done.stdout, done.stdout + done.stderr


def test_workers_end_with_their_node(tmp_path: Path) -> None:
    text = """
import asyncio, os, sys
sys.path.insert(0, sys.argv[1])
from holdfast import Node
from tests.agents.workshop import Workshop
async def main():
    async with Node.join("local:log.db", serve=[Workshop]) as node:
        print(await node.agent(Workshop, "x").ask(Workshop.process), flush=True)
        if sys.argv[2] == "kill":
            await node.agent(Workshop, "x").ask(Workshop.sleep, 3600.0)
asyncio.run(main())
"""
    (tmp_path / "program.py").write_text(text)
    for how in ("kill", "close"):
        command = [sys.executable, "program.py", str(Path(__file__).parents[2]), how]
        program = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        assert program.stdout is not None
        worker = int(program.stdout.readline())
        if how == "kill":
            assert runs(worker)
            program.kill()
        program.wait(240)
        program.stdout.close()
        asyncio.run(until(lambda: _gone(worker)))  # noqa: B023


@pytest.mark.skipif(
    not Path("/proc/self/fd").exists(), reason="counts files where the system shows them"
)
async def test_a_process_that_cannot_be_spoken_to_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[asyncio.subprocess.Process] = []
    start = asyncio.create_subprocess_exec

    async def starting(*args: Any, **options: Any) -> asyncio.subprocess.Process:
        started.append(await start(*args, **options))
        return started[-1]

    async def no_connection(**_: Any) -> None:
        raise OSError("too many open files")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", starting)
    monkeypatch.setattr(asyncio, "open_unix_connection", no_connection)
    with pytest.raises(OSError, match="too many"):
        await pool._start()
    assert started[-1].returncode is not None
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError, match="too many"):
        await pool._start()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
