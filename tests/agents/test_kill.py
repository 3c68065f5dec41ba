"""The process that hosts the agents is killed with kill -9 right after an acknowledgement, and
started again."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from pathlib import Path

import pytest

AGENTS = 8
HOST = """
import asyncio, json, sys
from holdfast import Node, run
from tests.agents.kinds import Counter

async def main(path, agents):
    async with Node.join(f"local:{path}", serve=[Counter]) as node:
        await node.ready()
        refs = [node.agent(Counter, f"a{n}") for n in range(agents)]
        print(json.dumps([await ref.ask(Counter.value) for ref in refs]), flush=True)

        async def work(number):
            while True:
                value = await refs[number].ask(Counter.add, 1)
                print(json.dumps([number, value]), flush=True)
                await refs[number].send(Counter.note, str(value))

        await asyncio.gather(*map(work, range(agents)))

run(main(sys.argv[1], int(sys.argv[2])))
"""


async def kill_after_ack(path: Path, trials: int) -> None:
    root = Path(__file__).parents[2]
    acknowledged = [0] * AGENTS
    for trial in range(trials + 1):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            HOST,
            str(path),
            str(AGENTS),
            stdout=asyncio.subprocess.PIPE,
            cwd=root,
        )
        assert process.stdout is not None
        found = json.loads(await process.stdout.readline())
        for number, value in enumerate(found):
            # What was acknowledged is there, once; the one call that was under way may be there as
            # well.
            assert acknowledged[number] <= value <= acknowledged[number] + 1, (
                f"agent {number} in trial {trial}"
            )
        acknowledged = found
        for _ in range(random.randrange(1, 200)):
            number, value = json.loads(await process.stdout.readline())
            assert value == acknowledged[number] + 1
            acknowledged[number] = value
        process.kill()
        for line in (await process.stdout.read()).splitlines(keepends=True):
            if line.endswith(b"\n"):
                number, value = json.loads(line)
                acknowledged[number] = value
        await process.wait()
    assert sum(acknowledged) > trials


async def test_kill_9_right_after_an_acknowledgement(tmp_path: Path) -> None:
    await kill_after_ack(tmp_path / "log.db", 6)


@pytest.mark.soak
@pytest.mark.timeout(2400)
async def test_five_hundred_times_kill_9(tmp_path: Path) -> None:
    await kill_after_ack(tmp_path / "log.db", 500)
