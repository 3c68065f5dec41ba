"""Opening files of ours: no link is followed, nobody else may read them, and what is there already
is not taken for ours.

Who can write into a directory of ours, or guesses a name in `/tmp`, can put a symbolic link where
we are about to write: then we overwrite the file that it names, with our rights. A file that
somebody made before, open to all, would get what agents remember. So everything that we write is
opened here: without following a link at its end, as a regular file, with mode 0600, in directories
of mode 0700. Links among the directories before it are the operator's, and are followed.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO, Final

FILE_MODE: Final = 0o600
DIRECTORY_MODE: Final = 0o700
# a named pipe is refused, not waited for
_SAFE: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def make_directory(path: Path) -> None:
    """Make a directory, and those before it, for this user alone; those that are there stay as they
    are. Raises `OSError`."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        if path.parent == path:
            break
        path = path.parent
    for one in reversed(missing):
        try:
            one.mkdir(DIRECTORY_MODE)
        except FileExistsError:
            if not one.is_dir():
                raise


def descriptor(path: Path, flags: int) -> int:
    """Open a file of ours; where it is made, for this user alone. Raises `OSError` for a link and
    what is not a file."""
    try:
        opened = os.open(path, flags | _SAFE, FILE_MODE)
    except OSError as error:
        if error.errno == errno.ELOOP or (error.errno == errno.EEXIST and path.is_symlink()):
            raise OSError(
                error.errno,
                "it is a symbolic link, and none is followed here: remove it",
                str(path),
            ) from None
        raise
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise OSError(errno.EINVAL, "it is not a regular file: remove it", str(path))
    os.set_blocking(opened, True)
    return opened


def create(path: Path, flags: int = os.O_WRONLY) -> int:
    """Make a file that is not there yet. Raises `FileExistsError`, `OSError`."""
    return descriptor(path, flags | os.O_CREAT | os.O_EXCL)


def appending(path: Path) -> BinaryIO:
    """A file to write behind its end, made where there is none; others' rights to one that is there
    are taken away."""
    opened = descriptor(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    keep_private(opened)
    return os.fdopen(opened, "ab")


def keep_private(opened: int) -> None:
    """Take others' rights to an open file away, where it is this user's."""
    found = os.fstat(opened)
    if found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) & 0o077:
        os.fchmod(opened, FILE_MODE)


def write_private(path: Path, text: str) -> None:
    """Write a file for this user alone, whole or not at all; what is there, a link too, is
    replaced. Raises `OSError`.

    It is on the disk before it has its name: else a power cut leaves an empty file.
    """
    scratch = path.with_name(f"{path.name}.{os.getpid()}.new")
    scratch.unlink(missing_ok=True)
    try:
        with os.fdopen(create(scratch), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
        sync_directory(path.parent)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def sync_directory(path: Path) -> None:
    """Have a directory's names on the disk, where its file system does that. Raises `OSError`."""
    opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(opened)


def read_own(path: Path) -> bytes:
    """What a file of ours holds. Raises `OSError`, also for a link."""
    with os.fdopen(descriptor(path, os.O_RDONLY), "rb") as file:
        return file.read()


def open_to_all(path: Path) -> str:
    """What any user of this machine may do with a file that is to be secret, as its mode says;
    empty for nothing.

    A group may have its rights: that is how containers are given secrets. Raises `OSError`.
    """
    mode = path.stat().st_mode
    return "read" if mode & stat.S_IROTH else "write" if mode & stat.S_IWOTH else ""


def identity(path: Path) -> tuple[int, int]:
    """Which file a path leads to: its device and number. Raises `OSError`."""
    found = path.stat()
    return found.st_dev, found.st_ino
