"""The end of a program waits for nobody for ever, and says who goes on."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from holdfast import loops, run

PROGRAM = """
import asyncio, logging, sys
from holdfast import limits, run

limits.LEFT_SECONDS = 2.0
logging.basicConfig(level=logging.WARNING, format="%(message)s")

async def swallow(error):
    while True:
        try:
            await asyncio.sleep(600)
        except error:
            pass

async def beget(error):
    try:
        await asyncio.sleep(600)
    finally:
        asyncio.create_task(swallow(error), name="child")

async def generate(error):
    try:
        yield 1
    finally:
        await swallow(error)

async def clean():
    try:
        await asyncio.sleep(600)
    finally:
        await asyncio.sleep(0.01)
        print("cleaned")

async def main(error):
    works = (swallow(error), beget(error), clean())
    tasks = [asyncio.create_task(work, name=work.__name__) for work in works]
    generated = generate(error)
    await anext(generated)
    run.kept = tasks, generated
    return "done"

print(run(main(eval(sys.argv[1]))))
"""


@pytest.mark.parametrize("error", ["asyncio.CancelledError", "BaseException"])
def test_a_program_ends_whatever_its_tasks_do_with_their_cancellation(error: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, error],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (0, "cleaned\ndone\n"), ran.stderr
    for name in ("swallow", "child"):
        assert f"{name} goes on though it was cancelled, and is left to itself" in ran.stderr
    assert "Traceback" not in ran.stderr and "destroyed" not in ran.stderr


@pytest.mark.parametrize(
    "closing", [RuntimeError("Cannot close a running event loop"), asyncio.CancelledError()]
)
def test_a_ctrl_c_in_the_end_is_what_comes_out_though_the_loop_cannot_be_closed(
    closing: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> int:
        return 1

    async def interrupted() -> None:
        raise KeyboardInterrupt

    close = asyncio.Runner.close

    def failing(runner: asyncio.Runner) -> None:
        close(runner)
        raise closing

    monkeypatch.setattr(asyncio.Runner, "close", failing)
    with pytest.raises(type(closing)):
        run(main())
    monkeypatch.setattr(loops, "_end_all", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(main())
