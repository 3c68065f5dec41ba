"""A node's worker processes: started when they are needed, kept for the next job of the same kind
of agents, replaced.

No process serves two kinds, so that what a library of one kind breaks stays with that kind. A
process that ends, closes its channel, says what cannot be read, does not begin in time, or goes on
too long after its caller gave up is killed, with the programs that it started, and the next job
gets a new one. A job that had not begun is given to another process.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from holdfast import codec, ids, limits, pipes, said
from holdfast.errors import HandlerFailed
from holdfast.lines import TextReader
from holdfast.serving.workers.channel import (
    LENGTH_BYTES,
    Answer,
    Begun,
    Done,
    Failed,
    Job,
    Told,
    framed,
)

_logger = logging.getLogger(__name__)

_decode_said = msgspec.msgpack.Decoder(Begun | Answer).decode
_ROOT: Final = str(Path(__file__).parents[3])
_MAIN: Final = (
    f"import sys; sys.path.append({_ROOT!r}); from holdfast.serving.workers.main import main; "
    "sys.exit(main(int(sys.argv[1])))"
)


class _NotBegun(Exception):
    """The process did not get to the job."""


class _Worker:
    """One process, in this node's hands."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        texts: tuple[int, int],
    ) -> None:
        self.process = process
        self.agent_id = ""
        self.jobs = 0
        self.started = time.monotonic()
        self.last_failure = ("", "")
        """The cause and the agent of the last job, if that failed."""
        self.ended: asyncio.Task[None] | None = None
        self._reader = reader
        self._writer = writer
        self._texts = [
            TextReader(pipe, self._on_text(number)) for number, pipe in enumerate(texts, 1)
        ]
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        """See its end though a fork of it lives on and keeps the channel."""
        await self.process.wait()
        self._kill_group()
        end = time.monotonic() + limits.WORKER_CLOSE_SECONDS
        # what it said last is on its way
        while not self._reader.at_eof() and time.monotonic() < end:
            await asyncio.sleep(0.05)
        self._reader.feed_eof()

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def _on_text(self, number: int) -> Any:
        return lambda text: said.hand_on(self.agent_id, text, number)

    @property
    def is_there(self) -> bool:
        """Whether it can take a job, as far as is known."""
        return self.process.returncode is None and not self._reader.at_eof() and self.ended is None

    async def do(self, job: Job) -> Answer:
        """Have it do a job. Raises `_NotBegun`, and `HandlerFailed` where the process is to be
        ended."""
        self.agent_id = "/".join(ids.from_agent_token(job.token))
        self.jobs += 1
        begun = False
        try:
            async with asyncio.timeout(limits.WORKER_BEGIN_SECONDS):
                self._writer.write(framed(codec.encode_raw(job)))
                await self._writer.drain()
                found = await self._read()
            if isinstance(found, Begun):
                begun = True
                left = (
                    job.deadline - time.time() + limits.WORKER_GRACE_SECONDS
                    if job.deadline
                    else None
                )
                async with asyncio.timeout(left):
                    found = await self._read()
        except TimeoutError:
            if not begun:
                raise _NotBegun(
                    f"did not begin within {limits.WORKER_BEGIN_SECONDS:.0f} s"
                ) from None
            raise self._failed(
                job,
                f"did not end within {limits.WORKER_GRACE_SECONDS:.0f} s after its caller gave "
                "up: send it, or give it more time",
            ) from None
        except (OSError, asyncio.IncompleteReadError, EOFError):
            why = await self._end_text()
            if not begun:
                raise _NotBegun(why) from None
            raise self._failed(job, why) from None
        except msgspec.MsgspecError as error:
            raise self._failed(job, f"said what cannot be read ({error})") from None
        if not isinstance(found, Answer):
            raise self._failed(job, "said that it began twice")
        for text in self._texts:
            text.finish()
        return found

    async def _read(self) -> Begun | Answer:
        size = int.from_bytes(await self._reader.readexactly(LENGTH_BYTES), "big")
        if size > limits.WORKER_FRAME_BYTES_MAX:
            raise msgspec.DecodeError(f"a frame of {size} bytes")
        found: Begun | Answer = _decode_said(await self._reader.readexactly(size))
        return found

    def _failed(self, job: Job, why: str) -> HandlerFailed:
        kind = self.agent_id.partition("/")[0]
        return HandlerFailed(
            f"the worker process of {kind}.{job.handler} {why}", "BrokenWorkerProcess"
        )

    async def _end_text(self) -> str:
        """How its process ended, or that it closed the channel."""
        with suppress(TimeoutError):
            async with asyncio.timeout(limits.WORKER_CLOSE_SECONDS):
                await self.process.wait()
        code = self.process.returncode
        if code is None:
            return "closed the pipes that it was given"
        if code >= 0:
            return f"ended with code {code}"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = "unknown"
        return (
            f"was killed by signal {-code} "
            f"({name}{': out of memory?' if code == -signal.SIGKILL else ''})"
        )

    def told(self, told: Told) -> None:
        """Say what every worker is told first."""
        self._writer.write(framed(codec.encode_raw(told)))

    def end(self, at_once: bool) -> asyncio.Task[None]:
        """End its process, and the programs that it started, also where the caller is cancelled."""
        if self.ended is None:
            self.ended = asyncio.get_running_loop().create_task(self._end(at_once))
        return self.ended

    async def _end(self, at_once: bool) -> None:
        self._writer.close()
        if not at_once:
            with suppress(TimeoutError):
                async with asyncio.timeout(limits.WORKER_CLOSE_SECONDS):
                    await self.process.wait()
        self._kill_group()
        await self.process.wait()
        self._watching.cancel()
        for text in self._texts:
            text.finish()
            text.close()


