"""What the engine does without Holdfast, for batches of the same shape, in the same process and the
same minute."""

from __future__ import annotations

import asyncio
import time

from holdfast.engines.base import Engine, Expect, Record


async def batches(
    engine: Engine,
    cells: list[str],
    writers: int,
    records: int,
    payload: int,
    seconds: float,
    packed: bool = False,
) -> float:
    """Records a second that the engine alone takes: so many writers per cell, each with fenced
    batches of one shape.

    ``packed``: all of a batch in one record.
    """
    done = 0
    end = time.perf_counter() + seconds
    value = bytes(payload)

    async def write(cell: str, writer: int) -> None:
        nonlocal done
        epoch = f"{cell}.raw-{writer}.epoch"
        (sequence,) = await engine.log.append(cell, [Record(epoch, b"")])
        fence = Expect(epoch, sequence)
        number = 0
        while time.perf_counter() < end:
            batch = (
                [Record(f"{cell}.raw-{writer}.pk.{number % 256}", value * records, fence)]
                if packed
                else [
                    Record(
                        f"{cell}.raw-{writer}.st.Counter/x{(number + k) % 10_000}",
                        value,
                        fence if k == 0 else None,
                    )
                    for k in range(records)
                ]
            )
            await engine.log.append(cell, batch)
            number += records
            done += records

    started = time.perf_counter()
    await asyncio.gather(*(write(cell, writer) for cell in cells for writer in range(writers)))
    return done / (time.perf_counter() - started)


async def requests(engine: Engine, in_flight: int, seconds: float) -> float:
    """Requests a second over the bus alone, through a server, answered by this very process."""
    subject = "bench.echo"
    echo = await engine.bus.subscribe(
        subject, lambda message: engine.bus.publish(message.reply, message.payload)
    )
    done = 0
    end = time.perf_counter() + seconds

    async def ask() -> None:
        nonlocal done
        while time.perf_counter() < end:
            await engine.bus.request(subject, bytes(60), 10)
            done += 1

    started = time.perf_counter()
    await asyncio.gather(*(ask() for _ in range(in_flight)))
    elapsed = time.perf_counter() - started
    await echo.close()
    return done / elapsed
