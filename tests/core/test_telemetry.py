"""What happens inside is told to whoever listens: every event of the table, and only those."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.patience import logged

from holdfast import Agent, HandlerFailed, Node, State, handler, limits, reader, telemetry

DOCS = Path(__file__).parents[2] / "docs" / "telemetry.md"


class Words(State):
    text: str = ""


class Writer(Agent[Words]):
    @handler
    async def add(self, text: str) -> int:
        self.state.text += text
        return len(self.state.text)

    @handler
    async def grow(self, size: int) -> None:
        self.state.text = "x" * size

    @handler
    async def later(self, text: str) -> int:
        return await self.agent(Writer, text).ask(Writer.add, text)

    @handler
    async def fail(self) -> None:
        raise ValueError("no")

    @reader
    async def length(self) -> int:
        return len(self.state.text)

    @reader(runs_in="thread")
    async def slowly(self) -> int:
        return len(self.state.text)

    @reader
    async def raises(self) -> None:
        raise KeyError("no")


Told = list[tuple[str, float, dict[str, Any]]]


@pytest.fixture
def told() -> Iterator[Told]:
    heard: Told = []

    def listener(event: str, seconds: float, facts: Mapping[str, Any]) -> None:
        heard.append((event, seconds, dict(facts)))

    end = telemetry.listen(listener)
    yield heard
    end()


def turns(told: Told) -> list[tuple[str, str, str]]:
    return [
        (facts["agent"], facts["handler"], facts["outcome"])
        for event, _, facts in told
        if event == "turn"
    ]


async def test_each_turn_is_told_of_once(tmp_path: Path, told: Told) -> None:
    async with Node.join(f"local:{tmp_path}/log.db", serve=[Writer]) as node:
        agent = node.agent(Writer, "a")
        assert await agent.ask(Writer.add, "x") == 1
        assert await agent.ask(Writer.add, "x") == 2  # now it is in memory and at rest
        assert await agent.ask(Writer.later, "b") == 1
        assert await agent.ask(Writer.length) == await agent.ask(Writer.slowly) == 2
        with pytest.raises(HandlerFailed):
            await agent.ask(Writer.fail)
        with pytest.raises(HandlerFailed):
            await agent.ask(Writer.raises)
    assert turns(told) == [
        ("Writer/a", "add", "ok"),
        ("Writer/a", "add", "ok"),
        ("Writer/b", "add", "ok"),
        ("Writer/a", "later", "ok"),
        ("Writer/a", "length", "ok"),
        ("Writer/a", "slowly", "ok"),
        ("Writer/a", "fail", "ValueError"),
        ("Writer/a", "raises", "KeyError"),
    ]


async def test_everything_that_is_told_is_in_the_table(tmp_path: Path, told: Told) -> None:
    async with Node.join(f"local:{tmp_path}/log.db", serve=[Writer]) as node:
        agent = node.agent(Writer, "a")
        await agent.ask(Writer.grow, limits.BLOB_THRESHOLD_BYTES + 1)
        await agent.ask(Writer.length)
    async with Node.join(f"local:{tmp_path}/log.db", serve=[Writer]) as node:
        assert await node.agent(Writer, "a").ask(Writer.length) == limits.BLOB_THRESHOLD_BYTES + 1
    assert {event for event, _, _ in told} == set(telemetry.EVENTS)
    for event, seconds, facts in told:
        assert tuple(facts) == telemetry.EVENTS[event].facts and seconds >= 0
    asked = {facts["operation"] for event, _, facts in told if event == "engine"}
    assert asked >= {"append", "read", "put", "get"}
    assert asked <= {"append", "read", "read_sequence", "purge", "put", "get"}


async def test_an_engine_that_refuses_is_told_of_with_its_error(tmp_path: Path, told: Told) -> None:
    async with Node.join(f"local:{tmp_path}/log.db", serve=[Writer]) as node:
        told.clear()
        with pytest.raises(Exception, match="nothing"):
            await node.engine.blobs.get("nothing.here")
    found = [facts for event, _, facts in told if facts.get("operation") == "get"]
    assert found == [{"operation": "get", "key": "nothing.here", "outcome": "NotFound"}]


async def test_a_listener_that_raises_harms_nobody(
    tmp_path: Path, told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    end = telemetry.listen(broken)
    async with Node.join(f"local:{tmp_path}/log.db", serve=[Writer]) as node:
        assert await node.agent(Writer, "a").ask(Writer.add, "x") == 1
    end()
    end()  # again: harmless
    assert ("Writer/a", "add", "ok") in turns(told), "the others hear all the same"
    assert any("telemetry failed" in one.message for one in logged(caplog))


async def test_nothing_is_told_once_nobody_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("told, though nobody listens")

    monkeypatch.setattr(telemetry, "tell", never)
    monkeypatch.setattr(telemetry, "engine", never)
    assert not telemetry.listeners
    async with Node.join(f"local:{tmp_path}/log.db", serve=[Writer]) as node:
        agent = node.agent(Writer, "a")
        assert await agent.ask(Writer.later, "b") == 1
        assert await agent.ask(Writer.length) == 0


async def test_the_counters_are_those_of_the_table(tmp_path: Path) -> None:
    async with Node.join(f"local:{tmp_path}/log.db", serve=[Writer]) as node:
        counts = node.statistics()
    others = {"process", "recovery_failures", "engine"}
    assert set(counts) == set(telemetry.COUNTERS) | others


def rows(text: str, columns: int) -> list[tuple[str, ...]]:
    """The rows of all tables of a page that have so many columns, without their heads."""
    found = [
        tuple(cell.strip() for cell in line.strip("|").split("|"))
        for line in text.splitlines()
        if line.startswith("| `")
    ]
    return [row for row in found if len(row) == columns]


def test_the_page_prints_both_tables() -> None:
    text = DOCS.read_text()
    assert rows(text, 3) == [
        (f"`{name}`", event.meaning, ", ".join(f"`{fact}`" for fact in event.facts))
        for name, event in telemetry.EVENTS.items()
    ]
    assert rows(text, 2) == [(f"`{name}`", meaning) for name, meaning in telemetry.COUNTERS.items()]


def test_the_log_of_a_listener_names_the_event(caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    end = telemetry.listen(broken)
    with caplog.at_level(logging.ERROR):
        telemetry.tell("turn", 0.0, {})
    end()
    assert "'turn'" in caplog.text