class _Kind:
    """The processes of one kind of agents that have nothing to do, and what its code raises again
    and again."""

    def __init__(self) -> None:
        self.idle: list[_Worker] = []
        self._causes: dict[str, tuple[float, float]] = {}
        """When a process was last replaced for a cause, and how long from then on none is replaced
        for it."""

    def suspects(self, worker: _Worker, failed: Failed) -> bool:
        """Whether the same failure of two agents in a row says that a process is broken.

        A process is replaced for one cause once a minute at most: a rule that is wrong must not
        cost more than that. Where one that was started since then does the same with its first job,
        it looks like the code, and that minute becomes ten. Not more: it may have broken as the
        first one did. And a first job that fails proves nothing where no process was replaced for
        it: that job may be what breaks the process for all that come after it.
        """
        cause, now = failed.cause, time.monotonic()
        if not cause:
            return False
        replaced, pause = self._causes.get(cause, (float("-inf"), 0.0))
        if worker.jobs == 1:
            if replaced < worker.started and now < replaced + limits.WORKER_CODE_SECONDS:
                self._note(cause, replaced, limits.WORKER_CODE_SECONDS)
            return False
        last, agent_id = worker.last_failure
        if last != cause or agent_id == worker.agent_id or now < replaced + pause:
            return False
        self._note(cause, now, limits.WORKER_DOUBT_SECONDS)
        return True

    def _note(self, cause: str, replaced: float, pause: float) -> None:
        self._causes.pop(cause, None)
        self._causes[cause] = (replaced, pause)
        if len(self._causes) > limits.WORKER_CAUSES_MAX:
            del self._causes[next(iter(self._causes))]


