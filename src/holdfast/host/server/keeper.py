"""Keeps a host's nats-server alive: starts it again when it ends, and ends it when it is of no use.

A server may be of no use while its process lives: it stores nothing any more after a write that
failed, its files were removed, or it is frozen, so that callers who are connected to it wait and
nobody is told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from holdfast.errors import ConfigError, HoldfastError, StorageFailed
from holdfast.host import frozen, state
from holdfast.host.server import store
from holdfast.host.server.nats_server import NatsServer

RESTART_SECONDS_MIN: Final = 0.2
RESTART_SECONDS_MAX: Final = 10.0
STABLE_SECONDS: Final = 10.0
"""A process that lived so long starts again at once."""

STORING_SECONDS: Final = 60.0
"""One that was ended because it stored nothing starts again at once where it lived so long
before."""

_WATCH_SECONDS: Final = 5.0


def longer(delay: float) -> float:
    """The pause before the next start, after one that was no use."""
    return min(max(delay, RESTART_SECONDS_MIN) * 2, RESTART_SECONDS_MAX)


def pause(before: float, lived_seconds: float, stored: bool) -> float:
    """The pause before the next start. ``before``: the one before the process that ended.
    ``stored``: as far as is known.

    A disk that refuses writes is seen only after some seconds of life, which is no sign that it
    takes them.
    """
    stable = lived_seconds > (STABLE_SECONDS if stored else STORING_SECONDS)
    return RESTART_SECONDS_MIN if stable else longer(before)


async def _nothing_known() -> str:
    return ""


class Keeper:
    """See the module. ``say``: hears of each event. ``write_error``: why the server takes no
    writes, as it says itself."""

    def __init__(
        self,
        server: NatsServer,
        say: Callable[[str, dict[str, Any]], None],
        write_error: Callable[[], Awaitable[str]] = _nothing_known,
    ) -> None:
        self.server = server
        self.stopping = False
        """Whether the host ends, so that nothing is started again."""
        self.store_gone = False
        self._say = say
        self._write_error = write_error
        self._stored = True
        """Whether the process that runs is not known to store nothing."""
        self._restarting = asyncio.Lock()
        self._between: Callable[[], None] | None = None
        """What is to be done before the next start, until that begins."""
        self._failed: OSError | ConfigError | None = None
        """What came of it."""
        self._restarted = asyncio.Event()

    def tasks(self) -> list[asyncio.Task[None]]:
        """Begin; the tasks go on until they are cancelled, or raise what ends the host."""
        loop = asyncio.get_running_loop()
        works = (self._keep(), self._watch_store(), self._watch_files(), self._watch_frozen())
        return [loop.create_task(work) for work in works]

    @property
    def _facts(self) -> dict[str, Any]:
        return {"server": self.server.settings.name}

    @property
    def _expects_it(self) -> bool:
        """Whether the server is to run at this moment."""
        return self.server.pid != 0 and self._between is None and not self.stopping

    async def start(self) -> None:
        """Start the server for the first time. Raises `ConfigError`."""
        await self.server.start()
        self._say("server", {**self._facts, "server_pid": self.server.pid, "url": self.server.url})

    async def restart(self, between: Callable[[], None]) -> None:
        """End the server, do something, and start it again; one caller at a time.

        Raises `StorageFailed` where what was to be done ended with an `OSError`: the server runs
        again all the same. Whoever is cancelled may find it done or not, but it is not done later.
        """
        async with self._restarting:
            self._restarted.clear()
            self._between, self._failed = between, None
            try:
                await self.server.stop()
                await self._restarted.wait()
            finally:
                self._between = None
            if self._failed is not None:
                raise StorageFailed(
                    f"the store of {self.server.settings.name} stays as it is: {self._failed}"
                )

    def _work(self) -> None:
        """Do what is to be done while the server is down."""
        between, self._between = self._between, None
        if between is None:
            return
        try:
            between()
        except (OSError, ConfigError) as error:
            self._failed = error
            self._say("store-unchanged", {**self._facts, "error": str(error)})

    async def _keep(self) -> None:
        delay = RESTART_SECONDS_MIN
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            code = await self.server.wait()
            stored, self._stored = self._stored, True
            if self.stopping:
                return
            if self.store_gone:
                await asyncio.Event().wait()  # it would begin an empty store
            if self._between is not None:
                delay = 0.0
            else:
                self._say("server-ended", {**self._facts, "code": code})
                delay = pause(delay, loop.time() - started, stored)
            while True:
                await asyncio.sleep(delay)
                self._work()
                try:
                    await self.start()
                    break
                except (HoldfastError, OSError) as error:
                    self._say("server-failed", {**self._facts, "error": str(error)})
                    delay = longer(delay)
            if self._between is None:
                self._restarted.set()
            else:  # it was asked for while the server started
                await self.server.stop()

    async def _watch_store(self) -> None:
        """A server whose disk failed or was full stores nothing more, for good: a start finds out
        if it can now."""
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            pid = self.server.pid
            if not self._expects_it or not (why := await self._stores_nothing()):
                continue
            if pid == self.server.pid and self._expects_it:
                self._say(
                    "server-stores-nothing",
                    {**self._facts, "why": why, "log": self.server.log_end(4)},
                )
                self._stored = False
                await self.server.kill()

    async def _stores_nothing(self) -> str:
        """Why the server stores nothing any more; empty where it does, or does not say."""
        if why := await self._write_error():
            return why
        return "its disk may be full" if await self.server.stores_nothing() else ""

    async def _watch_files(self) -> None:
        """Raises `StorageFailed`, with the server killed, when the files that it writes are not at
        their path any more."""
        text, seen = await store.gone(
            self.server, lambda: self._between is not None or self.stopping
        )
        self.store_gone = True
        await self.server.kill()
        if await asyncio.to_thread(seen.is_anew):
            text += self._put_aside()
        self._say("store-gone", {**self._facts, "text": text})
        raise StorageFailed(
            f"{text}. Its server was stopped, as what it would acknowledge is lost; see "
            "`docs/cluster.md`"
        )

    def _put_aside(self) -> str:
        """What is there after a store was removed is not to be taken for it; say where it is."""
        try:
            room = state.put_aside(Path(self.server.settings.directory))
            return "" if room is None else f" (what is there now was put aside, into {room})"
        except (OSError, ConfigError) as error:
            return f" (move away what is there now, as it cannot be put aside: {error})"

    async def _watch_frozen(self) -> None:
        """A frozen server is said after some looks, and killed after some more: then it is started
        again."""
        await frozen.watch(
            "server",
            lambda: self.server.pid if self._expects_it else 0,
            self.server.answers,
            lambda event, facts: self._say(event, {**self._facts, **facts}),
            self.server.kill,
        )
