"""`python -m bench [--quick] [--only cluster|local|failures] [--json FILE]`, or `python -m bench
profile`."""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import sys
from pathlib import Path

from bench import cluster, failures, local
from bench.measure import Report, out
from holdfast import run


async def measure(report: Report, only: str, quick: bool) -> None:
    """Run the benchmarks that are wanted."""
    if only in ("", "local"):
        await local.benchmark(report, quick)
    if only in ("", "cluster"):
        await cluster.benchmark(report, quick)
    if only in ("", "failures"):
        await failures.benchmark(report, quick)


def main() -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=("rates", "profile"), default="rates")
    parser.add_argument("--quick", action="store_true", help="fewer calls")
    parser.add_argument("--only", choices=("cluster", "local", "failures"), default="")
    parser.add_argument("--json", metavar="FILE", default="")
    options = parser.parse_args()
    report = Report()
    profile = cProfile.Profile() if options.what == "profile" else None
    if profile is not None:
        profile.enable()
    run(measure(report, options.only, options.quick))
    if profile is not None:
        profile.disable()
        pstats.Stats(profile, stream=sys.stdout).sort_stats("tottime").print_stats(25)
    out.print()
    out.print(report.table())
    if options.json:
        Path(options.json).write_text(json.dumps(report.plain(), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
