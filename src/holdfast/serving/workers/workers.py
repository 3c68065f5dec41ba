"""Handlers that would stall their node's loop: in a thread where they block, in a worker process
where they compute.

A turn off the loop gets the agent's state as bytes and gives bytes back, so the loop shares no
object with it, and a worker process never unpickles anything of a user's. All else is as in any
turn: what comes back is committed under the fence, and what comes back too late, to a node that
lost the shard meanwhile, is dropped. The handler may send and set timers, which is part of the
turn's batch; it cannot wait for anything, as no loop runs where it does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

from holdfast import limits
from holdfast.agents import guard
from holdfast.agents.context import Context
from holdfast.children import PROCESSORS
from holdfast.errors import HandlerFailed, from_wire
from holdfast.serving.delivery import Delivery
from holdfast.serving.workers import modules
from holdfast.serving.workers.channel import Done, Failed, Job
from holdfast.serving.workers.pool import Processes
from holdfast.serving.workers.slots import Slots

if TYPE_CHECKING:
    from holdfast.agents.handler import Method
    from holdfast.agents.kind import Kind
    from holdfast.serving.turns.activation import Activation

_NO_LOOP: Final = (
    "what runs in a thread or a process has no loop, so it cannot wait: it may send and set "
    "timers, but it cannot ask or tell"
)
_UNBOUNDED: Final = 1 << 20
"""Threads of the pool: `Slots` says how many run."""


def job(
    activation: Activation,
    method: Method[Any, Any, Any],
    message: Delivery,
    context: Context,
    state: bytes,
) -> Job:
    """What a worker has to know to run a message's handler, or reader, on a state."""
    return Job(
        *modules.place_of(cast(Any, activation.kind.cls)),
        activation.token,
        method.name,
        message.arguments,
        state,
        context.message_key,
        context.deadline,
        context.keep_until,
        context.path,
        context.reads_only,
        activation.epoch,
        activation.timers or {},
        activation.generation,
    )


class Workers:
    """The threads and processes of one node; they are started when they are first needed."""

    def __init__(self) -> None:
        self._slots = {
            "thread": Slots(limits.HANDLER_THREADS_MAX, "thread"),
            "process": Slots(PROCESSORS, "process"),
        }
        self._waiting: dict[tuple[str, str], str] = {}
        self._threads: ThreadPoolExecutor | None = None
        self._processes: Processes | None = None

    async def run(self, activation: Activation, method: Method[Any, Any, Any], job: Job) -> Done:
        """Run a job where its method says. Raises what the method raised, and `HandlerFailed` where
        its process ended.

        Cancelled, it ends the process; a thread cannot be ended, so it is waited for.
        """
        kind, slots, key = (
            activation.kind.name,
            self._slots[method.runs_in],
            (job.token, job.message_key),
        )
        self._waiting[key] = method.runs_in
        try:
            await slots.take(kind)
        finally:
            self._waiting.pop(key, None)
        watch = slots.watch(job.token, job.handler)

        def ended(_: Any = None) -> None:
            watch.end()
            slots.release(kind)

        if method.runs_in == "process":
            try:
                return await self._in_process(kind, job)
            finally:
                ended()
        try:
            running = self._in_thread(activation, job)
        except BaseException:
            ended()
            raise
        running.add_done_callback(ended)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            if activation.loaded:  # its next turn must not run beside this one
                await asyncio.gather(running, return_exceptions=True)
            raise

    def awaited(self, token: str, message_key: str) -> str:
        """What a message waits for before its job can begin: a thread, a process, or nothing."""
        return self._waiting.get((token, message_key), "")

    def _in_thread(self, activation: Activation, job: Job) -> asyncio.Future[Done]:
        agent = object.__new__(activation.kind.cls)
        agent.__dict__ = activation.agent.__dict__
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_UNBOUNDED, "holdfast-handler")
        done = Future[Done]()
        work = partial(_do, done, activation.kind, agent, job, activation.is_live)
        try:
            submitted = self._threads.submit(work)
        except BaseException:
            # No thread could be started, and the pool keeps the job for the next one, which would
            # do it out of its turn.
            if done.cancel():
                raise
        else:
            submitted.add_done_callback(lambda dropped: dropped.cancelled() and done.cancel())
        return asyncio.wrap_future(done)

    async def _in_process(self, kind: str, job: Job) -> Done:
        if self._processes is None:
            self._processes = Processes()
        result = await self._processes.run(kind, job)
        if isinstance(result, Failed):
            raise from_wire(*result.error)
        return result

    async def close(self) -> None:
        """End the processes. A thread that blocks is left to itself."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        if self._processes is not None:
            await self._processes.close()


# In the thread or the process ---------------------------------------------------------------------


def _do(done: Future[Done], kind: Kind, *args: Any) -> None:
    """Do a job in a context of its own, unless it was given up. Whatever it raises is one of our
    errors."""
    if not done.set_running_or_notify_cancel():
        return
    try:
        done.set_result(
            guard.call(HandlerFailed, f"{kind.name}.{args[1].handler}", perform, kind, *args)
        )
    except BaseException as error:
        done.set_exception(error)


def perform(kind: Kind, agent: Any, job: Job, is_live: Callable[[], bool] = lambda: True) -> Done:
    """Do a job here and now, on an instance that nobody else has. A process whose agent is lost is
    ended, so it is live."""
    method = kind.methods[job.handler]
    host = _Host(job, is_live)
    agent._holdfast_context = context = Context(
        cast(Any, host), job.message_key, job.deadline, job.keep_until, job.path, job.reads_only
    )
    agent.state = (
        kind.view(job.state) if job.reads_only else kind.load_state(job.state, kind.state_version)
    )
    work = method.bind(agent, method.decode_arguments(job.arguments))
    try:
        work.send(None)
    except StopIteration as end:
        reply = method.encode_reply(end.value)
    else:
        work.close()
        raise RuntimeError(_NO_LOOP)
    if job.reads_only:
        return Done(reply)
    state, _ = kind.keep(agent.state)
    return Done(reply, state, context.outgoing or [], context.timers or {}, host.generation)


class _Host:
    """What a turn's context needs of an activation, where there is none."""

    def __init__(self, job: Job, is_live: Callable[[], bool]) -> None:
        self.is_live = is_live
        self.token = job.token
        self.epoch = job.epoch
        self.timers = job.timers
        self.generation = job.generation
        self.router = self

    def now(self) -> float:
        return time.time()

    def next_generation(self) -> int:
        self.generation += 1
        return self.generation

    def outcome(self, _message_id: str) -> NoReturn:
        raise RuntimeError(_NO_LOOP)

    # What the address of another agent needs of a router.

    async def place(self, _token: str, _pool: Any) -> None:
        """Its node does that, when the turn comes back."""

    @property
    def space(self) -> NoReturn:
        raise RuntimeError(_NO_LOOP)

    async def ask(self, *_args: Any, **_options: Any) -> NoReturn:
        raise RuntimeError(_NO_LOOP)

    def tell(self, *_args: Any) -> NoReturn:
        raise RuntimeError(_NO_LOOP)
