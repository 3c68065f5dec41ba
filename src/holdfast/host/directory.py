"""A host's directory belongs to one host at a time, and remembers what it was started as.

Two servers that write one store destroy it, and neither notices. So a host takes an exclusive lock
in its directory before it touches anything there. The kernel keeps a lock of this kind (``flock``)
as long as any process has it open, and the server inherits it: a host that was killed leaves the
lock to a server that outlived it. Both a file and the directory itself are locked, because anybody
may delete the file. A path that leads to the same directory meets the same lock.

A start without ``--hosts 3`` or ``--cohort`` would begin an empty cluster next to the data, or a
single server on a cohort's store. So the directory keeps what it was started as, and a later start
is compared with that.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from holdfast import files
from holdfast.errors import ConfigError
from holdfast.host import processes, state
from holdfast.host.state import STATE_FILE

LOCK_FILE: Final = "host.lock"
_STARTED_FILE: Final = "started.json"
_ORPHAN_SECONDS: Final = 5.0
"""How long a server that lost its host may take to end: the kernel kills it."""

_LOOK_SECONDS: Final = 0.05
_NO_LOCKS: Final = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_HOST_DIRECTORY: Final = re.compile(r"h[0-9]+")


class _Holder(msgspec.Struct):
    """What the lock file says of the process that took the lock."""

    pid: int
    command: str = ""
    server_pid: int = 0


class DirectoryLock:
    """The lock on one host's directory; see the module. It ends with `release`, and with the last
    process that has it."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self._descriptors: list[int] = []
        self._taking = threading.Lock()

    def __del__(self) -> None:
        self.release()

    def __enter__(self) -> Self:
        self.take()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What a child process inherits to hold the lock as well."""
        return tuple(self._descriptors)

    def take(self) -> None:
        """Take the lock, or do nothing where this object has it. Raises `ConfigError` that names
        who has it."""
        with self._taking:
            if self._descriptors:
                return
            end = time.monotonic() + _ORPHAN_SECONDS
            while not self._try():
                if self._is_held_by_a_host() or time.monotonic() > end:
                    raise ConfigError(self._refusal())
                time.sleep(_LOOK_SECONDS)
            self.note(0)

    def release(self) -> None:
        """Let go of the lock; a child that inherited it keeps it."""
        descriptors, self._descriptors = self._descriptors, []
        for descriptor in descriptors:
            with suppress(OSError):
                os.close(descriptor)

    def note(self, server_pid: int) -> None:
        """Note in the lock file who holds it, for people. It may be impossible: the lock holds all
        the same."""
        if not self._descriptors:
            return
        text = msgspec.json.encode(
            _Holder(os.getpid(), processes.command_of(os.getpid()), server_pid)
        )
        with suppress(OSError):
            os.ftruncate(self._descriptors[0], 0)
            os.pwrite(self._descriptors[0], text, 0)

    def _try(self) -> bool:
        path = self.directory / LOCK_FILE
        opened: list[int] = []
        try:
            files.make_directory(self.directory)
            while True:
                opened.append(
                    os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
                )
                fcntl.flock(opened[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(opened[-1]), path.lstat()):
                        break
                os.close(opened.pop())  # it was deleted meanwhile: what is there now counts
            opened.append(os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            try:
                fcntl.flock(opened[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise
            except OSError:
                os.close(opened.pop())  # a network file system locks files only
        except BlockingIOError:
            _close(opened)
            return False
        except OSError as error:
            _close(opened)
            raise ConfigError(_text_of(error, self.directory)) from None
        self._descriptors = opened
        return True

    # Who has it -----------------------------------------------------------------------------------

    def _noted(self) -> _Holder | None:
        try:
            descriptor = os.open(
                self.directory / LOCK_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            )
            with os.fdopen(descriptor, "rb") as file:
                return msgspec.json.decode(file.read(65_536), type=_Holder)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return None

    def _is_held_by_a_host(self) -> bool:
        """Whether a host is there, so that waiting is no use; else its server is about to end."""
        holders, noted = self._holders(), self._noted()
        if holders:  # one that shows no command is about to end
            return any(processes.command_of(pid) and not _is_server(pid) for pid in holders)
        return noted is not None and _is_there(noted.pid, noted.command)

    def _holders(self) -> list[int]:
        return processes.lockers([self.directory / LOCK_FILE, self.directory])

    def _refusal(self) -> str:
        holders, noted = self._holders(), self._noted()
        if not holders and noted is not None:
            # The kernel does not show who has it: another user's process, or one of another
            # container or machine, whose numbers mean nothing here.
            holders = [noted.pid] if _is_there(noted.pid, noted.command) else []
        servers = [pid for pid in holders if _is_server(pid)]
        hosts = [pid for pid in holders if pid not in servers]
        where = self.directory.resolve()
        if hosts:
            server = f", with its nats-server in process {servers[0]}" if servers else ""
            return (
                f"{where} belongs to a host that runs: process {hosts[0]} "
                f"(`{processes.command_of(hosts[0])}`){server}. End that one with Ctrl-C or `kill "
                f"{hosts[0]}`, or give this one another --dir"
            )
        if servers:
            host = f" (process {noted.pid} is gone)" if noted else ""
            return (
                f"{where} is in use by a nats-server that outlived its host{host}: process "
                f"{servers[0]} (`{processes.command_of(servers[0])}`). End it with `kill "
                f"{servers[0]}`, then start again"
            )
        of_noted = "another process"
        if noted is not None:
            of_noted = (
                f"process {noted.pid} (`{noted.command}`) of another user, container or machine"
            )
        return f"{where} is locked by {of_noted}. End that one, or give this one another --dir"


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _is_there(pid: int, command: str) -> bool:
    """Whether a process that a file names is one of this machine, and still the same."""
    if pid == os.getpid() or not processes.is_alive(pid):
        return False
    found = processes.command_of(pid)
    return not found or found == command


def _is_server(pid: int) -> bool:
    return "nats-server" in processes.command_of(pid).partition(" ")[0]


def _text_of(error: OSError, directory: Path) -> str:
    if error.errno in _NO_LOCKS:
        return (
            f"the file system of {directory} cannot lock files ({error.strerror}), so two hosts "
            "could destroy each other's data there: give --dir on a local disk"
        )
    if error.errno == errno.ELOOP:
        return f"{directory / LOCK_FILE} is a symbolic link: remove it, and start again"
    return explain(error, directory)


def explain(error: OSError, directory: Path) -> str:
    """Why a host cannot write in its directory, in one line, and what to do about it."""
    advice = {
        errno.EROFS: "the file system is read-only: give --dir on another one, or mount it "
        "writable",
        errno.EACCES: "this user may not write there: give another --dir, or change its owner",
        errno.EPERM: "this user may not write there: give another --dir, or change its owner",
        errno.ENOSPC: "the disk is full: free some space, or give --dir on another disk",
        errno.EDQUOT: "the quota is used up: free some space, or give --dir on another disk",
        errno.ENOTDIR: "a part of the path is a file: give another --dir",
        errno.EEXIST: "a file has that name: give another --dir",
    }
    number = error.errno or 0
    return (
        f"a host cannot keep its data in {directory}: "
        f"{advice.get(number, error.strerror or str(error))}"
    )


# What it was started as ---------------------------------------------------------------------------


class Started(msgspec.Struct, frozen=True):
    """What a directory was started as. ``hosts``: how many complete hosts it has. ``below``: each
    of them has a directory of its own below this one; else this is the directory of one host.

    ``cohort``: the founders as HOST:PORT; ``join``: the host that this one joined. ``None`` where
    nobody knows.
    """

    hosts: int
    below: bool = False
    name: str = ""
    cohort: tuple[str, ...] | None = None
    join: str | None = None

    @property
    def text(self) -> str:
        """What it is, for people."""
        if self.below:
            return f"a cluster of {self.hosts} host{'s' if self.hosts > 1 else ''} on this machine"
        name = f" {self.name!r}" if self.name else ""
        if self.cohort:
            return f"host{name} of the cohort {','.join(self.cohort)}"
        return f"host{name}, which joined {self.join}" if self.join else f"the single host{name}"

    @property
    def command(self) -> str:
        """The options that start it."""
        if self.below:
            return f"--hosts {self.hosts}"
        name = f"--name {self.name}" if self.name else ""
        if self.cohort:
            return f"{name} --cohort {','.join(self.cohort)}".strip()
        return f"{name} --join {self.join}".strip() if self.join else name or "no --hosts"


def recall(directory: Path) -> Started | None:
    """What a directory was started as; None where no host has data there. Raises `ConfigError`."""
    try:
        many = [path.name for path in directory.iterdir() if (path / STATE_FILE).exists()]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(explain(error, directory)) from None
    single = (directory / STATE_FILE).exists()
    if not many and not single:
        return None
    path = directory / _STARTED_FILE
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Started)
    except FileNotFoundError:
        found = None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}): restore it, or move {directory} away"
        ) from None
    if single:
        found = found if found is not None and not found.below else Started(1)
        return msgspec.structs.replace(found, name=state.owner(directory) or found.name)
    if found is not None and found.below:
        return found
    hosts = sum(_HOST_DIRECTORY.fullmatch(name) is not None for name in many)
    return Started(hosts, below=True) if hosts else None


def remember(directory: Path, started: Started) -> None:
    """Keep what a directory was started as. Raises `ConfigError`."""
    path, text = directory / _STARTED_FILE, msgspec.json.encode(started).decode()
    try:
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            files.write_private(path, text)
    except OSError as error:
        raise ConfigError(explain(error, directory)) from None


def agree(directory: Path, wanted: Started) -> None:
    """Raises `ConfigError` where a directory has the data of something else than what is to be
    started there."""
    found = recall(directory)
    if found is None or _agrees(found, wanted):
        return
    advice = (
        "A single host does not grow into a cluster. "
        if found.hosts == 1 and wanted.hosts > 1
        else ""
    )
    if found.cohort and wanted.cohort and len(found.cohort) == len(wanted.cohort):
        advice = f"If all hosts have new addresses, remove {_STARTED_FILE} there. "
    raise ConfigError(
        f"{directory.resolve()} holds {found.text}, not {wanted.text}. {advice}Start what is there "
        f"with `holdfast up {found.command}`, or give another --dir for a new one (or delete this "
        "one, if nobody needs what it holds)"
    )


def _agrees(found: Started, wanted: Started) -> bool:
    if (found.hosts, found.below) != (wanted.hosts, wanted.below):
        return False
    if found.below:
        return True
    if found.name and wanted.name and found.name != wanted.name:
        return False
    if found.cohort is None or wanted.cohort is None:
        return True  # written by a version that noted nothing
    if not found.cohort:
        return not wanted.cohort and (bool(found.join) or not wanted.join)
    # A host may get another address; founders that have none in common are another cluster.
    return len(found.cohort) == len(wanted.cohort) and bool(set(found.cohort) & set(wanted.cohort))
