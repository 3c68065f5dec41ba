"""Whether a server's store is still where it was: files without a name take writes like any other,
and are lost.

A cleaner of temporary directories, an `rm -rf`, a disk that was unmounted: the server goes on with
the files that it has open, and acknowledges. It does not look at their paths. So its host does,
once a second. A server that was started again would begin an empty store, and the data would seem
never to have been; so the host ends instead, and says why.

A server makes directories that were removed anew when it makes a stream. Nothing that it promised
before is in them, so they are not to be taken for its store: the host puts them aside.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from holdfast.host import state
from holdfast.host.server.nats_server import NatsServer

LOOK_SECONDS: Final = 1.0
_START_SECONDS: Final = 0.1
"""The first look comes so soon after the server's start: what is removed before it goes
unnoticed."""

_SIGN: Final = "meta.inf"
"""A stream's directory has it from its making to its end."""


class Store:
    """The directories of one server, as they were when they were seen first.

    ``before``: the same, as they were when the server ran the last time.
    """

    def __init__(self, directory: Path, before: Store | None = None) -> None:
        self._root = directory
        self._named: bool = before is not None and before._named
        """Whether it ever said whose it is."""
        self._signed: set[Path] = set() if before is None else before._signed
        """The streams that it had when it was looked at last."""
        self._seen: dict[Path, tuple[int, int]] = {}
        self._without_sign: set[Path] = set()

    def look(self) -> str:
        """What is wrong with the store, empty for nothing."""
        try:
            streams = self._streams()
        except OSError as error:
            return (
                f"{error.filename} is gone ({error.strerror}): it was removed, or its disk was "
                "unmounted"
            )
        if other := self._replaced():
            return f"{other} is not the one that the server has open: it was replaced"
        # A stream that is being made has none yet, for as long as its server is slow or frozen. One
        # that is being deleted may be without it for a moment, so it is looked for twice.
        signed = set(filter(_is_signed, streams))
        without = {
            path
            for path in streams
            if path in self._signed and path not in signed and path.is_dir()
        }
        self._signed = signed | without
        self._named = self._named or self._is_named()
        again = without & self._without_sign
        self._without_sign = without
        return f"files of {min(again)} are gone: they were removed" if again else ""

    def is_anew(self) -> bool:
        """Whether what is there was begun by its server after the store was removed: then it has no
        name."""
        try:
            return self._root.exists() and self._replaced() is not None and not self._is_named()
        except OSError:  # a disk that answers nothing
            return False

    def _replaced(self) -> Path | None:
        """What is not the one that it was.

        The next directory may have the number of the one that was removed. Then neither its streams
        nor its name are there.
        """
        for path, identity in self._seen.items():
            with suppress(FileNotFoundError):
                found = path.stat()
                if (found.st_dev, found.st_ino) != identity:
                    return path
        nothing_left = (
            self._named and not self._is_named() and not any(map(_is_signed, self._signed))
        )
        return self._root if nothing_left else None

    def _is_named(self) -> bool:
        return (self._root / state.NAME).exists()

    def _streams(self) -> list[Path]:
        """The directories of streams; notes those above them. Raises `OSError` where one that was
        there is not."""
        above = [self._root, *self._seen]
        for path in dict.fromkeys(above):
            self._note(path)
        streams: list[Path] = []
        for account in _directories(self._root / "jetstream"):
            self._note(account.parent)
            self._note(account)
            if (account / "streams").is_dir():
                self._note(account / "streams")
                streams += _directories(account / "streams")
        return streams

    def _note(self, path: Path) -> None:
        found = path.stat()
        self._seen.setdefault(path, (found.st_dev, found.st_ino))


def _is_signed(stream: Path) -> bool:
    return (stream / _SIGN).exists()


def _directories(path: Path) -> list[Path]:
    try:
        return [
            Path(entry.path) for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False)
        ]
    except FileNotFoundError:
        return []


async def gone(server: NatsServer, at_rest: Callable[[], bool]) -> tuple[str, Store]:
    """Wait until the server's store is gone while it runs; say how. ``at_rest``: whether somebody
    changes the store now."""
    starts, store = -1, Store(server.store_path)
    while True:
        starting = server.settings.votes and (not server.pid or starts != server.starts)
        await asyncio.sleep(_START_SECONDS if starting else LOOK_SECONDS)
        if not server.settings.votes or at_rest():  # who does not vote stores nothing
            starts, store = -1, Store(server.store_path)
            continue
        if not server.pid:
            continue
        if starts != server.starts:
            starts, store = server.starts, Store(server.store_path, store)
        text = await asyncio.to_thread(store.look)
        if text and server.pid and starts == server.starts and not at_rest():
            return text, store
