"""A process that answers requests, and does nothing else: `python -m bench.suite.echo URL SUBJECT REPLY_BYTES`.

It ends with its standard input.
"""

from __future__ import annotations

import asyncio
import sys

from holdfast import run
from holdfast.engines.base import Message
from holdfast.engines.nats.engine import NatsEngine


async def serve(url: str, subject: str, size: int) -> None:
    """Answer until the standard input ends."""
    engine = NatsEngine([url])
    await engine.open()
    reply = bytes(size)

    def answer(message: Message) -> None:
        engine.bus.publish(message.reply, reply)

    await engine.bus.subscribe(subject, answer)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await engine.close()


if __name__ == "__main__":
    run(serve(sys.argv[1], sys.argv[2], int(sys.argv[3])))
