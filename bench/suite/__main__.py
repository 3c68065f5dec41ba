"""`python -m bench.suite [--quick] [--only NAME] [--json FILE]`, or `python -m bench.suite profile`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from bench.suite import cluster, local, memory
from bench.suite.profiling import profile
from bench.suite.report import Report, out
from holdfast import run

NAMES = [*memory.BENCHMARKS, *local.BENCHMARKS, *cluster.BENCHMARKS]


async def measure(report: Report, names: list[str], quick: bool) -> None:
    """Run the benchmarks named. Memory comes first, while the process is small."""
    for name, alone in memory.BENCHMARKS.items():
        if name in names:
            await alone(report, quick)
    if not local.BENCHMARKS.keys().isdisjoint(names):
        async with local.running(quick) as embedded:
            for name, on_local in local.BENCHMARKS.items():
                if name in names:
                    await on_local(report, embedded)
    if not cluster.BENCHMARKS.keys().isdisjoint(names):
        async with cluster.running(quick) as hosts:
            for name, on_cluster in cluster.BENCHMARKS.items():
                if name in names:
                    await on_cluster(report, hosts)


def main() -> int:
    """Measure, and print. Nothing is asserted of the figures."""
    parser = argparse.ArgumentParser(prog="python -m bench.suite", description="Figures, targets, the engine's limits.")
    parser.add_argument("what", nargs="?", choices=("rows", "profile"), default="rows")
    parser.add_argument("--quick", action="store_true", help="fewer calls: under two minutes")
    parser.add_argument("--only", metavar="NAME", default="", help=f"a part of one of: {', '.join(NAMES)}")
    parser.add_argument("--json", metavar="FILE", default="", help="write the rows to a file as well")
    options = parser.parse_args()
    if options.what == "profile":
        run(profile())
        return 0
    names = [name for name in NAMES if options.only in name]
    if not names:
        parser.error(f"--only {options.only}: there are {', '.join(NAMES)}")
    report = Report()
    run(measure(report, names, options.quick))
    out.print()
    out.print(report.table())
    if options.json:
        Path(options.json).write_text(json.dumps(report.plain(), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
