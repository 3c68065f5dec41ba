"""Whether a worker process may do another job: what a job changed of the process is put back, or
ends it.

A worker serves one agent after the other. What one job leaves behind meets the next one: another
working directory, another environment, a thread that still runs, a device whose context is broken
for good. The cheap things are compared after each job, and put back where they can be. A process
that raised what says that it is broken does no further job.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

from holdfast.errors import text_of

_BROKEN: Final = frozenset(
    {
        "AcceleratorError",
        "CudaError",
        "CUDAError",
        "CUDARuntimeError",
        "CUDADriverError",
        "CudaAPIError",
        "CudaDriverError",
        "XlaRuntimeError",
        "JaxRuntimeError",
        "OutOfMemoryError",
        "MemoryError",
        "BrokenProcessPool",
        "BrokenExecutor",
    }
)
"""Names of error classes that say something of the process, and not of the message."""

_BROKEN_TEXTS: Final = ("CUDA error", "HIP error", "device-side assert", "CUDA driver error")
"""What a `RuntimeError` of an older library says instead."""

_CHAIN_MAX: Final = 64
_handler_of: Final = getattr(signal.getsignal, "__wrapped__", signal.getsignal)
"""Without making an enum of each number, which takes 15 times as long."""
_LIMITS: Final = tuple(
    getattr(resource, f"RLIMIT_{name}")
    for name in ("AS", "CORE", "CPU", "DATA", "FSIZE", "NOFILE", "NPROC", "STACK")
    if hasattr(resource, f"RLIMIT_{name}")
)


class _Said:
    is_worker = False
    reason: str | None = None


def worker_broken(reason: str = "") -> bool:
    """Say that this worker process is not to do another job, for example as a library lost its
    connection for good.

    For handlers and readers with ``runs_in="process"``: the process ends after the job that calls
    this, and the next job gets a new one. ``reason`` goes into the node's log. Returns whether this
    is a worker process; elsewhere it does nothing.
    """
    if _Said.is_worker:
        _Said.reason = reason or "its code called worker_broken()"
    return _Said.is_worker


def begin_work() -> None:
    """This process is a worker."""
    _Said.is_worker = True


def why_broken(error: BaseException | None) -> str:
    """What says that this process is broken, empty for nothing: the code itself, or the error of
    its job."""
    if _Said.reason is not None:
        return _Said.reason
    for one in _chain(error):
        for cls in type(one).__mro__:
            if cls.__name__ in _BROKEN:
                return f"its job raised {cls.__name__}"
        if isinstance(one, RuntimeError):
            text = text_of(one)
            if found := next((known for known in _BROKEN_TEXTS if known in text), ""):
                return f"its job raised {type(one).__name__}: {found}"
    return ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, its causes, and the members of groups."""
    waiting, seen = [error], set[int]()
    while waiting and len(seen) < _CHAIN_MAX:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions


class Baseline:
    """What this process is like before a job. `restore` makes it so again."""

    def __init__(self) -> None:
        self._directory = os.open(".", os.O_RDONLY | os.O_CLOEXEC)
        self._where = _directory()
        self._environment = dict(os.environ)
        self._encoded = dict(_environment())
        self._path = list(sys.path)
        self._signals = [int(number) for number in signal.valid_signals()]
        self._handlers = [_handler_of(number) for number in self._signals]
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        self._umask = _umask()
        self._limits = [resource.getrlimit(one) for one in _LIMITS]
        self._processors = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
        self._ids = _ids()
        self._streams = sys.stdin, sys.stdout, sys.stderr
        self._files = [_file(number) for number in range(3)]
        self._interpreter = _interpreter()
        self._threads = set(threading.enumerate())

    def restore(self) -> str:
        """Put back what a job changed; return what cannot be put back, empty for nothing."""
        reasons = [reason for reason in (self._gone(), self._left_running()) if reason]
        if not reasons:
            try:
                self._put_back()
            except Exception as error:  # it is not the process that it was
                reasons = [f"its job changed the process, which cannot be undone: {error!r}"]
        return "; ".join(reasons)

    def _gone(self) -> str:
        if [_file(number) for number in range(3)] != self._files:
            return "its job closed or replaced a standard stream"
        if _ids() != self._ids:
            return "its job changed the user or the priority of the process"
        return ""

    def _left_running(self) -> str:
        left = [
            one.name for one in threading.enumerate() if one not in self._threads and not one.daemon
        ]
        if left:
            return f"its job left a thread running: {', '.join(left)[:200]}"
        return "its job left a program running" if _has_children() else ""

    def _put_back(self) -> None:
        if _directory() != self._where:
            os.fchdir(self._directory)
        if _environment() != self._encoded:
            for name in set(os.environ) - set(self._environment):
                del os.environ[name]
            os.environ.update(self._environment)
        if sys.path != self._path:
            sys.path[:] = self._path
        if [_handler_of(number) for number in self._signals] != self._handlers:
            for number, handler in zip(self._signals, self._handlers, strict=True):
                if handler is not None and _handler_of(number) is not handler:
                    signal.signal(number, handler)
        if signal.pthread_sigmask(signal.SIG_BLOCK, []) != self._mask:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        if _umask() != self._umask:
            os.umask(self._umask)
        if [resource.getrlimit(one) for one in _LIMITS] != self._limits:
            for one, both in zip(_LIMITS, self._limits, strict=True):
                resource.setrlimit(one, both)
        if self._processors and os.sched_getaffinity(0) != self._processors:
            os.sched_setaffinity(0, self._processors)
        sys.stdin, sys.stdout, sys.stderr = self._streams
        if _interpreter() != self._interpreter:
            recursion, switch, enabled, thresholds = self._interpreter
            sys.setrecursionlimit(recursion)
            sys.setswitchinterval(switch)
            (gc.enable if enabled else gc.disable)()
            gc.set_threshold(*thresholds)


def _environment() -> Any:
    """As it is kept, which is a hundred times faster to compare."""
    return getattr(os.environ, "_data", os.environ)


def _directory() -> tuple[int, int]:
    found = os.stat(".")  # noqa: PTH116
    return found.st_dev, found.st_ino


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _ids() -> tuple[int, ...]:
    return (os.geteuid(), os.getegid(), os.getpriority(os.PRIO_PROCESS, 0), os.getpid())


def _interpreter() -> tuple[int, float, bool, tuple[int, int, int]]:
    return sys.getrecursionlimit(), sys.getswitchinterval(), gc.isenabled(), gc.get_threshold()


def _file(number: int) -> tuple[int, int] | None:
    try:
        found = os.fstat(number)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _has_children() -> bool:
    """Whether a program that was started still runs. What ended, and was not waited for, is."""
    helper: Any = getattr(
        sys.modules.get("multiprocessing.resource_tracker"), "_resource_tracker", None
    )
    # a helper of multiprocessing, which ends with this process
    known = getattr(helper, "_pid", None)
    with suppress(ChildProcessError):
        while (found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            os.waitpid(found.si_pid, 0)
        return known is None or _several_children(known)
    return False


def _several_children(known: int) -> bool:
    try:
        with open(f"/proc/self/task/{threading.get_native_id()}/children") as file:  # noqa: PTH123
            return any(int(pid) != known for pid in file.read().split())
    except OSError:
        return True
