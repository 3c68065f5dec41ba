"""What takes this host's server away for a while, or throws one of its copies away: checked, and
one host at a time.

The host holds the cluster-wide record (`Exclusive`) from before it checks until its server has
everything again, so the next host's check finds all copies whole. A host that restarts as a new
process goes on with the record of the old one.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from holdfast import files, ids, limits
from holdfast.engines.nats import streams
from holdfast.engines.nats.streams import OURS
from holdfast.errors import HoldfastError, InvalidName, NotDone, NotFound, StorageFailed, Unknown
from holdfast.host.exclusive import Exclusive
from holdfast.host.guards import Guards
from holdfast.host.this_host import ThisHost

_ANSWER_SECONDS: Final = 0.2
"""The answer to a request goes through the very server that is then stopped."""

_LOOK_SECONDS: Final = 0.5
_DISCARDED: Final = "discarded"
_WHOLE_PART: Final = 0.99
"""Of the leader's records: under load the two are never counted at the same moment."""


class Changes:
    """See the module; for one host. ``process``: this life of it."""

    def __init__(self, host: ThisHost, process: str) -> None:
        self.guards = Guards(host)
        self._host = host
        self._process = process
        self._made: Exclusive | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def _exclusive(self) -> Exclusive:
        if self._made is None:
            self._made = Exclusive(self._host.engine, self._host.settings.name, self._process)
        return self._made

    async def close(self) -> None:
        """Stop waiting for copies; what is under way is taken up by the next process of this
        host."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # A restart ------------------------------------------------------------------------------------

    async def restart(self) -> None:
        """Have this host's process begin again. Raises `NoQuorum`, `Conflict` where the others
        cannot do without it."""
        if self._host.server is not None and await self.guards.may_be_away():
            await self._exclusive.take("it restarts")
            try:
                await self.guards.may_be_away()
            except BaseException:
                await self._exclusive.release()
                raise
        self._host.wants_restart.set()

    async def resume(self) -> None:
        """Take up what a former process of this host began, and end it when the server has
        everything."""
        while True:
            try:
                if not await self._exclusive.adopt():
                    return
                break
            except (NotDone, Unknown):
                await asyncio.sleep(_LOOK_SECONDS)
        async with self._working():
            if self._host.server is not None:
                for path in Path(self._host.server.settings.directory).glob(f"{_DISCARDED}-*"):
                    await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)
            for stream in await self._own_streams():
                await self._whole(stream)

    # A new copy -----------------------------------------------------------------------------------

    async def rebuild(self, stream: str, raft_group: str) -> None:
        """Have the copy of a stream thrown away, so that the others send a new one. It returns
        before that begins.

        Raises `InvalidName` for a stream that is not Holdfast's, `NotFound` for no copy, `NoQuorum`
        where this copy may be needed, `Conflict` where another host is at work.
        """
        server = self._host.server
        assert server is not None
        if not OURS.fullmatch(stream) or not re.fullmatch(r"[A-Za-z0-9_-]+", raft_group):
            raise InvalidName(f"{stream!r} in {raft_group!r} is not a stream of Holdfast's")
        root = Path(server.settings.directory) / "jetstream"
        found = [*root.glob(f"*/*/streams/{stream}"), *root.glob(f"*/*/_js_/{raft_group}")]
        if not any(path.parent.name == "streams" for path in found):
            raise NotFound(f"host {self._host.settings.name} keeps no copy of {stream}")
        await self._exclusive.take(f"it gets a new copy of {stream}")
        try:
            await self.guards.may_discard(stream)
            await self._exclusive.renew()
        except BaseException:
            await self._exclusive.release()
            raise
        self._task = asyncio.get_running_loop().create_task(self._rebuild(stream, found))

    async def _rebuild(self, stream: str, paths: list[Path]) -> None:
        server = self._host.server
        assert server is not None
        await asyncio.sleep(_ANSWER_SECONDS)
        away = Path(server.settings.directory) / ids.new_id(_DISCARDED)

        def move() -> None:
            files.make_directory(away)
            for number, path in enumerate(paths):
                with suppress(FileNotFoundError):
                    path.rename(away / str(number))

        async with self._working():
            assert self._host.keeper is not None
            try:
                await self._host.keeper.restart(move)
            except StorageFailed:  # the keeper said so; the next comparison finds what stays
                return
            finally:
                await asyncio.to_thread(shutil.rmtree, away, ignore_errors=True)
            self._host.say("copy-discarded", {"stream": stream})
            if await self._whole(stream):
                self._host.say("copy-whole", {"stream": stream})

    # Until it is whole ----------------------------------------------------------------------------

    @asynccontextmanager
    async def _working(self) -> AsyncIterator[None]:
        """The record is written again while this lasts, and taken away afterwards. Whoever is
        cancelled leaves it: the next process of this host takes up what is under way."""
        renewing = asyncio.get_running_loop().create_task(self._renew())
        ended = True
        try:
            yield
        except asyncio.CancelledError:
            ended = False
            raise
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
            if ended:
                await self._exclusive.release()

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(limits.EXCLUSIVE_RENEW_SECONDS)
            with suppress(HoldfastError):
                await self._exclusive.renew()

    async def _own_streams(self) -> list[str]:
        system = self._host.system
        end = asyncio.get_running_loop().time() + limits.REBUILD_SECONDS
        while system is not None and asyncio.get_running_loop().time() < end:
            with suppress(NotDone, Unknown):
                return [replica.stream for replica in await system.replicas()]
            await asyncio.sleep(_LOOK_SECONDS)
        return []

    async def _whole(self, stream: str) -> bool:
        """Wait until the own copy has all that the leader has; False where it gets no further for
        long: the host says so."""
        system, loop = self._host.system, asyncio.get_running_loop()
        most, moved_at = -1, loop.time()
        while system is not None and loop.time() - moved_at < limits.REBUILD_SECONDS:
            with suppress(NotDone, Unknown, InvalidName):
                facts = await streams.info(self._host.engine.connection, stream)
                own = next((one for one in await system.replicas() if one.stream == stream), None)
                if own is not None:
                    behind = own.last_sequence < facts.state.last_seq
                    if not behind and own.messages >= facts.state.messages * _WHOLE_PART:
                        return True
                    if own.messages > most:
                        most, moved_at = own.messages, loop.time()
            await asyncio.sleep(_LOOK_SECONDS)
        self._host.say("copy-not-whole", {"stream": stream})
        return False
