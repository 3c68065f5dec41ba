"""Agents whose jobs do to their worker process whatever jobs do. A worker process imports this
file."""

from __future__ import annotations

import decimal
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from contextvars import ContextVar
from pathlib import Path

from holdfast import Agent, State, handler, reader, worker_broken

logger = logging.getLogger("workshop")
tenant: ContextVar[str] = ContextVar("tenant", default="nobody")
broken = False


class Count(State):
    n: int = 0


class AcceleratorError(RuntimeError):
    """As torch has it."""


class Workshop(Agent[Count]):
    @handler(runs_in="process")
    async def add(self, by: int = 1) -> int:
        self.state.n += by
        return self.state.n

    @handler(runs_in="process")
    async def say(self, text: str) -> None:
        print(text)
        print(f"err {text}", file=sys.stderr)
        logger.warning("logged %s", text)
        os.write(1, b"raw \xff %s" % text.encode())

    @handler(runs_in="process")
    async def programs(self) -> str:
        """Programs that print, on both streams and much."""
        subprocess.run(["git", "--version"], check=True)
        much = "import sys; print('x' * 300_000); print('y' * 300_000, file=sys.stderr)"
        subprocess.run([sys.executable, "-c", much], check=True)
        return subprocess.run(
            ["git", "--version"], check=True, capture_output=True, text=True
        ).stdout

    @handler(runs_in="process")
    async def read_input(self) -> str:
        return sys.stdin.read()

    @reader(runs_in="process")
    async def process(self) -> int:
        return os.getpid()

    @reader(runs_in="process")
    async def looks(self) -> dict[str, str]:
        """What a job of another agent may have changed."""
        return {
            "directory": str(Path.cwd()),
            "environment": os.environ.get("LEFT_BEHIND", ""),
            "path": str("/left/behind" in sys.path),
            "handler": str(signal.getsignal(signal.SIGUSR1)),
            "mask": str(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
            "umask": str(_umask()),
            "files": str(resource.getrlimit(resource.RLIMIT_NOFILE)),
            "recursion": str(sys.getrecursionlimit()),
            "precision": str(decimal.getcontext().prec),
            "tenant": tenant.get(),
            "stdout": str(type(sys.stdout)),
        }

    @handler(runs_in="process")
    async def leave_behind(self, fail: bool) -> int:
        os.chdir("/")
        os.environ["LEFT_BEHIND"] = "this"
        os.environ.pop("HOME", None)
        sys.path.insert(0, "/left/behind")
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
        os.umask(0o177)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 300) - 1, hard))
        sys.setrecursionlimit(5000)
        decimal.getcontext().prec = 5
        tenant.set("somebody")
        sys.stdout = None  # type: ignore[assignment]
        if fail:
            raise ValueError("after all that")
        return os.getpid()

    @handler(runs_in="process")
    async def leave(self, what: str) -> int:
        """Something that cannot be put back."""
        if what == "thread":
            threading.Thread(target=time.sleep, args=(600,)).start()
        elif what == "program":
            self.state.n = subprocess.Popen(["sleep", "600"]).pid
        elif what == "limit":
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000_000, 10_000_000))
            if os.geteuid() == 0:  # who may raise it again
                worker_broken("root may undo it")
        elif what == "priority":
            os.nice(1)
        elif what == "stdout":
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        elif what == "word":
            assert worker_broken("the library lost its connection")
        elif what == "nothing":
            threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
            ended = subprocess.Popen(["true"])
            os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        return os.getpid()

    @reader
    async def number(self) -> int:
        return self.state.n

    @handler
    async def say_broken_here(self) -> bool:
        return worker_broken()

    @handler(runs_in="process")
    async def use_device(self, index: int) -> int:
        """A device whose context one bad index breaks for good."""
        global broken
        if index > 9 or broken:
            broken = True
            error: Exception = AcceleratorError("CUDA error: device-side assert triggered")
            try:
                raise error
            except AcceleratorError as cause:
                raise KeyError(index) from cause
        return os.getpid()

    @handler(runs_in="process")
    async def use_library(self, kind: str, first: bool = False) -> int:
        """A library that fails for everybody once it failed."""
        global broken
        broken = broken or first
        if broken:
            raise {"plain": OSError, "group": _group}[kind]("the connection is gone")
        return os.getpid()

    @handler(runs_in="process")
    async def refuse(self) -> None:
        """An error that is the message's own fault, on every process."""
        raise ValueError("no such product")

    @handler(runs_in="process")
    async def end(self, how: str) -> None:
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif how == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif how == "exit":
            os._exit(7)
        elif how == "close":
            os.closerange(3, 200)
        elif how in ("garbage", "long"):
            for number in range(3, 64):
                try:
                    if str(Path(f"/proc/self/fd/{number}").readlink()).startswith("socket:"):
                        os.write(
                            number, b"\xff\xff\xff\xff" if how == "long" else b"\x00\x00\x00\x03abc"
                        )
                except OSError:
                    pass
        elif how == "kill-with-forks":  # they keep all that it had open
            for new_session in (False, True):
                if os.fork() == 0:
                    if new_session:
                        os.setsid()
                    time.sleep(15)
                    os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)
        elif how == "system-exit":
            sys.exit("enough")
        elif how == "interrupt":
            raise KeyboardInterrupt
        elif how == "bad-text":
            raise _Unprintable

    @handler(runs_in="process")
    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class Neighbour(Agent[Count]):
    @reader(runs_in="process")
    async def process(self) -> int:
        return os.getpid()


class _Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def _group(text: str) -> Exception:
    return ExceptionGroup(text, [OSError(text)])


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
