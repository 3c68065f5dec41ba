"""What the benchmark's processes cost: processor time and memory of the client, the nodes, the
servers and the hosts."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

ROLES = ("client", "nodes", "servers", "hosts")


def _role(process: psutil.Process, own: int) -> str:
    if process.pid == own:
        return "client"
    words = process.cmdline()
    if words and words[0].endswith("nats-server"):
        return "servers"
    return "hosts" if "holdfast.host" in words else "nodes"


class Usage:
    """From here to `read`: cores that were busy, and megabytes of resident memory at the end, by
    role.

    Of processes that this one started, and their children: those of a cluster elsewhere are not
    seen.
    """

    def __init__(self) -> None:
        self._at = time.perf_counter()
        self._before = _seconds()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Have what is done meanwhile not count, neither as time nor as processor time."""
        at, before = time.perf_counter(), _seconds()
        yield
        for pid, seconds in _seconds().items():
            self._before[pid] = self._before.get(pid, 0.0) + seconds - before.get(pid, 0.0)
        self._at += time.perf_counter() - at

    def read(self) -> tuple[dict[str, float], dict[str, float]]:
        """(cores, megabytes) by role."""
        elapsed = time.perf_counter() - self._at
        cores: dict[str, float] = defaultdict(float)
        resident: dict[str, float] = defaultdict(float)
        for process, role, seconds, size in _processes():
            cores[role] += (seconds - self._before.get(process.pid, 0.0)) / elapsed
            resident[role] += size / 1e6
        return dict(cores), dict(resident)


def _seconds() -> dict[int, float]:
    return {process.pid: seconds for process, _, seconds, _ in _processes()}


def _processes() -> list[tuple[psutil.Process, str, float, int]]:
    import psutil  # of the extra `bench`

    me = psutil.Process()
    found = []
    for process in (me, *me.children(recursive=True)):
        try:
            times = process.cpu_times()
            found.append(
                (
                    process,
                    _role(process, me.pid),
                    times.user + times.system,
                    process.memory_info().rss,
                )
            )
        except psutil.Error:
            continue  # it just ended
    return found
