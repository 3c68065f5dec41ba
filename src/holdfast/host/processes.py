"""What the kernel shows of other processes (Linux's ``/proc``): who has a file locked or listens on
a port, and how one does.

Elsewhere, and of other users' processes, it shows nothing: then nothing is claimed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from holdfast.engines.nats.urls import shown

_PROC: Final = Path("/proc")
_LISTENING: Final = "0A"
_COMMAND_BYTES_MAX: Final = 65_536
_COMMAND_CHARACTERS_MAX: Final = 120


class Progress(NamedTuple):
    """How a process does. ``state``: a letter, T for stopped; ``ticks``: processor time that it
    used until now."""

    state: str
    ticks: int


def is_alive(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def command_of(pid: int) -> str:
    """A process's command line, cut, without passwords in URLs; empty where the kernel does not
    show it."""
    try:
        with (_PROC / str(pid) / "cmdline").open("rb") as file:
            text = (
                file.read(_COMMAND_BYTES_MAX).replace(b"\0", b" ").decode(errors="replace").strip()
            )
    except OSError:
        return ""
    text = "".join(character if character.isprintable() else "?" for character in shown(text))
    return text if len(text) <= _COMMAND_CHARACTERS_MAX else f"{text[:_COMMAND_CHARACTERS_MAX]}…"


def progress_of(pid: int) -> Progress | None:
    """How a process does; None where the kernel does not show it."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
        return Progress(fields[0], int(fields[11]) + int(fields[12]))
    except (OSError, ValueError, IndexError):
        return None


def lockers(paths: list[Path]) -> list[int]:
    """The processes that have one of these files open and locked with ``flock``, as far as the
    kernel shows them."""
    inodes = set()
    for path in paths:
        with suppress(OSError):
            inodes.add(_inode(path))
    return [
        pid for pid in _pids() if any(_has_lock(pid, file, inodes) for file in _open_files(pid))
    ]


def listener_on(port: int) -> str:
    """The process that listens on a port, for people; empty where the kernel does not show it."""
    sockets = {f"socket:[{number}]" for number in _listening(port)}
    for pid in _pids():
        for file in _open_files(pid):
            with suppress(OSError):
                if str(file.readlink()) in sockets:
                    return (
                        f"process {pid} "
                        f"({(_PROC / str(pid) / 'comm').read_text(errors='replace').strip()})"
                    )
    return ""


def _pids() -> Iterator[int]:
    with suppress(OSError):
        yield from sorted(int(path.name) for path in _PROC.iterdir() if path.name.isdigit())


def _open_files(pid: int) -> list[Path]:
    with suppress(OSError):
        return list((_PROC / str(pid) / "fd").iterdir())
    return []


def _inode(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _has_lock(pid: int, file: Path, inodes: set[tuple[int, int]]) -> bool:
    with suppress(OSError):
        return _inode(file) in inodes and "FLOCK" in (
            _PROC / str(pid) / "fdinfo" / file.name
        ).read_text(errors="replace")
    return False


def _listening(port: int) -> set[str]:
    """The numbers of the sockets that listen on a port."""
    found = set()
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in (_PROC / "net" / table).read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    found.add(fields[9])
    return found
