"""Many seeds of a scenario, on several processes. What they are told and answer is JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context

import msgspec

from holdfast.testing.simulation import runs
from holdfast.testing.simulation.runs import Outcome, Scenario

_decode = msgspec.json.Decoder(Outcome).decode


def run_all(scenario: Scenario, seeds: Iterable[int], jobs: int = 1) -> Iterator[Outcome]:
    """Run the seeds, ``jobs`` at a time, and yield their outcomes in the order of the seeds."""
    if jobs <= 1:
        for seed in seeds:
            yield runs.run(scenario, seed)
        return
    text = msgspec.json.encode(scenario)
    coming = iter(seeds)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        under_way = [pool.submit(_run, text, seed) for seed in islice(coming, jobs * 2)]
        try:
            while under_way:
                yield _decode(under_way.pop(0).result())
                under_way += [pool.submit(_run, text, seed) for seed in islice(coming, 1)]
        finally:
            for future in under_way:
                future.cancel()


def _run(scenario: bytes, seed: int) -> bytes:
    return msgspec.json.encode(runs.run(msgspec.json.decode(scenario, type=Scenario), seed))
