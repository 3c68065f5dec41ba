"""One process at a time has an embedded log: a lock beside the file, and one on the file itself.

The lock file names its holder, but it is a file of its own: who deletes it, or comes by another
link to the log, would get another lock. So the log's file is locked too. Both locks belong to open
descriptors. A child made by `fork` has copies of these, and a lock lasts as long as one copy: so
children close them, and `release` unlocks before it closes.

The lock on the file is `flock`, which on Linux does not meet the locks that SQLite takes. Elsewhere
it may, so there the lock file alone has to do.
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from holdfast import files

_held: Final[dict[tuple[int, int], Lock]] = {}
"""The logs that this process has, by which file it is."""


class InUse(Exception):
    """Another process has the log, or this one has it already; ``owner`` is its number as text."""

    def __init__(self, owner: str) -> None:
        super().__init__(owner)
        self.owner = owner


class Lock:
    """See the module. ``path``: the log's file, which need not be there yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._beside = -1
        self._itself = -1
        self.identity: tuple[int, int] = (0, 0)
        """Which file it is that was locked."""

    def take(self) -> None:
        """Lock, making the files that are missing. Raises `InUse`, `OSError`."""
        beside = files.descriptor(_beside(self._path), os.O_RDWR | os.O_CREAT)
        try:
            _flock(beside, lambda: _noted(beside))
        except BaseException:
            os.close(beside)
            raise
        self._beside = beside
        try:
            files.keep_private(beside)
            os.ftruncate(beside, 0)
            os.pwrite(beside, f"{os.getpid()}\n".encode(), 0)
            self._take_itself()
        except BaseException:
            self.release()
            raise

    def _take_itself(self) -> None:
        try:
            # Not by a second descriptor: closing that would give up SQLite's own locks on the file.
            if files.identity(self._path) in _held:
                raise InUse(f"{os.getpid()} (this one)")
        except FileNotFoundError:
            pass
        itself = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, files.FILE_MODE)
        if sys.platform == "linux":
            try:
                _flock(itself, lambda: "")
            except BaseException:
                os.close(itself)
                raise
        self._itself = itself
        self._keep_private()
        found = os.fstat(itself)
        self.identity = found.st_dev, found.st_ino
        _held[self.identity] = self

    def _keep_private(self) -> None:
        """Take others' rights to the log away, which one from an earlier version may have. SQLite's
        own files copy them."""
        files.keep_private(self._itself)
        path = self._path.resolve()
        for suffix in ("-wal", "-shm"):
            with suppress(FileNotFoundError):
                left = files.descriptor(path.with_name(path.name + suffix), os.O_RDONLY)
                files.keep_private(left)
                os.close(left)  # no connection is open yet, which would lose its locks by that

    def release(self) -> None:
        """Let others have it. The log's connections are closed by then."""
        _held.pop(self.identity, None)
        self.identity = (0, 0)
        for opened in (self._itself, self._beside):
            if opened >= 0:
                fcntl.flock(opened, fcntl.LOCK_UN)
                os.close(opened)
        self._itself = self._beside = -1

    def _forget(self) -> None:
        """In a child: the lock is its parent's."""
        for opened in (self._itself, self._beside):
            if opened >= 0:
                os.close(opened)
        self._itself = self._beside = -1


def owner(path: Path) -> str:
    """The number of the process that a log's lock file names, as text."""
    try:
        beside = files.descriptor(_beside(path), os.O_RDONLY)
    except OSError:
        return "unknown"
    try:
        return _noted(beside) or "unknown"
    finally:
        os.close(beside)


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def _noted(beside: int) -> str:
    return os.pread(beside, 32, 0).decode(errors="replace").strip()


def _flock(opened: int, owner: Callable[[], str]) -> None:
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InUse(owner() or "unknown") from None


def _in_child() -> None:
    for lock in list(_held.values()):
        lock._forget()
    _held.clear()


os.register_at_fork(after_in_child=_in_child)
