"""What is the least that a durable call costs in Python? `python -m bench.floor [ROUNDS]` measures
it beside Holdfast.

A bare program on the same engine, in as many processes: a caller that numbers its calls and joins
them in frames; nodes that decode a call, add to a number, remember the last answer of its caller,
and write all that waits as one pack behind a link that fences it. It has no classes, types, checks,
shards, timers, inboxes or takeovers. What lies between it and Holdfast is the price of those; what
lies between it and the engine alone is the price of Python and of one hop.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from zlib import crc32

import msgspec
from rich.table import Table

from bench.measure import out
from holdfast import codec, limits, loops
from holdfast.bench import engine_alone
from holdfast.bench.kinds import BenchCounter
from holdfast.bench.measure import Load
from holdfast.bench.session import Settings, set_up
from holdfast.engines.base import Engine, Expect, Message, Record
from holdfast.engines.nats.engine import NatsEngine
from holdfast.records.messages import Call, Frame, Replies, Reply

NODES = 3
AGENTS = 10_000
IN_FLIGHT = 256
SECONDS = 3.0

_decode_frame = msgspec.msgpack.Decoder(Frame).decode
_decode_replies = msgspec.msgpack.Decoder(Replies).decode
_decode_arguments = msgspec.msgpack.Decoder(tuple[int]).decode


async def serve(number: int, cell: str, urls: list[str]) -> None:
    """A bare node, until it is killed. It waits for more before a batch as a committer does."""
    engine = NatsEngine(urls)
    await engine.open()
    loop = asyncio.get_running_loop()
    agents: dict[str, tuple[int, str, int, bytes]] = {}
    waiting: list[tuple[str, bytes, str, Reply]] = []
    wake, enough = asyncio.Event(), 1

    def take(message: Message) -> None:
        frame = _decode_frame(message.payload)
        for call in frame.calls:
            total, caller, last, answer = agents.get(call.token, (0, "", 0, b""))
            if call.caller != caller or call.number > last:
                total += _decode_arguments(call.arguments)[0]
                answer = codec.encode_raw(total)
                agents[call.token] = total, call.caller, call.number, answer
            record = codec.seal(codec.encode_raw(agents[call.token]))
            waiting.append((call.token, record, frame.reply, Reply(call.reference, 0, answer)))
        if len(waiting) >= enough:
            wake.set()

    await engine.bus.subscribe(f"bare.{number}", take)
    print("serves", flush=True)
    link, slot, seconds = 0, 0, 0.0
    while True:
        await wake.wait()
        batch, began, slot = waiting[:], loop.time(), (slot + 1) % 256
        waiting.clear()
        pack = codec.seal(
            codec.encode_raw([(number, token, record) for token, record, *_ in batch])
        )
        records = [
            Record(f"{cell}.link", b"", Expect(f"{cell}.link", link)),
            Record(f"{cell}.pk.{slot}", pack),
        ]
        link = (await engine.log.append(cell, records))[0]
        replies: dict[str, list[Reply]] = {}
        for _, _, subject, reply in batch:
            replies.setdefault(subject, []).append(reply)
        for subject, some in replies.items():
            engine.bus.publish(subject, codec.encode_raw(Replies(str(number), some)))
        seconds += (loop.time() - began - seconds) / 8
        expected = len(batch) + len(waiting)
        enough = expected - expected * 2 // 5
        if len(waiting) < enough:
            wake.clear()
            late = loop.call_later(
                seconds * min(max(expected / limits.LINGER_TURNS, 1), 2), wake.set
            )
            await wake.wait()
            late.cancel()
        enough = 1
        if not waiting:
            wake.clear()


class Caller:
    """The bare caller's side."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._number = 0
        self._open: dict[int, asyncio.Future[bytes]] = {}
        self._frames: dict[int, Frame] = {}

    async def start(self) -> None:
        """Begin to hear replies."""
        await self._engine.bus.subscribe("bare.reply", self._take)

    def _take(self, message: Message) -> None:
        for reply in _decode_replies(message.payload).replies:
            self._open.pop(reply.reference).set_result(reply.payload)

    async def ask(self, token: str) -> bytes:
        """Add 1."""
        self._number = number = self._number + 1
        node = crc32(token.encode()) % NODES
        frame = self._frames.get(node)
        if frame is None:
            if not self._frames:
                self._loop.call_soon(self._flush)
            frame = self._frames[node] = Frame("bare.reply", [])
        frame.calls.append(
            Call(token, "add", b"\x91\x01", number, "p-bare", number, number, time.time() + 30)
        )
        future: asyncio.Future[bytes] = self._loop.create_future()
        self._open[number] = future
        return await future

    def _flush(self) -> None:
        for node, frame in self._frames.items():
            self._engine.bus.publish(f"bare.{node}", codec.encode_raw(frame))
        self._frames.clear()


