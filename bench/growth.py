"""How cost grows: `python -m bench.growth [agents|beside|nodes|shards|states|five]... [--most N]
[--json FILE]`.

Each point is a fresh cluster of three servers on this machine. Processor time per operation is of
all processes together: on two cores it tells more than a rate does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

from rich.table import Table

from bench.measure import number, out
from holdfast import AgentRef, run
from holdfast.bench.kinds import BenchBlob, BenchCounter
from holdfast.bench.measure import Figure, Load
from holdfast.bench.processes import Usage
from holdfast.bench.session import Settings, set_up
from holdfast.bench.workloads import Setting, busiest

_IN_FLIGHT: Final = 256
_SECONDS: Final = 5.0
_IDLE: Final = 10.0
_HOT: Final = 1_000

Row = dict[str, float | str]


@asynccontextmanager
async def _cluster(
    nodes: int = 3, shards: int = 48, idle: float = 3600.0
) -> AsyncIterator[Setting]:
    os.environ["HOLDFAST_BENCH_SHARDS"], os.environ["HOLDFAST_BENCH_IDLE"] = str(shards), str(idle)
    async with set_up(Settings(nodes=nodes)) as (_, setting):
        yield setting


def _add(setting: Setting, name: int) -> Awaitable[object]:
    return (
        setting.node.agent(BenchCounter, f"a{name}")
        .options(timeout_seconds=120)
        .ask(BenchCounter.add, 1)
    )


def _anyone(setting: Setting, count: int, _: int) -> Awaitable[object]:
    return _add(setting, random.randrange(count))


def _touch(agents: Sequence[AgentRef[BenchBlob]], n: int) -> Awaitable[object]:
    return agents[n % len(agents)].ask(BenchBlob.touch)


async def _load(
    work: Callable[[int], Awaitable[object]], in_flight: int, seconds: float, count: int = 0
) -> Figure:
    load = Load()
    await load.keep(work, in_flight, seconds, count)
    figure = load.figure("")
    if figure.failed:
        out.print(f"[red]failed: {figure.failed}[/]")
    return figure


def _cost(figure: Figure) -> float:
    """Microseconds of processor time per operation."""
    return sum(figure.cores.values()) / figure.per_second * 1e6


async def _fill(setting: Setting, agents: int) -> Figure:
    return await _load(lambda n: _add(setting, n), 1024, 0, agents)


async def _killed(setting: Setting, agents: int) -> tuple[float, int]:
    """The median time in s until agents of a killed node answer, and about how many agents it
    had."""
    node, pids = setting.node, setting.pids()
    victim = busiest(setting)
    owner = next(member.incarnation for member in node.members() if member.name == victim)
    sample = random.sample(range(agents), min(agents, 2_000))
    hit = [n for n in sample if node.describe(f"BenchCounter/a{n}").owner == owner]
    os.kill(pids[victim], signal.SIGKILL)
    started = time.perf_counter()

    async def away(n: int) -> float:
        await _add(setting, n)
        return time.perf_counter() - started

    found = sorted(await asyncio.gather(*(away(n) for n in hit[:200])))
    return found[len(found) // 2], len(hit) * agents // len(sample)


async def agents(most: int) -> AsyncIterator[Row]:
    """From a thousand agents up: cost among a thousand hot ones, of any one, of one that left
    memory; a lost node."""
    for count in (n for n in (1_000, 10_000, 100_000, 1_000_000) if n <= most):
        async with _cluster(idle=_IDLE) as setting:
            empty = Usage().read()[1]
            made = await _fill(setting, count)
            await _load(lambda _: _add(setting, random.randrange(_HOT)), _IN_FLIGHT, _SECONDS)
            hot = await _load(lambda _: _add(setting, random.randrange(_HOT)), _IN_FLIGHT, _SECONDS)
            await asyncio.sleep(_IDLE * 2)
            anyone_of = partial(_anyone, setting, count)
            cold = await _load(anyone_of, 1, 2.0)
            anyone = await _load(anyone_of, _IN_FLIGHT, _SECONDS)
            full = Usage().read()[1]
            away, lost = await _killed(setting, count)
            yield {
                "agents": count,
                "first asks/s": made.per_second,
                "hot asks/s": hot.per_second,
                "us a hot one": _cost(hot),
                "any asks/s": anyone.per_second,
                "us any one": _cost(anyone),
                "any p99 ms": anyone.p99,
                "cold p50 ms": cold.p50,
                "nodes MB": full["nodes"] - empty["nodes"],
                "servers MB": full["servers"] - empty["servers"],
                "killed: agents": lost,
                "back after s": away,
            }


async def beside(most: int) -> AsyncIterator[Row]:
    """Two clusters by turns, in the same minutes: a thousand hot agents that are all there are, and
    as many of many."""

    async def hot(setting: Setting) -> float:
        return _cost(
            await _load(lambda _: _add(setting, random.randrange(_HOT)), _IN_FLIGHT, _SECONDS)
        )

    async with _cluster(idle=_IDLE) as few, _cluster(idle=_IDLE) as many:
        await _fill(few, _HOT)
        await _fill(many, most)
        await asyncio.sleep(_IDLE * 2)
        for setting in (few, many):
            await hot(setting)
        for turn in range(1, 7):
            if turn % 2:
                alone, among = await hot(few), await hot(many)
            else:
                among, alone = await hot(many), await hot(few)
            row: Row = {"turn": turn, f"us one of {_HOT:,}": alone, f"us one of {most:,}": among}
            yield {**row, "times": among / alone}


async def nodes(_most: int) -> AsyncIterator[Row]:
    """One to eight nodes, with ten thousand agents."""
    for count in (1, 2, 3, 4, 5, 6, 8):
        async with _cluster(nodes=count) as setting:
            await _fill(setting, 10_000)
            await asyncio.sleep(8.0)  # until shards have moved to those that came last
            yield {"nodes": count, **await _asks_and_reads(setting)}


async def shards(_most: int) -> AsyncIterator[Row]:
    """16 to 1,024 shards, with ten thousand agents on three nodes."""
    for count in (16, 64, 128, 256, 1_024):
        async with _cluster(shards=count) as setting:
            await _fill(setting, 10_000)
            row: Row = {"shards": count, **await _asks_and_reads(setting)}
            away, _ = await _killed(setting, 10_000)
            yield {**row, "killed: back after s": away}


async def _asks_and_reads(setting: Setting) -> Row:
    any_of = random.Random(1)
    asked = await _load(lambda _: _add(setting, any_of.randrange(10_000)), _IN_FLIGHT, _SECONDS)
    read = await _load(
        lambda _: setting.node.agent(BenchCounter, f"a{any_of.randrange(10_000)}").ask(
            BenchCounter.value
        ),
        _IN_FLIGHT,
        3.0,
    )
    return {
        "asks/s": asked.per_second,
        "us an ask": _cost(asked),
        "p50 ms": asked.p50,
        "p99 ms": asked.p99,
        "reads/s": read.per_second,
        "us a read": _cost(read),
    }


async def states(_most: int) -> AsyncIterator[Row]:
    """Turns of agents whose state is 100 B to 1 MB: each writes the whole state."""
    async with _cluster() as setting:
        for size in (100, 1_000, 10_000, 100_000, 400_000, 1_000_000):
            some = [setting.node.agent(BenchBlob, f"b{size}-{n}") for n in range(64)]
            for agent in some:
                await agent.ask(BenchBlob.fill, size)
            figure = await _load(partial(_touch, some), 64, _SECONDS)
            yield {
                "state B": size,
                "asks/s": figure.per_second,
                "MB/s": figure.per_second * size / 1e6,
                "us an ask": _cost(figure),
                "p50 ms": figure.p50,
                "p99 ms": figure.p99,
            }


async def five(most: int) -> AsyncIterator[Row]:
    """Fifty thousand agents in memory on five nodes, one of which is killed."""
    count = min(50_000, most)
    async with _cluster(nodes=5, shards=128) as setting:
        await asyncio.sleep(8.0)
        empty = Usage().read()[1]
        await _fill(setting, count)
        full = Usage().read()[1]
        away, lost = await _killed(setting, count)
        values = await asyncio.gather(
            *(
                setting.node.agent(BenchCounter, f"a{n}").ask(BenchCounter.value)
                for n in range(count)
            )
        )
        yield {
            "agents": count,
            "nodes MB": full["nodes"],
            "servers MB": full["servers"],
            "hosts MB": full["hosts"],
            "B each in nodes": (full["nodes"] - empty["nodes"]) * 1e6 / count,
            "killed: agents": lost,
            "back after s": away,
            "without their state": sum(value < 1 for value in values),
        }


CURVES: Final = {
    "agents": agents,
    "beside": beside,
    "nodes": nodes,
    "shards": shards,
    "states": states,
    "five": five,
}


async def measure(wanted: list[str], most: int) -> dict[str, list[Row]]:
    """Measure the curves, and print each."""
    found: dict[str, list[Row]] = {}
    for name in wanted:
        out.print(f"[bold]{name}[/]: {CURVES[name].__doc__}")
        rows = found[name] = []
        async for row in CURVES[name](most):
            rows.append(row)
            out.print(
                "  " + ", ".join(f"{key} {_shown(value)}" for key, value in row.items()),
                style="dim",
            )
        table = Table(*rows[0], box=None, pad_edge=False, header_style="bold")
        for row in rows:
            table.add_row(*map(_shown, row.values()))
        out.print(table)
    return found


def _shown(value: float | str) -> str:
    return (
        value
        if isinstance(value, str)
        else f"{value:,}"
        if isinstance(value, int)
        else number(value)
    )


def main() -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("curves", nargs="*", metavar="|".join(CURVES))
    parser.add_argument("--most", type=int, default=1_000_000, help="agents at most")
    parser.add_argument("--json", metavar="FILE", default="")
    options = parser.parse_args()
    if unknown := set(options.curves) - CURVES.keys():
        parser.error(f"there is no curve {', '.join(sorted(unknown))}")
    found = run(measure(options.curves or list(CURVES), options.most))
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
