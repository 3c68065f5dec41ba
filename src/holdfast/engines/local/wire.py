"""What travels between the process that has an embedded log open and one that visits it: frames on
a Unix socket.

A frame is its length (4 bytes) and a msgpack value. A visitor sends ``[number, operation,
arguments]``; the answer is ``[number, value]``, or ``[number, [class, text, …]]`` behind a `False`.
What the bus brings has the number 0.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from holdfast import limits
from holdfast.errors import DataLoss

FORMAT: Final = 1
FRAME_BYTES_MAX: Final = limits.BLOB_BYTES_MAX + 64 * 1024
_LENGTH: Final = struct.Struct("<I")
_PATH_BYTES_MAX: Final = 100
"""Of a socket's address: systems take 104 to 108."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


def socket_path(log: Path) -> Path:
    """Where the process that has a log open listens."""
    return log.with_name(log.name + ".sock")


def frame(value: Any) -> bytes:
    """The bytes of a frame."""
    body = _encode(value)
    return _LENGTH.pack(len(body)) + body


async def read(reader: asyncio.StreamReader) -> Any:
    """The next frame's value. Raises `EOFError` at the end, `DataLoss` for what is not a frame."""
    try:
        (size,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if size > FRAME_BYTES_MAX:
            raise DataLoss(f"a frame of {size} bytes")
        return _decode(await reader.readexactly(size))
    except (asyncio.IncompleteReadError, ConnectionError):
        raise EOFError from None
    except msgspec.MsgspecError as error:
        raise DataLoss(f"not a frame: {error}") from None


@contextmanager
def address(path: Path) -> Iterator[str]:
    """The socket's address: a long path goes by its directory. Raises `OSError` where there is
    none."""
    if len(os.fsencode(path)) <= _PATH_BYTES_MAX:
        yield str(path)
        return
    if sys.platform != "linux" or len(os.fsencode(path.name)) > _PATH_BYTES_MAX - 30:
        raise OSError(errno.ENAMETOOLONG, "the path is too long for a socket", str(path))
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def listen(path: Path) -> socket.socket:
    """Listen there, for this user alone. A socket that is there belongs to a process that ended.
    Raises `OSError`."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(errno.EEXIST, "it is not a socket: remove it", str(path))
        path.unlink()
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(made.fileno(), 0o600)  # on Linux the file has it from its beginning
        with address(path) as place:
            made.bind(place)
        path.chmod(0o600)
        made.listen(16)
        made.setblocking(False)
    except BaseException:
        made.close()
        raise
    return made


def connect(log: Path) -> socket.socket:
    """Connect to the process that has a log open. Raises `OSError` where none listens, or somebody
    else's does.

    It waits for nothing: `BlockingIOError` says that so many wait there already that no more may.
    """
    path = socket_path(log)
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise OSError(errno.ENOTSOCK, "it is not a socket", str(path))
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # else it waits, with the loop, until the other process takes somebody in
        made.setblocking(False)
        with address(path) as place:
            made.connect(place)
        owner = log.stat().st_uid
        if peer(made) not in (-1, 0, os.geteuid(), owner):
            raise OSError(errno.EPERM, "another user listens there", str(path))
    except BaseException:
        made.close()
        raise
    return made


def peer(connection: socket.socket) -> int:
    """The user on the other side; -1 where the system does not say."""
    if sys.platform != "linux":
        return -1
    _, user, _ = struct.unpack(
        "3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    )
    return int(user)