@contextmanager
def nodes(cells: list[str], urls: list[str]) -> Iterator[None]:
    """Bare nodes as processes."""
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "bench.floor", "serve", str(number), cells[number], *urls],
            stdout=subprocess.PIPE,
        )
        for number in range(NODES)
    ]
    try:
        for process in started:
            assert process.stdout is not None and process.stdout.readline()
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


async def measure(rounds: int) -> dict[str, list[float]]:
    """Operations a second of each, by turns."""
    found: dict[str, list[float]] = {}
    async with set_up(Settings(nodes=NODES)) as (where, setting):
        out.print(where)
        engine = setting.node.engine
        assert isinstance(engine, NatsEngine)
        cells = [f"bare{number}" for number in range(NODES)]
        await engine.ensure_cells(cells, 3)
        caller = Caller(engine)
        await caller.start()
        tokens = [f"BenchCounter/a{n}" for n in range(AGENTS)]
        agents = [setting.node.agent(BenchCounter, f"a{n}") for n in range(AGENTS)]

        async def kept_up(work: Callable[[int], Awaitable[object]], count: int = 0) -> float:
            load = Load()
            await load.keep(work, IN_FLIGHT, SECONDS, count)
            return load.figure("").per_second

        def holdfast(n: int) -> Awaitable[object]:
            return agents[n % AGENTS].ask(BenchCounter.add, 1)

        def bare(n: int) -> Awaitable[object]:
            return caller.ask(tokens[n % AGENTS])

        size = IN_FLIGHT * 4 // 5 // NODES

        def alone(packed: bool) -> Awaitable[float]:
            return engine_alone.batches(engine, setting.cells, 1, size, 120, SECONDS / 2, packed)

        measured: dict[str, Callable[[], Awaitable[float]]] = {
            "Holdfast": lambda: kept_up(holdfast),
            "a bare program": lambda: kept_up(bare),
            f"the engine alone, batches of {size}, a record each": lambda: alone(False),
            "the engine alone, in one record per batch": lambda: alone(True),
        }
        with nodes(cells, engine._urls):
            await kept_up(holdfast, AGENTS)
            await kept_up(bare, AGENTS)
            for _ in range(rounds):
                for name, rate in measured.items():
                    found.setdefault(name, []).append(await rate())
    return found


def main() -> None:
    """Measure, and print."""
    if sys.argv[1:2] == ["serve"]:
        loops.run(serve(int(sys.argv[2]), sys.argv[3], sys.argv[4:]))
        return
    found = loops.run(measure(int(sys.argv[1]) if sys.argv[1:] else 4))
    base = statistics.mean(found["Holdfast"])
    table = Table("256 in flight", "per s", "runs", "of Holdfast")
    for name, rates in found.items():
        mean = statistics.mean(rates)
        table.add_row(
            name, f"{mean:,.0f}", " ".join(f"{rate:,.0f}" for rate in rates), f"{mean / base:.2f}"
        )
    out.print(table)


if __name__ == "__main__":
    main()
