"""Agents that print and log whatever they are told to, and start programs."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import threading

from holdfast import Agent, State, handler

logger = logging.getLogger("shop")


class Count(State):
    n: int = 0


class Printer(Agent[Count]):
    @handler
    async def say(self, text: str, end: str = "\n", to: str = "stdout") -> int:
        self.state.n += 1
        print(text, end=end, file=getattr(sys, to))
        return self.state.n

    @handler
    async def write(self, data: bytes) -> int:
        """Past Python's streams, as a library in C does."""
        self.state.n += 1
        os.write(1, data)
        return self.state.n

    @handler
    async def log(self, text: str) -> None:
        logger.debug("too much: %s", text)
        logger.info("before: %s", text)
        await asyncio.sleep(0.01)
        logger.warning("after: %s", text)

    @handler(runs_in="thread")
    async def say_in_thread(self, text: str) -> None:
        print(text)
        logger.info(text)

    @handler
    async def say_in_tasks(self, text: str) -> None:
        async def in_task(number: int) -> None:
            await asyncio.sleep(0.01)
            print(f"task {number} {text}")

        await asyncio.gather(*(in_task(number) for number in range(3)))
        await asyncio.to_thread(print, f"to thread {text}")

    @handler(runs_in="process")
    async def say_in_process(self, text: str) -> int:
        print(text)
        print(f"err {text}", file=sys.stderr)
        logger.info(text)
        subprocess.run(["git", "--version"], check=True)
        return os.getpid()

    @handler
    async def lose_task(self) -> None:
        async def lost() -> None:
            raise KeyError("nobody waits for it")

        asyncio.ensure_future(lost())  # noqa: RUF006
        await asyncio.sleep(0.01)

    @handler
    async def fork(self, text: str) -> int:
        child = os.fork()
        if child == 0:
            print(text, flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        return os.getpid()

    @handler(runs_in="thread")
    async def flood(self, lines: int) -> None:
        for number in range(lines):
            print("flood", number)

    @handler
    async def start_daemon(self) -> int:
        """A program that keeps the standard output and the standard error."""
        self.state.n += 1
        return subprocess.Popen(["sleep", "300"]).pid

    @handler
    async def threads(self) -> list[str]:
        return [thread.name for thread in threading.enumerate()]
