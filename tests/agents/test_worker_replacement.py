"""When the same error of two agents in a row replaces their worker process: whatever broke it, and
never in vain for long."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.agents.kinds import serving, until
from tests.agents.workshop import Workshop

from holdfast import HandlerFailed, Node, limits
from holdfast.serving.workers import pool
from holdfast.serving.workers.channel import Failed

REPLACED = "the jobs of two agents in a row raised"


def agent(node: Node, name: str) -> Any:
    return node.agent(Workshop, name)


async def lose(node: Node, name: str, first: bool = False) -> None:
    """A job that finds the library's connection gone. ``first``: it is the one that loses it."""
    with pytest.raises(HandlerFailed, match="connection is gone"):
        await agent(node, name).ask(Workshop.use_library, "plain", first)


async def test_a_process_that_breaks_with_its_first_job_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path / "log.db", Workshop) as node:
        await lose(node, "a", first=True)
        await lose(node, "b")
        process = await agent(node, "c").ask(Workshop.use_library, "plain")
        assert await agent(node, "a").ask(Workshop.use_library, "plain") == process, (
            "the one that broke it, as well"
        )
    assert caplog.text.count(REPLACED) == 1


async def test_a_replacement_that_breaks_as_well_is_replaced_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is away for a while breaks one process after the other, each with its first
    job."""
    monkeypatch.setattr(limits, "WORKER_DOUBT_SECONDS", 1.0)
    monkeypatch.setattr(limits, "WORKER_CODE_SECONDS", 4.0)
    async with serving(tmp_path / "log.db", Workshop) as node:
        await lose(node, "a", first=True)
        await lose(node, "b")
        await lose(node, "c", first=True)
        names = (f"later-{number}" for number in count())

        async def is_served() -> bool:
            try:
                return bool(await agent(node, next(names)).ask(Workshop.use_library, "plain"))
            except HandlerFailed:
                return False

        await until(is_served)


async def test_an_error_of_the_code_replaces_one_process_and_no_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though each of its processes begins with it, and the minute after the replacement is over."""
    monkeypatch.setattr(limits, "WORKER_DOUBT_SECONDS", 0.0)
    async with serving(tmp_path / "log.db", Workshop) as node:
        for number in range(20):
            with pytest.raises(HandlerFailed, match="no such product"):
                await agent(node, f"refused-{number}").ask(Workshop.refuse)
    assert caplog.text.count(REPLACED) == 1


def test_how_often_the_same_error_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("holdfast.serving.workers.pool.time.monotonic", lambda: now)
    kind = pool._Kind()

    def failed(
        cause: str,
        agent_id: str = "K/b",
        last: tuple[str, str] = ("", ""),
        jobs: int = 9,
        started: float = 0.0,
    ) -> bool:
        worker: Any = SimpleNamespace(
            agent_id=agent_id, last_failure=last, jobs=jobs, started=started
        )
        return kind.suspects(worker, Failed(("HandlerFailed", "", "", ""), cause))

    def again(cause: str = "gone") -> bool:
        return failed(cause, last=(cause, "K/a"))

    assert again()
    assert not again(), "within the same minute"
    assert not failed("gone", "K/a", ("gone", "K/a")) and not failed("gone", last=("other", "K/a"))
    assert not failed("", last=("", "K/a")), "an error of ours"
    assert not failed("gone", jobs=1, started=now - 1), "not started since then: it proves nothing"
    now += limits.WORKER_DOUBT_SECONDS
    assert again()

    replaced = now
    now += limits.WORKER_CODE_SECONDS / 2
    assert not failed("gone", jobs=1, started=now) and not again(), (
        "a new process raised it as well"
    )
    now = replaced + limits.WORKER_CODE_SECONDS - 1
    assert not failed("gone", jobs=1, started=now) and not again(), "it adds nothing to the time"
    now += 1
    assert again(), "it may be a break, after all"
    now += limits.WORKER_CODE_SECONDS
    assert not failed("gone", jobs=1, started=now) and again(), "what was long ago says nothing"

    for number in range(limits.WORKER_CAUSES_MAX * 2):
        assert not failed(f"first-{number}", jobs=1, started=now)
    assert list(kind._causes) == ["gone"], "nothing was replaced for the others"
    for number in range(limits.WORKER_CAUSES_MAX):
        assert again(f"{number}")
    assert len(kind._causes) == limits.WORKER_CAUSES_MAX
    assert again(), "it is forgotten"
