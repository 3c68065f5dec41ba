"""`Node.open` is `Node.join` without its block: whoever opens a node closes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.agents.kinds import Counter

from holdfast import Closed, ConfigError, Node, Security


async def test_a_node_that_was_opened_serves_until_it_is_closed(tmp_path: Path) -> None:
    node = await Node.open(f"local:{tmp_path}/log.db", serve=[Counter])
    agent = node.agent(Counter, "a")
    assert await agent.ask(Counter.add, 1) == 1
    await node.close()
    await node.close()
    with pytest.raises(Closed):
        await agent.ask(Counter.add, 1)
    async with Node.join(f"local:{tmp_path}/log.db", serve=[Counter]) as again:
        assert await again.agent(Counter, "a").ask(Counter.add, 1) == 2


async def test_an_option_that_there_is_not_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="no option 'server'"):
        await Node.open(f"local:{tmp_path}/log.db", server=[Counter])  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="no option 'shards'"):
        async with Node.join(f"local:{tmp_path}/log.db", shards=2):  # type: ignore[call-arg]
            pass
    assert not (tmp_path / "log.db").exists()


@pytest.mark.parametrize(
    "capacity", [-1.0, 0.0, 0.001, 1001.0, float("inf"), -float("inf"), float("nan")]
)
async def test_what_cannot_be_opened_leaves_nothing_open(tmp_path: Path, capacity: float) -> None:
    with pytest.raises(ConfigError, match=f"capacity is from 0.01 to 1000, not {capacity}"):
        await Node.open(f"local:{tmp_path}/log.db", serve=[Counter], capacity=capacity)
    node = await Node.open(f"local:{tmp_path}/log.db", serve=[Counter])  # its lock is free again
    await node.close()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"security": Security(user="a")}, "user: the embedded engine has no server"),
        ({"user": "a", "password": "b"}, "user, password: the embedded engine has no server"),
        (
            {"security": Security(user="a"), "password": "b"},
            "password: give them in the Security, or as arguments without one",
        ),
        ({"security": {"user": "a"}}, "security is a holdfast.Security, not a dict"),
    ],
)
async def test_a_login_that_cannot_be_used_is_refused(
    tmp_path: Path, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        await Node.open(f"local:{tmp_path}/log.db", **options)
    assert not (tmp_path / "log.db").exists()
