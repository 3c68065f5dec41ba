"""The file of a backup: frames with checksums, and one checksum over everything at its end.

A frame is its length (4 bytes), a msgpack value, and the value's CRC-32 (`codec.seal`). The first
frame tells what the file is, then come the records of each cell in the order of their sequences,
then the blobs in parts, then what there should have been, with the SHA-256 of all before. So a byte
that is not what was written is found wherever it is, with its place, and so is a file that ends
early. Nothing needs more memory than one frame.

A file appears under its name when it is whole and on the disk: it is written under another name.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from holdfast import codec, files, limits
from holdfast.errors import AlreadyExists, ConfigError, DataLoss

FORMAT: Final = 1
_MAGIC: Final = b"holdfast backup\n"
_LENGTH: Final = struct.Struct("<I")
_FRAME_BYTES_MAX: Final = limits.RECORD_BYTES_MAX + 8192
PART_BYTES: Final = 512 * 1024
"""A blob's parts; the last one is shorter."""


class Head(msgspec.Struct, array_like=True, tag=0):
    """What a backup is of. ``cuts``: per cell the sequence up to which it has everything, the
    registry's cell last."""

    format: int
    version: str
    """Of the Holdfast that wrote it."""
    record_version: int
    cluster_id: str
    generation: int
    shards: int
    cells: list[str]
    registry: str
    cuts: list[int]
    created_at: float
    """Of the cut, in seconds since 1970."""


class Item(msgspec.Struct, array_like=True, tag=1):
    """A record. ``cell``: its place in ``cuts``."""

    cell: int
    sequence: int
    subject: str
    payload: bytes


class Part(msgspec.Struct, array_like=True, tag=2):
    """A part of a blob of ``size`` bytes; the parts of a blob follow each other."""

    key: str
    size: int
    offset: int
    data: bytes


class End(msgspec.Struct, array_like=True, tag=3):
    """What the file holds, and the SHA-256 of everything before this frame."""

    records: int
    blobs: int
    checksum: bytes


Frame = Head | Item | Part | End
_decode = msgspec.msgpack.Decoder(Frame).decode


class Writer:
    """Writes a backup; ``path`` appears with `finish`. Raises `AlreadyExists`, `ConfigError` where
    it cannot."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records = 0
        self.blobs = 0
        self._partial = path.with_name(path.name + ".partial")
        self._sum = sha256()
        if path.exists():
            raise AlreadyExists(f"{path} is there already: a backup replaces no file")
        try:
            self._file = os.fdopen(_begin(self._partial), "wb")
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error}") from None

    def __enter__(self) -> Self:
        self._write(_MAGIC)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self._partial.unlink(missing_ok=True)

    def _write(self, data: bytes) -> None:
        self._sum.update(data)
        try:
            self._file.write(data)
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be written: {error}") from None

    def add(self, frame: Frame) -> None:
        """Write the next frame."""
        body = codec.seal(codec.encode_raw(frame))
        self._write(_LENGTH.pack(len(body)) + body)
        self.records += isinstance(frame, Item)

    def add_blob(self, key: str, value: bytes) -> None:
        """Write a blob in its parts."""
        for offset in range(0, len(value) or 1, PART_BYTES):
            self.add(Part(key, len(value), offset, value[offset : offset + PART_BYTES]))
        self.blobs += 1

    def finish(self) -> int:
        """Close the file, have it on the disk, and give it its name; return its size in bytes."""
        self.add(End(self.records, self.blobs, self._sum.digest()))
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            size = self._file.tell()
            # unlike a rename it replaces nothing
            os.link(self._partial, self.path, follow_symlinks=False)
            if not os.path.samestat(self.path.lstat(), os.fstat(self._file.fileno())):
                self.path.unlink()
                raise ConfigError(
                    f"{self.path} cannot be written: somebody replaced {self._partial} meanwhile"
                )
            directory = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except FileExistsError:
            raise AlreadyExists(
                f"{self.path} is there already: a backup replaces no file"
            ) from None
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be written: {error}") from None
        return size


def _begin(partial: Path) -> int:
    """Make the file that becomes the backup. One that an interrupted backup left is removed; one
    that another process writes is not. Raises `ConfigError`, `OSError`."""
    while True:
        fresh = True
        try:
            opened = files.create(partial)
        except FileExistsError:
            fresh = False
            opened = files.descriptor(partial, os.O_RDWR)
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(partial.lstat(), os.fstat(opened)):
                    if fresh:
                        return opened
                    partial.unlink()
        except BlockingIOError:
            os.close(opened)
            raise ConfigError(f"another process writes {partial} at this moment") from None
        os.close(opened)


def read(path: Path) -> Iterator[Frame]:
    """Every frame, each checked before it is given: first the `Head`, then all else, the `End`
    last.

    Raises `ConfigError` for what is no backup that this code reads, `DataLoss` naming the byte
    where it is damaged.
    """
    try:
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ConfigError(f"{path} is not a file: a backup is read twice")
    with file:
        total = sha256()
        magic = file.read(len(_MAGIC))
        if magic != _MAGIC:
            if (
                len(magic) < len(_MAGIC)
                or sum(a != b for a, b in zip(magic, _MAGIC, strict=True)) < 4
            ):
                raise DataLoss(f"{path}: damaged at byte 0: a backup begins with other bytes")
            raise ConfigError(f"{path} is no backup")
        total.update(magic)
        at = len(_MAGIC)
        records = blobs = 0
        while True:
            head = file.read(_LENGTH.size)
            size = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else 0
            if not head or len(head) < _LENGTH.size:
                raise DataLoss(
                    f"{path}: it ends at byte {at + len(head)}, before its end: it was cut off"
                )
            if not 4 < size <= _FRAME_BYTES_MAX:
                raise DataLoss(f"{path}: damaged at byte {at}: a frame of {size} bytes")
            body = file.read(size)
            if len(body) < size:
                raise DataLoss(
                    f"{path}: it ends at byte {at + 4 + len(body)}, in a frame: it was cut off, or "
                    "is damaged"
                )
            frame = _frame(path, at, body)
            if isinstance(frame, Head) != (at == len(_MAGIC)):
                raise DataLoss(f"{path}: damaged at byte {at}: it has its frames in another order")
            if isinstance(frame, Head) and frame.format != FORMAT:
                raise ConfigError(
                    f"{path} has format {frame.format}, this code reads {FORMAT}: use the Holdfast "
                    "of then"
                )
            if isinstance(frame, End):
                if (frame.records, frame.blobs, frame.checksum) != (records, blobs, total.digest()):
                    raise DataLoss(
                        f"{path}: its checksum is not that of what is in it: something is missing "
                        "or added"
                    )
                if file.read(1):
                    raise DataLoss(
                        f"{path}: damaged at byte {at + 4 + size}: it goes on behind its end"
                    )
                yield frame
                return
            total.update(head)
            total.update(body)
            at += len(head) + size
            records += isinstance(frame, Item)
            blobs += isinstance(frame, Part) and frame.offset == 0
            yield frame


def _frame(path: Path, at: int, body: bytes) -> Frame:
    try:
        frame: Frame = _decode(codec.unseal(body, "a frame"))
    except codec.ERRORS as error:
        raise DataLoss(f"{path}: damaged at byte {at}: {error}") from None
    except DataLoss:
        raise DataLoss(
            f"{path}: damaged at byte {at}: the checksum of this frame does not agree"
        ) from None
    return frame
