"""Blobs as records of a stream of their own: numbered parts, and one record that says how many and
what they add up to.

The last record makes the blob: without it there is none, so parts whose writer died are only waste,
and `keys` does not show them. The number stands in front of the key in the subject, so that one
filter names all the parts of one key.
"""

from __future__ import annotations

import asyncio
from typing import Final
from zlib import crc32

import msgspec

from holdfast import codec, limits
from holdfast.engines import checks
from holdfast.engines.base import Blobs, Expect, Record
from holdfast.engines.nats import api
from holdfast.engines.nats.connection import Connection
from holdfast.engines.nats.log import NatsLog
from holdfast.errors import AlreadyExists, Closed, Conflict, DataLoss, NotFound, TooLarge

_PART_BYTES: Final = 512 * 1024
_PARTS_AT_ONCE: Final = 6
_API_SECONDS: Final = 5.0


class Whole(msgspec.Struct, array_like=True):
    """What the record that makes a blob says of its parts."""

    parts: int
    size: int
    checksum: int


class _Subjects(msgspec.Struct):
    subjects: dict[str, int] | None = None


class _Page(msgspec.Struct):
    state: _Subjects
    total: int = 0
    limit: int = 0


_decode = msgspec.msgpack.Decoder(Whole).decode


class NatsBlobs(Blobs):
    """See `holdfast.engines.base.Blobs`. ``cell``: the name of the stream that holds them."""

    def __init__(self, connection: Connection, log: NatsLog, cell: str) -> None:
        self._connection = connection
        self._log = log
        self._cell = cell

    def _check(self, key: str) -> None:
        checks.check_subject(key)
        if self._log.closed:
            raise Closed("the engine was closed")

    async def _put(self, key: str, value: bytes) -> None:
        self._check(key)
        if len(value) > limits.BLOB_BYTES_MAX:
            raise TooLarge(f"a blob of {len(value)} bytes; {limits.BLOB_BYTES_MAX} are allowed")
        parts = [value[start : start + _PART_BYTES] for start in range(0, len(value), _PART_BYTES)]
        whole = Whole(len(parts), len(value), crc32(value))
        known = await self._whole(key)
        if known is not None:
            if known != whole:
                raise AlreadyExists(
                    f"the blob {key} is there with another value: a key is used once"
                )
            return
        records = [
            Record(f"{self._cell}.{number}.{key}", part) for number, part in enumerate(parts)
        ]
        subject = f"{self._cell}.whole.{key}"
        last = Record(subject, codec.seal(codec.encode_raw(whole)), Expect(subject, 0))
        for start in range(0, len(records), _PARTS_AT_ONCE):
            await self._log.append(self._cell, records[start : start + _PARTS_AT_ONCE])
        try:
            await self._log.append(self._cell, [last])
        except Conflict:
            # An attempt before this one whose outcome was unknown, or somebody else's.
            if await self._whole(key) != whole:
                raise AlreadyExists(
                    f"the blob {key} is there with another value: a key is used once"
                ) from None

    async def _whole(self, key: str) -> Whole | None:
        stored = await self._log.read(self._cell, f"{self._cell}.whole.{key}")
        return None if stored is None else _decode(codec.unseal(stored.payload, f"the blob {key}"))

    async def _get(self, key: str) -> bytes:
        self._check(key)
        whole = await self._whole(key)
        if whole is None:
            raise NotFound(f"there is no blob {key}")
        parts: list[bytes] = []
        for start in range(0, whole.parts, _PARTS_AT_ONCE):
            numbers = range(start, min(start + _PARTS_AT_ONCE, whole.parts))
            subjects = [f"{self._cell}.{number}.{key}" for number in numbers]
            found = await asyncio.gather(
                *(self._log.read(self._cell, subject) for subject in subjects)
            )
            parts += [stored.payload for stored in found if stored is not None]
        value = b"".join(parts)
        if len(value) != whole.size or crc32(value) != whole.checksum:
            raise DataLoss(f"the blob {key} is damaged: its checksum does not agree")
        return value

    async def delete(self, key: str) -> None:
        self._check(key)
        await api.call(
            self._connection,
            f"STREAM.PURGE.{self._cell}",
            {"filter": f"{self._cell}.*.{key}"},
            _API_SECONDS,
        )

    async def keys(self, prefix: str) -> list[str]:
        self._check(prefix)
        start = f"{self._cell}.whole."
        found: set[str] = set()
        for subject_filter in (f"{start}{prefix}", f"{start}{prefix}.>"):
            offset = 0
            while True:
                body = {"subjects_filter": subject_filter, "offset": offset}
                answer = await api.call(
                    self._connection, f"STREAM.INFO.{self._cell}", body, _API_SECONDS
                )
                page = msgspec.json.decode(answer, type=_Page)
                subjects = page.state.subjects or {}
                found.update(subject.removeprefix(start) for subject in subjects)
                offset += len(subjects)
                if not subjects or offset >= page.total:
                    break
        return sorted(found)
