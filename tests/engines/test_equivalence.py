"""Both engines are driven with the same random commands, and must do the same."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.patience import again, keep_connections, wait_for_answers

from holdfast.engines.base import Engine, Expect, Record
from holdfast.engines.local.engine import LocalEngine
from holdfast.engines.nats.engine import NatsEngine
from holdfast.errors import HoldfastError, NoQuorum, Unknown
from holdfast.host.server.nats_server import LocalServers

CELL = "same"
SUBJECTS = [
    "1.epoch",
    "1.st.a",
    "1.st.b",
    "1.in.a.1",
    "1.in.a.2",
    "2.epoch",
    "2.st.c",
    "bad subject",
    "2.*",
]

subject = st.sampled_from(SUBJECTS[:7])
any_subject = st.sampled_from(SUBJECTS)
# What a record expects: nothing, the sequence that is there, none, or an old one; of itself, or of
# an epoch.
expectation = st.tuples(
    st.sampled_from(["", "right", "zero", "old"]), st.sampled_from(["own", "1.epoch", "2.epoch"])
)
record = st.tuples(any_subject | subject, st.binary(max_size=20), expectation)
append = st.tuples(st.just("append"), st.lists(record, max_size=6))
read = st.tuples(st.just("read"), any_subject)
purge = st.tuples(
    st.just("purge"), st.sampled_from([*SUBJECTS[:7], "1.in.>", "*.st.>", ">"]), st.integers(-5, 3)
)
scan = st.tuples(
    st.just("scan"), st.sampled_from([">", "1.>", "*.st.>", "1.in.a.*"]), st.integers(-8, 0)
)
commands = st.lists(append | append | read | purge | scan, min_size=1, max_size=12)


class Pair:
    """The two engines, with a loop of their own, for all examples."""

    def __init__(self, runner: asyncio.Runner, engines: list[Engine]) -> None:
        self.runner = runner
        self.engines = engines
        self.example = itertools.count()
        self.last = 0


@pytest.fixture(scope="module")
def pair(servers: LocalServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    path: Path = tmp_path_factory.mktemp("same") / "log.db"
    with pytest.MonkeyPatch.context() as patch, asyncio.Runner() as runner:
        wait_for_answers(patch)

        async def start() -> list[Engine]:
            nats = NatsEngine(servers.urls)
            engines: list[Engine] = [LocalEngine(path), nats]
            for engine, replicas in zip(engines, (1, 3), strict=True):
                await engine.open()
                await engine.ensure_cells([CELL], replicas)
            keep_connections(nats)
            return engines

        made = Pair(runner, runner.run(start()))
        yield made

        async def stop() -> None:
            for engine in made.engines:
                await engine.close()

        runner.run(stop())


async def do(
    engine: Engine, prefix: str, command: tuple[Any, ...], known: dict[str, int], last: int
) -> Any:
    """Do one command on one engine: return what it gave, or the class of what it raised.

    The servers may have no leader for a moment, and then the command did nothing. A purge may be
    repeated in any case.
    """
    late = (NoQuorum, Unknown) if command[0] == "purge" else (NoQuorum,)
    try:
        return await again(lambda: once(engine, prefix, command, known, last), *late)
    except HoldfastError as error:
        return type(error)


async def once(
    engine: Engine, prefix: str, command: tuple[Any, ...], known: dict[str, int], last: int
) -> Any:
    """Do one command on one engine, and return what it gave."""
    if command[0] == "append":
        records = []
        for subject, payload, (kind, of) in command[1]:
            name = f"{prefix}.{subject if of == 'own' else of}"
            sequence = {
                "": 0,
                "right": known.get(name, 0),
                "zero": 0,
                "old": max(known.get(name, 0) - 1, 1),
            }[kind]
            records.append(
                Record(f"{prefix}.{subject}", payload, Expect(name, sequence) if kind else None)
            )
        return list(await engine.log.append(CELL, records))
    if command[0] == "read":
        return await engine.log.read(CELL, f"{prefix}.{command[1]}")
    if command[0] == "purge":
        return await engine.log.purge(CELL, f"{prefix}.{command[1]}", last + command[2])
    found = []
    async with aclosing(
        engine.log.tail(CELL, [f"{prefix}.{command[1]}"], last + command[2])
    ) as tail:  # type: ignore[type-var]
        async for chunk in tail:
            found += chunk.records
            if chunk.caught_up:
                return found
    raise AssertionError("the tail ended")


async def compare(pair: Pair, example: list[tuple[Any, ...]]) -> None:
    prefix = f"{CELL}.x{next(pair.example)}"
    known: dict[str, int] = {}
    for command in example:
        local = await do(pair.engines[0], prefix, command, known, pair.last)
        # A replica may be late, never wrong: it is given a moment to show the same.
        async with asyncio.timeout(240):
            while (nats := await do(pair.engines[1], prefix, command, known, pair.last)) != local:
                assert command[0] in ("read", "scan"), f"{command}: local gave {local}, nats {nats}"
                await asyncio.sleep(0.01)
        if command[0] == "append" and isinstance(local, list):
            for (subject, _, _), sequence in zip(command[1], local, strict=True):
                known[f"{prefix}.{subject}"] = sequence
            pair.last = local[-1]
        elif command[0] == "purge" and local is None:
            tail = await do(pair.engines[0], prefix, ("scan", ">", -(10**9)), known, pair.last)
            there = {stored.subject for stored in tail}
            known = {name: sequence for name, sequence in known.items() if name in there}


@settings(max_examples=60)
@given(commands)
def test_the_engines_do_the_same(pair: Pair, example: list[tuple[Any, ...]]) -> None:
    pair.runner.run(compare(pair, example))


@pytest.mark.soak
@settings(max_examples=2000)
@given(commands)
def test_the_engines_do_the_same_for_long(pair: Pair, example: list[tuple[Any, ...]]) -> None:
    pair.runner.run(compare(pair, example))
