"""Agents whose handlers compute or block. A worker process imports this file."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

from msgspec import field
from tests.agents.kinds import Counter

from holdfast import Agent, State, handler, reader
from holdfast.agents.context import Context


class Notes(State):
    total: int = 0
    rung: list[str] = field(default_factory=list)


def wait_for(path: str) -> None:
    """Keep the thread until there is this file."""
    while not Path(path).exists():
        time.sleep(0.01)


class Heavy(Agent[Notes]):
    def __init__(self) -> None:
        self.made_in = os.getpid()

    @handler(runs_in="process")
    async def crunch(self, by: int) -> tuple[int, int]:
        self.state.total += by
        return os.getpid(), self.state.total

    @handler(runs_in="thread")
    async def block(self, seconds: float, by: int = 1) -> tuple[int, str]:
        self.state.total += by
        time.sleep(seconds)
        return self.made_in, threading.current_thread().name

    @handler(runs_in="process")
    async def compute(self, seconds: float, by: int = 1) -> int:
        self.state.total += by
        time.sleep(seconds)
        return self.state.total

    @handler(runs_in="thread")
    async def block_until(self, path: str) -> None:
        self.state.total += 1
        wait_for(path)

    @handler(runs_in="process")
    async def compute_until(self, path: str) -> None:
        self.state.total += 1
        wait_for(path)

    @handler
    async def hog(self, seconds: float) -> None:
        """Compute without giving up the interpreter, and without the thread that looks."""
        switch = sys.getswitchinterval()
        sys.setswitchinterval(100.0)
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass
        sys.setswitchinterval(switch)

    @handler
    async def stall(self, seconds: float) -> None:
        time.sleep(seconds)

    @handler
    async def stall_until(self, path: str) -> None:
        wait_for(path)

    @handler(runs_in="process")
    async def break_after(self, by: int) -> None:
        self.state.total += by
        raise ValueError(f"broken after {by}")

    @handler(runs_in="process")
    async def die(self) -> None:
        os._exit(3)

    @handler(runs_in="process")
    async def swell(self) -> bytes:
        return bytes(1_000_000)

    @handler(runs_in="process")
    async def spoil(self) -> None:
        self.state.total = "many"  # type: ignore[assignment]

    @handler(runs_in="process")
    async def tell_others(self, name: str, fail: bool) -> None:
        await self.agent(Counter, name).send(Counter.add, 1)
        self.set_timer("ring", 0.0, Heavy.ring, "rung")
        if fail:
            raise ValueError("after sending")

    @handler
    async def ring(self, text: str) -> None:
        self.state.rung.append(text)

    @handler(runs_in="process")
    async def ask_in_process(self, name: str) -> int:
        return await self.agent(Counter, name).ask(Counter.value)

    @handler(runs_in="thread")
    async def ask_in_thread(self, name: str) -> int:
        return await self.agent(Counter, name).ask(Counter.value)

    @handler(runs_in="process")
    async def who(self) -> tuple[str, str, str, int]:
        context: Context = self.context
        return self.name, context.agent_id, context.idempotency_key, context.fence

    @handler(runs_in="process")
    async def is_live_in_process(self) -> bool:
        return self.context.is_live

    @handler(runs_in="thread")
    async def is_live_in_thread(self) -> bool:
        return self.context.is_live

    @handler(runs_in="thread")
    async def until_lost(self, path: str) -> None:
        """Write down when the agent is this activation's no more."""
        end = time.monotonic() + 60
        Path(path).write_text("begun")
        while self.context.is_live and time.monotonic() < end:
            time.sleep(0.01)
        Path(path).write_text("lost" if not self.context.is_live else "late")

    @reader
    async def total(self) -> int:
        return self.state.total

    @reader
    async def rings(self) -> list[str]:
        return self.state.rung

    @reader(runs_in="process")
    async def far_total(self) -> tuple[int, int]:
        return os.getpid(), self.state.total

    @reader(runs_in="thread")
    async def write_in_reader(self) -> None:
        self.set_timer("ring", 0.0, Heavy.ring, "rung")
