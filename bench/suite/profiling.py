"""Where the time goes: the client of the cluster and the embedded engine under cProfile, and each process's CPU."""

from __future__ import annotations

import cProfile
import os
import pstats
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench.suite import cluster, local
from bench.suite.measure import Rate, Work, repetition
from bench.suite.report import number, out

_SECONDS = 5.0
_LINES = 25


async def profile() -> None:
    """Print both."""
    async with local.running(True) as embedded:
        await embedded.warm()
        await _profiled("local: durable asks, 256 in flight", embedded.add)
    async with cluster.running(True) as bench:
        await bench.warm()
        hosts = bench.cluster.hosts
        groups = {
            "the servers": [bench.cluster.server_pid(host) for host in hosts],
            "the nodes": [bench.cluster.node_pid(f"{host}-1") for host in hosts],
            "the client": [os.getpid()],
        }
        await _cpu("cluster: durable asks, 256 in flight", bench.add, groups)
        await _cpu("cluster: reader asks, 256 in flight", bench.read, groups)
        await _profiled("cluster: durable asks, 256 in flight (the client)", bench.add)


async def _for_a_while(work: Work, seconds: float) -> tuple[int, float]:
    """Calls made, and in how many seconds."""
    rates: list[Rate] = []
    started = time.perf_counter()
    while time.perf_counter() < started + seconds:
        rates.append(await repetition(work, sum(one.calls for one in rates), 5_120))
    return sum(one.calls for one in rates), time.perf_counter() - started


async def _profiled(title: str, work: Work) -> None:
    """The functions with the most time of their own. Only this thread is seen, and it runs slower for it."""
    seen = cProfile.Profile()
    seen.enable()
    calls, seconds = await _for_a_while(work, _SECONDS)
    seen.disable()
    out.rule(title)
    out.print(f"{number(calls / seconds)} calls a second under the profiler")
    pstats.Stats(seen, stream=sys.stdout).strip_dirs().sort_stats("tottime").print_stats(_LINES)


async def _cpu(title: str, work: Work, groups: dict[str, list[int]]) -> None:
    """The CPU of each group of processes, per call."""
    seconds_of: Callable[[list[int]], float] = lambda processes: sum(map(_cpu_seconds, processes))  # noqa: E731
    before = {name: seconds_of(processes) for name, processes in groups.items()}
    calls, seconds = await _for_a_while(work, _SECONDS)
    out.rule(title)
    out.print(f"{number(calls / seconds)} calls a second, of {os.cpu_count()} cores:")
    for name, processes in groups.items():
        used = seconds_of(processes) - before[name]
        out.print(f"  {name:<12} {used / calls * 1e6:7.1f} µs a call, {used / seconds:.2f} cores")


def _cpu_seconds(process: int) -> float:
    """User and system time (Linux)."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
