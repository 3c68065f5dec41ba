"""What the engine alone does: appends and requests in the shape that agents give them, without agents.

The shape matters more than anything: a batch of 28 records with 14 fences costs a server something else than one of 250
without. So the number of records in a batch and their size are read from the run that is compared, not guessed.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import nats

from bench.suite.measure import AGENTS, REPETITIONS
from holdfast.engines.base import Engine, Expect, Record

SHARDS = 128
_SAMPLE = 600

Batches = Callable[[], list[Record]]


@dataclass(frozen=True)
class Shape:
    """Records in a batch, and bytes in a record's payload."""

    records: int
    size: int

    def __str__(self) -> str:
        return f"{self.records} × {self.size} B"


async def stored_shape(url: str, spans: dict[str, tuple[int, int]], kind: str) -> Shape:
    """The mean shape of the batches between two sequences of each cell: the servers keep it in the records' headers.

    ``kind``: of the records that count, such as ``st``.
    """
    client = await nats.connect(url)
    try:
        counts: list[int] = []
        sizes: list[int] = []
        for cell, (first, last) in spans.items():
            start = first + max(last - first - _SAMPLE, 0) // 2  # the middle: at both ends batches are smaller
            asked = (
                client.request(f"$JS.API.DIRECT.GET.{cell}", json.dumps({"seq": sequence}).encode(), timeout=5)
                for sequence in range(start + 1, min(start + _SAMPLE, last) + 1)
            )
            for message in await asyncio.gather(*asked):
                headers = message.headers or {}
                if f".{kind}." not in headers.get("Nats-Subject", ""):
                    continue  # another kind, or replaced since
                sizes.append(len(message.data))
                if "Nats-Batch-Commit" in headers or "Nats-Batch-Id" not in headers:
                    counts.append(int(headers.get("Nats-Batch-Sequence", "1")))
        return Shape(round(statistics.mean(counts)), round(statistics.mean(sizes)))
    finally:
        await client.close()


# What writers append -----------------------------------------------------------------------------------------------


async def agent_batches(engine: Engine, cell: str, shards: Sequence[int], shape: Shape) -> Batches:
    """Records of agents, as a node's committer for one cell writes them: each shard's first one with its fence."""
    epochs = await engine.log.append(cell, [Record(f"{cell}.{shard}.epoch", b"") for shard in shards])
    fences = {shard: Expect(f"{cell}.{shard}.epoch", sequence) for shard, sequence in zip(shards, epochs, strict=True)}
    agents = [(number % SHARDS, f"x{number}") for number in range(AGENTS) if number % SHARDS in fences]
    random.shuffle(agents)
    value = bytes(shape.size)
    place = 0

    def batch() -> list[Record]:
        nonlocal place
        records: list[Record] = []
        fenced: set[int] = set()
        for _ in range(min(shape.records, len(agents))):
            shard, name = agents[place % len(agents)]
            fence = None if shard in fenced else fences[shard]
            fenced.add(shard)
            records.append(Record(f"{cell}.{shard}.st.Counter/{name}", value, fence))
            place += 1
        return records

    for _ in range(len(agents) // 200 + 1):  # so that what is measured replaces records, as the agents' own do
        await engine.log.append(cell, [Record(f"{cell}.{s}.st.Counter/{n}", value) for s, n in agents[place:][:200]])
        place = (place + 200) % len(agents)
    return batch


def new_batches(prefix: str, shape: Shape) -> Batches:
    """Records under subjects that must be new, as sends and registrations are."""
    value = bytes(shape.size)
    place = 0

    def batch() -> list[Record]:
        nonlocal place
        subjects = [f"{prefix}-{number}" for number in range(place, place + shape.records)]
        place += shape.records
        return [Record(subject, value, Expect(subject, 0)) for subject in subjects]

    return batch


# How fast they do --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Writer:
    """One batch in flight."""

    engine: Engine
    cell: str
    batches: Batches


async def appends(writers: Sequence[Writer], seconds: float, beside: Sequence[Writer] = ()) -> float:
    """Records a second of all the writers together, the median of the repetitions. ``beside``: they only add load."""

    async def write(writer: Writer, end: float) -> int:
        done = 0
        while time.perf_counter() < end:
            done += len(await writer.engine.log.append(writer.cell, writer.batches()))
        return done

    rates = []
    for _ in range(REPETITIONS):
        started = time.perf_counter()
        others = [asyncio.ensure_future(write(writer, started + seconds)) for writer in beside]
        done = sum(await asyncio.gather(*(write(writer, started + seconds) for writer in writers)))
        rates.append(done / (time.perf_counter() - started))
        await asyncio.gather(*others)
    return statistics.median(rates)


async def requests(engine: Engine, subjects: Sequence[str], payload: bytes, in_flight: int, seconds: float) -> float:
    """Requests a second, the median of the repetitions, by turns to the subjects."""

    async def ask(number: int, end: float) -> int:
        done = 0
        while time.perf_counter() < end:
            await engine.bus.request(subjects[(number + done) % len(subjects)], payload, 10)
            done += 1
        return done

    rates = []
    for _ in range(REPETITIONS):
        started = time.perf_counter()
        done = sum(await asyncio.gather(*(ask(number, started + seconds) for number in range(in_flight))))
        rates.append(done / (time.perf_counter() - started))
    return statistics.median(rates)
