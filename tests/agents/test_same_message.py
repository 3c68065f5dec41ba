"""Which messages under one id are the same message: those that mean the same, whatever their bytes
are.

A retry comes from another process, where a set has another order, or from a shell, which sends
names and whole numbers.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import decimal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.agents.kinds import Gate, serving, until

from holdfast import Agent, DeadLetter, Node, ReplayMismatch, State, codec, handler
from holdfast.core.delivery import Remembered, Seen
from holdfast.serving import delivery


class Key(msgspec.Struct, frozen=True, array_like=True):
    a: int
    b: float = 0.0


class Tagged(pydantic.BaseModel):
    tags: set[int] = set()


class Runs(State):
    count: int = 0


class Takes(Agent[Runs]):
    """Counts how often it ran, and takes one value of each type."""

    @handler
    async def numbers(self, value: set[int]) -> int:
        return self._ran()

    @handler
    async def keys(self, value: set[Key]) -> int:
        return self._ran()

    @handler
    async def mixed(self, value: set[int | str | None]) -> int:
        return self._ran()

    @handler
    async def table(self, value: dict[str, float]) -> int:
        return self._ran()

    @handler
    async def by_pairs(self, value: dict[tuple[int, int], set[int]]) -> int:
        return self._ran()

    @handler
    async def amount(self, value: float, note: str = "-") -> int:
        return self._ran()

    @handler
    async def price(self, value: decimal.Decimal) -> int:
        return self._ran()

    @handler
    async def anything(self, value: Any) -> int:
        return self._ran()

    @handler
    async def moment(self, value: dt.datetime) -> int:
        return self._ran()

    @handler
    async def model(self, value: Tagged) -> int:
        return self._ran()

    @handler
    async def array(self, value: npt.NDArray[np.float64]) -> int:
        return self._ran()

    @handler
    async def plain(self, value: list[int], name: str = "n") -> int:
        return self._ran()

    @handler
    async def spoils(self, value: list[set[int]]) -> int:
        value.clear()
        return self._ran()

    def _ran(self) -> int:
        self.state.count += 1
        return self.state.count


SAME: list[tuple[Any, Any, Any]] = [
    (Takes.numbers, [8, 0], [0, 8]),
    (Takes.numbers, [8, 0, 0], [8, 0]),
    (Takes.keys, [[1, 2.0], [0, 1.0]], [[0, 1], [1, 2]]),
    (Takes.mixed, [None, "a", 1], [1, "a", None]),
    (Takes.table, {"a": 1, "b": 2.5}, {"b": 2.5, "a": 1.0}),
    (Takes.by_pairs, {(1, 2): [8, 0], (0, 0): []}, {(0, 0): [], (1, 2): [0, 8]}),
    (Takes.amount, 5, 5.0),
    (Takes.price, "1.10", "1.10"),
    (Takes.anything, {"a": 1, "b": [2]}, {"b": [2.0], "a": 1.0}),
    (Takes.anything, {1: "x", "y": 2}, {"y": 2, 1: "x"}),
    (Takes.moment, "2026-01-01T08:00:00Z", "2026-01-01T10:00:00+02:00"),
    (Takes.model, {"tags": [1, 9]}, {"tags": [9, 1]}),
    (Takes.array, [1, 2], np.array([1.0, 2.0])),
    (Takes.plain, [1, 2], (1, 2)),
    (Takes.spoils, [[8, 0]], [[0, 8]]),
]
OTHERS: list[tuple[Any, Any, Any]] = [
    (Takes.numbers, [8, 0], [8, 1]),
    (Takes.keys, [[1, 2.0]], [[1, 2.5]]),
    (Takes.mixed, [None], ["None"]),
    (Takes.table, {"a": 1}, {"a": 1, "b": 0}),
    (Takes.by_pairs, {(1, 2): [8]}, {(2, 1): [8]}),
    (Takes.amount, 5, 5.5),
    (Takes.price, "1.10", "1.1"),
    (Takes.anything, {"a": 1}, {"a": "1"}),
    (Takes.anything, [1, 2], [2, 1]),
    (Takes.moment, "2026-01-01T08:00:00Z", "2026-01-01T08:00:00+02:00"),
    (Takes.model, {"tags": [1, 9]}, {"tags": [1]}),
    (Takes.array, [1, 2], [2, 1]),
    (Takes.plain, [1, 2], [2, 1]),
]


def raw(value: Any) -> bytes:
    return b"\x91" + codec.encode_raw(value)


async def ask(node: Node, name: str, method: Any, data: bytes, message_id: str) -> int:
    """One attempt, with exactly these bytes."""
    ref = node.agent(Takes, name).options(message_id=message_id)
    reply: bytes = await ref._router.ask(
        ref._token, method.name, data, ref._options, reads_only=False
    )
    return int(msgspec.msgpack.decode(reply))


async def test_what_means_the_same_is_the_same_message(tmp_path: Path) -> None:
    async with serving(tmp_path / "log.db", Takes) as node:
        for place, (method, one, other) in enumerate(SAME):
            name, wrong = f"s{place}", f"{method.name}: {one!r} and {other!r}"
            assert await ask(node, name, method, raw(one), "id") == 1
            assert await ask(node, name, method, raw(other), "id") == 1, wrong
            assert await ask(node, name, method, codec.encode_raw({"value": other}), "id") == 1, (
                wrong
            )
        for place, (method, one, other) in enumerate(OTHERS):
            assert await ask(node, f"o{place}", method, raw(one), "id") == 1
            with pytest.raises(ReplayMismatch):
                await ask(node, f"o{place}", method, raw(other), "id")
    async with serving(tmp_path / "log.db", Takes) as node:  # from the record, too
        for place, (method, _, other) in enumerate(SAME):
            assert await ask(node, f"s{place}", method, raw(other), "id") == 1
        for place, (method, _, other) in enumerate(OTHERS):
            with pytest.raises(ReplayMismatch):
                await ask(node, f"o{place}", method, raw(other), "id")


async def test_so_it_is_while_the_first_one_is_in_hand(tmp_path: Path) -> None:
    async with serving(tmp_path / "log.db", Takes) as node:
        await ask(node, "a", Takes.amount, raw(1), "warm")
        gate = Gate(node)
        asking = [
            asyncio.ensure_future(ask(node, "a", Takes.numbers, raw(value), "id"))
            for value in ([8, 0], [0, 8], [8, 1])
        ]

        async def held() -> bool:
            return gate.waiting > 0

        await until(held)
        gate.open.set()
        assert [await asking[0], await asking[1]] == [2, 2]
        with pytest.raises(ReplayMismatch):
            await asking[2]


async def test_so_it_is_with_what_is_sent(tmp_path: Path) -> None:
    async with serving(tmp_path / "log.db", Takes) as node:
        ref = node.agent(Takes, "a").options(message_id="id")
        for value in ([8, 0], [0, 8], [8, 1]):
            await ref._router.send(ref._token, "numbers", raw(value), 240.0, "id")
        letters: list[DeadLetter] = []

        async def found() -> bool:
            letters[:] = await node.dead_letters.all()
            return bool(letters)

        await until(found)
        assert len(letters) == 1
        assert "used before" in letters[0].error
        assert await node.agent(Takes, "a").ask(Takes.numbers, {3}) == 2


def record_before(digest: int) -> Remembered:
    """As a node of the version before wrote it."""
    return msgspec.msgpack.decode(codec.encode_raw([10.0, digest, b"answer"]), type=Remembered)


@pytest.mark.parametrize("order", [[8, 0], [0, 8]])
def test_an_id_that_an_older_node_noted_still_matches(order: list[int]) -> None:
    """It noted the digest of the bytes alone."""
    old = delivery.digest("numbers", raw(order))
    seen = Seen({}, {"id": record_before(old)})

    def canonical() -> int:
        return delivery.canonical_digest(Takes.numbers, "numbers", raw(order))

    assert seen.check_id("id", old, canonical) == b"answer"


def test_an_older_node_reads_what_is_noted_now() -> None:
    class Before(msgspec.Struct, array_like=True, gc=False):
        until: float
        digest: int
        answer: bytes

    noted = codec.encode_raw(Remembered(1.0, 2, b"a", 3))
    assert msgspec.msgpack.decode(noted, type=Before) == Before(1.0, 2, b"a")


@given(st.sets(st.integers(-(2**63), 2**64 - 1)), st.randoms())
def test_any_order_of_a_set_is_one_form(value: set[int], random: Any) -> None:
    items = list(value)
    random.shuffle(items)
    assert Takes.numbers.canonical(raw(items)) == Takes.numbers.canonical(raw(sorted(items)))


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(0, 99), inner),
    max_leaves=15,
)


@given(plain)
def test_the_form_of_anything_is_stable(value: Any) -> None:
    data = raw(value)
    again = Takes.anything.canonical(raw(msgspec.msgpack.decode(codec.encode_raw(value))))
    assert Takes.anything.canonical(data) == again


def test_what_does_not_fit_means_its_bytes() -> None:
    for data in (raw("text"), b"\x90", b"\xc1", b"", codec.encode_raw({"nothing": 1})):
        assert Takes.numbers.canonical(data) == data
