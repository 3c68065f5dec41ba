"""Blobs as rows of the same file, each with its checksum, in pieces that SQLite takes well."""

from __future__ import annotations

import asyncio
import sqlite3
from zlib import crc32

from holdfast import limits
from holdfast.engines import checks
from holdfast.engines.base import Blobs
from holdfast.engines.local.writer import Writer
from holdfast.errors import AlreadyExists, Closed, DataLoss, NotFound, TooLarge


class LocalBlobs(Blobs):
    """See `holdfast.engines.base.Blobs`."""

    def __init__(self, writer: Writer, reader: sqlite3.Connection) -> None:
        self._writer = writer
        self._reader = reader
        self.closed = False

    def _check(self, key: str) -> None:
        checks.check_subject(key)
        if self.closed:
            raise Closed("the engine was closed")

    async def _put(self, key: str, value: bytes) -> None:
        self._check(key)
        if len(value) > limits.BLOB_BYTES_MAX:
            raise TooLarge(f"a blob of {len(value)} bytes; {limits.BLOB_BYTES_MAX} are allowed")
        checksum = crc32(value)

        def work(connection: sqlite3.Connection) -> None:
            found = connection.execute(
                "SELECT checksum, value FROM blobs WHERE key = ?", (key,)
            ).fetchone()
            if found is None:
                connection.execute(
                    "INSERT INTO blobs (key, checksum, value) VALUES (?, ?, ?)",
                    (key, checksum, value),
                )
            elif found != (checksum, value):
                raise AlreadyExists(
                    f"the blob {key} is there with another value: a key is used once"
                )

        await asyncio.shield(self._writer.call(work))

    async def _get(self, key: str) -> bytes:
        self._check(key)
        found = self._reader.execute(
            "SELECT checksum, value FROM blobs WHERE key = ?", (key,)
        ).fetchone()
        if found is None:
            raise NotFound(f"there is no blob {key}")
        value: bytes = found[1]
        if crc32(value) != found[0]:
            raise DataLoss(f"the blob {key} is damaged: its checksum does not agree")
        return value

    async def delete(self, key: str) -> None:
        self._check(key)

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM blobs WHERE key = ?", (key,))

        await asyncio.shield(self._writer.call(work))

    async def keys(self, prefix: str) -> list[str]:
        self._check(prefix)
        rows = self._reader.execute(
            "SELECT key FROM blobs WHERE key = ? OR (key >= ? AND key < ?) ORDER BY key",
            (prefix, prefix + ".", prefix + "/"),
        )
        return [key for (key,) in rows]