class Processes:
    """See the module: the worker processes of one node."""

    def __init__(self) -> None:
        self._kinds: dict[str, _Kind] = {}
        self._busy: set[_Worker] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._starting: set[asyncio.Task[_Worker]] = set()
        self._timers: dict[_Worker, asyncio.TimerHandle] = {}
        """Of those that have nothing to do; the one that waits the longest first."""

    async def run(self, kind: str, job: Job) -> Done | Failed:
        """Have a job done. Raises `HandlerFailed` where its process ended, or could not begin."""
        found = self._kinds.setdefault(kind, _Kind())
        for _ in range(limits.WORKER_ATTEMPTS_MAX):
            worker = self._take(found) or await self._start()
            try:
                answer = await worker.do(job)
            except _NotBegun as error:
                why = str(error)
                _logger.warning("a worker process of %s is replaced: it %s", kind, why)
                self._end(worker)
            except BaseException as error:
                if isinstance(error, HandlerFailed):
                    _logger.warning("%s; it is replaced", error)
                self._end(worker)
                raise
            else:
                self._did(found, worker, answer)
                return answer.result
        raise HandlerFailed(
            f"the worker process of {kind}.{job.handler} {why}, before it began",
            "BrokenWorkerProcess",
        )

    def _did(self, kind: _Kind, worker: _Worker, answer: Answer) -> None:
        ends = answer.ends
        if isinstance(answer.result, Failed):
            if not ends and kind.suspects(worker, answer.result):
                ends = f"the jobs of two agents in a row raised {answer.result.cause}"
            worker.last_failure = (answer.result.cause, worker.agent_id)
        else:
            worker.last_failure = ("", "")
        if ends:
            _logger.warning(
                "the worker process that worked for %s is replaced: %s", worker.agent_id, ends
            )
            self._end(worker, at_once=False)
            return
        self._busy.discard(worker)
        kind.idle.append(worker)
        later = asyncio.get_running_loop().call_later
        self._timers[worker] = later(limits.WORKER_IDLE_SECONDS, self._retire, kind, worker)
        while len(self._timers) > limits.WORKERS_IDLE_MAX:
            oldest = next(iter(self._timers))
            self._retire(next(one for one in self._kinds.values() if oldest in one.idle), oldest)

    def _retire(self, kind: _Kind, worker: _Worker) -> None:
        kind.idle.remove(worker)
        self._timers.pop(worker).cancel()
        self._end(worker, at_once=False)

    def _take(self, kind: _Kind) -> _Worker | None:
        while kind.idle:
            worker = kind.idle.pop()
            self._timers.pop(worker).cancel()
            if worker.is_there:
                self._busy.add(worker)
                return worker
            self._end(worker)  # it ended meanwhile
        return None

    def _end(self, worker: _Worker, at_once: bool = True) -> None:
        self._busy.discard(worker)
        ending = worker.end(at_once)
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def _start(self) -> _Worker:
        starting = asyncio.get_running_loop().create_task(_start())
        self._starting.add(starting)
        starting.add_done_callback(self._starting.discard)
        try:
            worker = await asyncio.shield(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(self._unwanted)
            raise
        self._busy.add(worker)
        return worker

    def _unwanted(self, starting: asyncio.Task[_Worker]) -> None:
        if not starting.cancelled() and starting.exception() is None:
            self._end(starting.result())

    async def close(self) -> None:
        """End all processes."""
        await asyncio.gather(*self._starting, return_exceptions=True)
        for kind in self._kinds.values():
            for worker in list(kind.idle):
                self._retire(kind, worker)
        for worker in list(self._busy):
            self._end(worker)
        await asyncio.gather(*self._ending, return_exceptions=True)


async def _start() -> _Worker:
    ours, theirs = socket.socketpair()
    outputs = [pipes.make(), pipes.make()]
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-c",
            _MAIN,
            str(theirs.fileno()),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=outputs[0][1],
            stderr=outputs[1][1],
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
    except BaseException:
        ours.close()
        for reading, _ in outputs:
            os.close(reading)
        raise
    finally:
        theirs.close()
        for _, writing in outputs:
            os.close(writing)
    try:
        ours.setblocking(False)
        reader, writer = await asyncio.open_unix_connection(sock=ours)
    except BaseException:
        ours.close()
        for reading, _ in outputs:
            os.close(reading)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        raise
    worker = _Worker(process, reader, writer, (outputs[0][0], outputs[1][0]))
    path = [str(Path(entry).resolve()) for entry in sys.path]
    worker.told(Told(os.getpid(), path, logging.getLogger().getEffectiveLevel()))
    return worker
