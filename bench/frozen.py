"""How long callers wait when a node is frozen under a steady load: ``python -m bench.frozen``.

Calls begin at a fixed rate, whether earlier ones were answered or not, as those of independent
users do. What is told is the latency of the calls that began from the freeze on, by agent's node:
that of the frozen node, and the others'.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import tempfile
from contextlib import suppress
from pathlib import Path

from holdfast import HoldfastError, LocalCluster, Node, loops

APP = str(Path(__file__).parents[1] / "tests" / "cluster" / "app.py")


def _line(name: str, times: list[float]) -> str:
    times.sort()
    if not times:
        return f"{name:24} none"
    parts = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "longest": 1.0}
    shown = [
        f"{what} {times[min(int(len(times) * part), len(times) - 1)]:6.2f} s"
        for what, part in parts.items()
    ]
    return f"{name:24} {len(times):6} calls   {'   '.join(shown)}"


async def measure(rate: float, agents: int, frozen_seconds: float, after_seconds: float) -> None:
    """One run."""
    with tempfile.TemporaryDirectory() as directory:
        async with (
            LocalCluster(directory, [APP], hosts=1, nodes=3) as cluster,
            Node.join(cluster.urls) as node,
        ):
            while len([member for member in node.members() if member.kinds]) < 3:
                await asyncio.sleep(0.1)
            await node.ready(60)
            await asyncio.sleep(5)
            names = [f"a{n}" for n in range(agents)]
            await asyncio.gather(
                *(node.ask_by_name(f"Account/{name}", "add", [1]) for name in names)
            )
            victim = node.describe(f"Account/{names[0]}").owner
            theirs = {name for name in names if node.describe(f"Account/{name}").owner == victim}
            who = next(member.name for member in node.members() if member.incarnation == victim)
            loop = asyncio.get_running_loop()
            took: dict[bool, list[float]] = {True: [], False: []}
            errors: list[str] = []

            async def call(name: str, measured: bool) -> None:
                began = loop.time()
                try:
                    await node.ask_by_name(f"Account/{name}", "add", [1], timeout_seconds=60)
                except HoldfastError as error:
                    errors.append(str(error))
                if measured:
                    took[name in theirs].append(loop.time() - began)

            tasks = []
            pid, frozen_at = cluster.node_pid(who), 0.0
            began, count = loop.time(), 0
            while loop.time() < began + 3 + frozen_seconds + after_seconds:
                if not frozen_at and loop.time() > began + 3:
                    os.kill(pid, signal.SIGSTOP)
                    frozen_at = loop.time()
                tasks.append(asyncio.create_task(call(names[count % agents], bool(frozen_at))))
                count += 1
                await asyncio.sleep(max(began + count / rate - loop.time(), 0))
                if frozen_at and pid and loop.time() > frozen_at + frozen_seconds:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGCONT)
                    pid = 0
            await asyncio.gather(*tasks)
            print(
                f"{rate:.0f} calls/s to {agents} agents; {who} with {len(theirs)} of them frozen "
                f"{frozen_seconds} s"
            )
            print(_line("of the frozen node", took[True]))
            print(_line("of the others", took[False]))
            print(f"errors: {len(errors)} {errors[:2]}")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--agents", type=int, default=300)
    parser.add_argument("--frozen", type=float, default=15.0)
    parser.add_argument("--after", type=float, default=5.0)
    told = parser.parse_args()
    loops.run(measure(told.rate, told.agents, told.frozen, told.after))


if __name__ == "__main__":
    main()
