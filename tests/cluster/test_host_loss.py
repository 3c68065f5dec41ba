"""A host is lost with all that it runs: its agents answer elsewhere, and the others wait for their
cell's election at most."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from pathlib import Path

import msgspec
import pytest
from tests.cluster.app import Account

from holdfast import LocalCluster, Node, NoQuorum, OutcomeUnknown
from holdfast.engines.nats import api

pytestmark = [pytest.mark.cluster, pytest.mark.soak, pytest.mark.timeout(1800)]
APP = str(Path(__file__).parent / "app.py")
AGENTS = [f"l{n}" for n in range(60)]
LOSSES = 12


class Info(msgspec.Struct):
    cluster: dict[str, object]


async def leaders(node: Node) -> dict[str, str]:
    """Per cell the host whose server leads it."""
    found = {}
    for cell in node.manifest.cells:
        answer = await api.call(node.engine._open(), f"STREAM.INFO.{cell}", None, 5.0)  # type: ignore[attr-defined]
        found[cell] = str(msgspec.json.decode(answer, type=Info).cluster["leader"]).rpartition("-")[
            0
        ]
    return found


@pytest.mark.capability("B5")
async def test_losses_of_a_host(tmp_path: Path) -> None:
    values = dict.fromkeys(AGENTS, 0)
    waits: dict[str, list[float]] = defaultdict(list)
    refused = 0
    async with LocalCluster(tmp_path, [APP]) as cluster:
        for loss in range(LOSSES):
            lost = cluster.hosts[loss % 3]
            # The client's own server is on a host that stays.
            urls = cluster.urls[(loss + 1) % 3 :] + cluster.urls[: (loss + 1) % 3]
            async with Node.join(urls) as node:
                await node.ready()
                for name in AGENTS:
                    values[name] += 1
                    assert await node.agent(Account, name).ask(Account.add, 1) == values[name]
                led = await leaders(node)
                places = {name: node.describe(f"Account/{name}") for name in AGENTS}

                async def go_on(name: str, node: Node = node) -> float:
                    nonlocal refused
                    began = time.monotonic()
                    values[name] += 1
                    agent = node.agent(Account, name).options(message_id=f"{name}-{values[name]}")
                    while True:
                        try:
                            assert await agent.ask(Account.add, 1) == values[name], (
                                "lost, or done twice"
                            )
                        except (
                            NoQuorum,
                            OutcomeUnknown,
                        ):
                            # the host led all cells: none takes a write until it elected
                            refused += 1
                            await asyncio.sleep(0.05)
                        else:
                            return time.monotonic() - began

                print(
                    f"{lost} is lost; it led "
                    f"{[cell for cell, leader in led.items() if leader == lost]}"
                )
                await cluster.kill_host(lost)
                for name, seconds in zip(
                    AGENTS, await asyncio.gather(*map(go_on, AGENTS)), strict=True
                ):
                    owner, leader = places[name].host == lost, led[places[name].cell] == lost
                    what = {
                        (True, True): "its owner and its cell's leader were lost",
                        (True, False): "its owner was lost",
                        (False, True): "its cell's leader was lost",
                        (False, False): "neither",
                    }[owner, leader]
                    waits[what].append(seconds)
            await cluster.start_host(lost)
    for what, seconds in waits.items():
        ordered = sorted(seconds)
        print(
            f"{what}: {len(seconds)} agents, median {ordered[len(ordered) // 2]:.2f} s, worst "
            f"{ordered[-1]:.2f} s"
        )
    print(f"{refused} attempts were refused with NoQuorum or OutcomeUnknown")
    assert waits["its owner was lost"] and waits["neither"]
