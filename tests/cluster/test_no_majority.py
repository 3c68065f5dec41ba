"""Every command answers in every state of the cluster: with all hosts, with one lost, without a
majority, without a server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio

from holdfast import LocalCluster, Node, NoQuorum

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(900),
]
APP = str(Path(__file__).parent / "app.py")
HANGS_SECONDS = 240.0
"""A command that takes longer hangs: each has a deadline of 30 s or less, and takes some 2 s on a
machine with time."""

_AT_ONCE = 2

COMMANDS = [
    ["status"],
    ["hosts"],
    ["events"],
    ["agents", "list"],
    ["call", "Account/a", "value"],
    ["send", "Account/a", "add", "1"],
    ["dead-letters", "list"],
    ["cohort", "show"],
    ["cohort", "set", "h1,h2,h3"],
    ["backup", "create", "never.backup"],
    ["cordon", "h1"],
    ["scrub"],
    ["found", "--replicas", "3"],
]


class Answer(NamedTuple):
    """What a command said."""

    code: int
    text: str


async def run(*arguments: str, at: Sequence[str], seconds: float = HANGS_SECONDS) -> Answer:
    """Run a command; it must end by itself."""
    command = [str(Path(sys.executable).parent / "holdfast"), *arguments, "--at", ",".join(at)]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, cwd="/tmp")
    try:
        async with asyncio.timeout(seconds):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        pytest.fail(f"{' '.join(arguments)} hangs")
    assert process.returncode is not None
    return Answer(
        process.returncode, out.decode() + ("" if "--json" in arguments and out else err.decode())
    )


async def status(at: Sequence[str], code: int) -> Any:
    answer = await run("status", "--json", at=at)
    assert answer.code == code, answer
    return json.loads(answer.text)


async def becomes(at: Sequence[str], state: str) -> Any:
    """The status, once it is in a state."""
    async with asyncio.timeout(240):
        while True:
            answer = await run("status", "--json", at=at)
            found = json.loads(answer.text)
            if found.get("state") == state:
                assert answer.code == {"well": 0, "degraded": 1, "down": 3}[state]
                return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalCluster]:
    async with LocalCluster(tmp_path_factory.mktemp("hosts"), [APP]) as made:
        yield made


def gone(found: Any) -> dict[str, bool]:
    """The hosts that are gone, and whether it is said since when."""
    return {host["name"]: host["since"] is not None for host in found["hosts"] if not host["up"]}


async def test_all_is_well(cluster: LocalCluster) -> None:
    found = await becomes(cluster.urls, "well")
    assert [host["name"] for host in found["hosts"]] == ["h1", "h2", "h3"] and gone(found) == {}
    assert found["served"] == found["shards"] == 128 and found["copies"] == found["voters"] == 3
    assert (await run("call", "Account/a", "add", "7", at=cluster.urls)).text.strip() == "7"


async def test_a_host_that_is_lost_is_named_and_the_others_serve(cluster: LocalCluster) -> None:
    await cluster.kill_host("h3")
    async with asyncio.timeout(240):
        while (found := await becomes(cluster.urls[:1], "degraded"))["served"] < 128 or gone(
            found
        ) != {"h3": True}:
            pass
    assert gone(found) == {"h3": True} and len(found["hosts"]) == 3
    # a host that does not answer a look within a second is not counted in it
    async with asyncio.timeout(240):
        while (
            "hosts 2 of 3 up; h3 is gone since"
            not in (await run("status", at=cluster.urls[:1])).text
        ):
            pass
    assert {node["host"] for node in found["nodes"]} == {"h1", "h2"}, (
        "shards are counted where they are served"
    )
    # Two of three servers that are tried first are not there.
    assert (
        await run(
            "call",
            "Account/a",
            "value",
            at=[cluster.urls[2], "nats://127.0.0.1:1", cluster.urls[0]],
        )
    ).text == "7\n"


async def test_without_a_majority_every_command_says_who_is_gone(cluster: LocalCluster) -> None:
    await cluster.kill_host("h2")
    found = await becomes(cluster.urls[:1], "down")
    async with asyncio.timeout(240):
        # a host is missed before a node knows that it is cut off
        while "h2" not in gone(found) or found["served"]:
            found = await status(cluster.urls[:1], 3)
    assert gone(found) == {"h2": True, "h3": True} and found["served"] == 0

    async def names_both(command: Sequence[str]) -> Answer:
        """A host that does not answer a look within a second knows nothing in it: then the command
        is repeated."""
        end = asyncio.get_running_loop().time() + 240
        while True:
            answer = await run(*command, at=cluster.urls[:1])
            named = all(f"{name} is gone since" in answer.text for name in ("h2", "h3"))
            if named or asyncio.get_running_loop().time() > end:
                return answer

    for n in range(0, len(COMMANDS), _AT_ONCE):
        some = COMMANDS[n : n + _AT_ONCE]
        for command, answer in zip(some, await asyncio.gather(*map(names_both, some)), strict=True):
            assert answer.code == 3, (command, answer)
            for name in ("h2", "h3"):
                assert f"{name} is gone since" in answer.text, (command, answer)
    rows = json.loads((await run("hosts", "--json", at=cluster.urls[:1])).text)
    assert {row["name"]: row["state"] for row in rows} == {
        "h1": "member",
        "h2": "gone",
        "h3": "gone",
    }
    for timeout in (0.5, 3.0):
        with pytest.raises(NoQuorum, match=f"within {timeout:g} s"):
            async with Node.join(cluster.urls, timeout_seconds=timeout):
                pass


async def test_without_any_server_every_command_says_so(cluster: LocalCluster) -> None:
    frozen = cluster.server_pid("h1")

    async def says_what_is_wrong(command: Sequence[str]) -> Answer:
        """Its host ends a server that stands still, and starts another one. In between it may not
        be heard: then the command is repeated."""
        end = asyncio.get_running_loop().time() + 240
        while True:
            answer = await run(*command, at=cluster.urls)
            assert answer.code == 3 and "by no Holdfast host" not in answer.text, answer
            said = "no server answers" in answer.text or "h2 is gone since" in answer.text
            if said or asyncio.get_running_loop().time() > end:
                return answer

    os.kill(frozen, signal.SIGSTOP)
    try:
        for answer in await asyncio.gather(
            *map(says_what_is_wrong, (["status"], ["hosts"], COMMANDS[4]))
        ):
            assert "no server answers" in answer.text or "h2 is gone since" in answer.text, answer
        with pytest.raises(NoQuorum):
            async with Node.join(cluster.urls[0], timeout_seconds=0.5):
                pass
    finally:
        with suppress(ProcessLookupError):
            os.kill(frozen, signal.SIGCONT)
    await cluster.kill_host("h1")
    *answers, soon = await asyncio.gather(
        *(run(*one, at=cluster.urls) for one in COMMANDS[:3]),
        run("call", "Account/a", "value", "--timeout", "0.2", at=cluster.urls),
    )
    for answer in answers:
        assert answer.code == 3 and "no server answers" in answer.text, answer
    assert soon.code == 3, soon


async def test_who_waits_gets_an_answer_when_all_is_back(cluster: LocalCluster) -> None:
    call = ("call", "Account/a", "value", "--wait", "--timeout", "240")
    waiting = asyncio.create_task(run(*call, at=cluster.urls, seconds=300))
    await cluster.start()
    answer = await waiting
    assert answer.code == 0 and answer.text.strip().endswith("7"), answer
    assert gone(await becomes(cluster.urls, "well")) == {}
