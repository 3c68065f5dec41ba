"""The blobs' promises, on every engine."""

from __future__ import annotations

import os

import pytest
from tests.patience import again

from holdfast import limits
from holdfast.engines.base import Engine
from holdfast.errors import AlreadyExists, Closed, InvalidName, NoQuorum, NotFound, TooLarge
from holdfast.ids import new_id


@pytest.fixture
async def key(engine: Engine, cell: str) -> str:
    return f"{cell}.{new_id('k')}"


async def eventually(engine: Engine, key: str) -> bytes:
    """Read a blob again while a replica that is late answers, or none does."""
    return await again(lambda: engine.blobs.get(key), NotFound, NoQuorum)


@pytest.mark.parametrize("size", [0, 1, 512 * 1024, 512 * 1024 + 1, 5_000_003])
async def test_a_value_comes_back_whole(engine: Engine, key: str, size: int) -> None:
    value = os.urandom(size)
    await engine.blobs.put(key, value)
    await engine.blobs.put(key, value)
    assert await eventually(engine, key) == value


async def test_a_key_is_used_once(engine: Engine, key: str) -> None:
    await engine.blobs.put(key, b"one")
    with pytest.raises(AlreadyExists):
        await engine.blobs.put(key, b"two")
    assert await eventually(engine, key) == b"one"


async def test_delete_takes_one_key_and_no_other(engine: Engine, key: str) -> None:
    for end in ("a", "a.b", "ab"):
        await engine.blobs.put(f"{key}.{end}", end.encode())
    await engine.blobs.delete(f"{key}.a")
    await engine.blobs.delete(f"{key}.a")
    with pytest.raises(NotFound):
        await engine.blobs.get(f"{key}.a")
    assert await eventually(engine, f"{key}.a.b") == b"a.b"
    assert await eventually(engine, f"{key}.ab") == b"ab"


async def test_keys_by_prefix(engine: Engine, key: str) -> None:
    for end in ("a", "a.b", "a.c", "ab"):
        await engine.blobs.put(f"{key}.{end}", b"")
    assert await engine.blobs.keys(f"{key}.a") == [f"{key}.a", f"{key}.a.b", f"{key}.a.c"]
    assert await engine.blobs.keys(f"{key}.none") == []


async def test_bad_keys_and_values_are_refused(
    engine: Engine, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for bad in ("", "a b", "a..b", "a.*"):
        with pytest.raises(InvalidName):
            await engine.blobs.put(bad, b"")
        with pytest.raises(InvalidName):
            await engine.blobs.get(bad)
    monkeypatch.setattr(limits, "BLOB_BYTES_MAX", 10)
    with pytest.raises(TooLarge):
        await engine.blobs.put(key, b"x" * 11)
    with pytest.raises(NotFound):
        await engine.blobs.get(key)


async def test_closed(engine: Engine, key: str) -> None:
    await engine.close()
    with pytest.raises(Closed):
        await engine.blobs.put(key, b"")
    with pytest.raises(Closed):
        await engine.blobs.get(key)
