"""The page that leads from an error to its limit: each ticked row is provoked, and its text is the
one that the page gives."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.docs.snippets import ROOT

from holdfast import Agent, HandlerFailed, HoldfastError, Node, State, errors, handler, limits

ROW = re.compile(r"^\| (?P<tick>✓?) *\| (?P<errors>[^|]+)\|(?P<text>[^|]*)\|", re.MULTILINE)


class Row(NamedTuple):
    errors: tuple[str, ...]
    text: str


def rows() -> list[Row]:
    page = (ROOT / "docs" / "which-limit.md").read_text()
    return [
        Row(tuple(re.findall(r"`(\w+)`", match["errors"])), match["text"].strip().strip("`"))
        for match in ROW.finditer(page)
        if match["tick"]
    ]


WAITING: list[str] = []


class Kept(State):
    text: str = ""


class Heavy(Agent[Kept], mailbox_max=1):
    @handler
    async def take(self, text: str) -> int:
        return len(text)

    @handler
    async def reply(self, size: int) -> str:
        return "x" * size

    @handler
    async def keep(self, size: int) -> None:
        self.state.text = "x" * size

    @handler
    async def timers(self, count: int, size: int) -> None:
        for number in range(count):
            self.set_timer(f"t{number}", 1000.0, Heavy.take, "x" * size)

    @handler
    async def send_many(self, count: int, size: int) -> None:
        for _ in range(count):
            await self.agent(Heavy, "other").send(Heavy.take, "x" * size)

    @handler
    async def wait(self) -> None:
        WAITING.append(self.name)
        await asyncio.Event().wait()


async def crowd(node: Node) -> None:
    agent = node.agent(Heavy, "crowd").options(timeout_seconds=240)
    WAITING.clear()
    held = asyncio.create_task(agent.ask(Heavy.wait))
    others: list[asyncio.Task[int]] = []
    try:
        async with asyncio.timeout(240):
            # else the others are done before it, or it is the one that is refused
            while not WAITING:
                await asyncio.sleep(0.01)
        others = [asyncio.create_task(agent.ask(Heavy.take, "x")) for _ in range(5)]
        for done in asyncio.as_completed(others, timeout=300):
            await done
    finally:
        for task in (held, *others):
            task.cancel()
        await asyncio.gather(held, *others, return_exceptions=True)


async def late(node: Node) -> None:
    await node.agent(Heavy, "late").options(timeout_seconds=0.2).ask(Heavy.wait)


PROVOKE: dict[tuple[str, str], Callable[[Node], Awaitable[Any]]] = {
    ("TooLarge", "the arguments of"): lambda n: n.agent(Heavy, "a").ask(
        Heavy.take, "x" * limits.MESSAGE_BYTES_MAX
    ),
    ("TooLarge", "reply"): lambda n: n.agent(Heavy, "a").ask(Heavy.reply, limits.REPLY_BYTES_MAX),
    ("BadState", "the state of"): lambda n: n.agent(Heavy, "a").ask(
        Heavy.keep, limits.STATE_BYTES_MAX
    ),
    ("Overloaded", "timers"): lambda n: n.agent(Heavy, "a").ask(
        Heavy.timers, limits.TIMERS_MAX + 1, 1
    ),
    ("TooLarge", "timers may have"): lambda n: n.agent(Heavy, "a").ask(
        Heavy.timers, 1, limits.TIMERS_BYTES_MAX
    ),
    ("Overloaded", "messages wait for"): crowd,
    ("Overloaded", "one turn may send"): lambda n: n.agent(Heavy, "a").ask(
        Heavy.send_many, limits.TURN_RECORDS_MAX, 1
    ),
    ("TooLarge", "one turn may send"): lambda n: n.agent(Heavy, "a").ask(
        Heavy.send_many, 5, 500_000
    ),
    ("InvalidName", "bytes"): lambda n: n.agent(Heavy, "x" * (limits.NAME_BYTES_MAX + 1)).ask(
        Heavy.take, ""
    ),
    ("TooLarge", "capabilities"): lambda n: n.register(
        Heavy, "c", capabilities={f"c{number}" for number in range(limits.CAPABILITIES_MAX + 1)}
    ),
    ("TooLarge", "metadata of"): lambda n: n.register(
        Heavy, "m", metadata={"x": "x" * limits.METADATA_BYTES_MAX}
    ),
    ("DeadlineExceeded", ""): late,
}


def test_each_ticked_row_is_provoked_here() -> None:
    assert {(row.errors[0], row.text) for row in rows()} == set(PROVOKE)


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row.errors[0]} {row.text}".strip())
async def test_a_limit_is_refused_with_the_text_that_the_page_gives(
    row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if row.errors == ("BadState",):
        monkeypatch.setattr(limits, "STATE_BYTES_MAX", 10_000)  # 128 MiB take long here
    async with Node.join(f"local:{tmp_path}/log.db", serve=[Heavy]) as node:
        with pytest.raises(HoldfastError) as caught:
            await PROVOKE[row.errors[0], row.text](node)
    error = caught.value
    names = {type(error).__name__} | (
        {error.kind_of_error} if isinstance(error, HandlerFailed) else set()
    )
    assert names & set(row.errors), error
    assert row.text in str(error)
    assert all(hasattr(errors, name) for name in row.errors)
