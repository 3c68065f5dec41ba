"""Small messages that were made to cost much, decoded in a process with little memory: see
`test_hostile`.

Prints a line for each: its name, its bytes, and what became of it.
"""

from __future__ import annotations

import decimal
import functools
import resource
import sys
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from holdfast import codec
from holdfast.agents.handler import handler
from holdfast.errors import BadMessage

MEMORY_BYTES = 1 << 30
PROCESSOR_SECONDS = 60
MODULUS = 2**61 - 1
MASK = 2**64 - 1
encode = codec.encode_raw


class Key(msgspec.Struct, frozen=True, array_like=True):
    a: int
    b: int


class Inner(msgspec.Struct):
    prices: set[decimal.Decimal] = set()


class Takes:
    @handler
    async def numbers(self, value: npt.NDArray[np.float64]) -> None: ...
    @handler
    async def whole(self, value: npt.NDArray[np.int64]) -> None: ...
    @handler
    async def array(self, value: np.ndarray) -> None: ...
    @handler
    async def text(self, value: npt.NDArray[np.str_]) -> None: ...
    @handler
    async def raw(self, value: np.bytes_) -> None: ...
    @handler
    async def void(self, value: np.void) -> None: ...
    @handler
    async def decimals(self, value: set[decimal.Decimal]) -> None: ...
    @handler
    async def decimals_or_none(self, value: set[decimal.Decimal | None]) -> None: ...
    @handler
    async def deep(self, value: list[dict[str, Inner]]) -> None: ...
    @handler
    async def prices(self, value: dict[decimal.Decimal, int]) -> None: ...
    @handler
    async def ids(self, value: frozenset[uuid.UUID]) -> None: ...
    @handler
    async def pairs(self, value: set[tuple[int, int]]) -> None: ...
    @handler
    async def keys(self, value: set[Key]) -> None: ...
    @handler
    async def table(self, value: dict[tuple[int, int], int]) -> None: ...
    @handler
    async def anything(self, value: Any) -> None: ...
    @handler
    async def integers(self, value: set[int]) -> None: ...
    @handler
    async def floats(self, value: set[float]) -> None: ...


def colliding_pairs(count: int) -> Iterator[tuple[int, int]]:
    """Pairs of numbers of one hash: CPython's hash of tuples, run backwards."""
    first, second, start = 11400714785074694791, 14029467366897019727, 2870177450012600261
    undo_first, undo_second = pow(first, -1, 2**64), pow(second, -1, 2**64)

    def turn(number: int, bits: int) -> int:
        return ((number << bits) | (number >> (64 - bits))) & MASK

    a = 0
    while count:
        a += 1
        state = turn((start + a * second) & MASK, 31) * first & MASK
        b = ((turn(987654321 * undo_first & MASK, 33) - state) * undo_second) & MASK
        if b < MODULUS:
            count -= 1
            yield a, b


def array(dtype: str, shape: tuple[int, ...], body: bytes = b"") -> msgspec.msgpack.Ext:
    head = encode((dtype, shape))
    return msgspec.msgpack.Ext(1, len(head).to_bytes(4, "little") + head + body)


DECIMALS = [str(n * MODULUS) for n in range(1, 6_000)]
IDS = [str(uuid.UUID(int=n * MODULUS)) for n in range(1, 6_000)]
PAIRS = list(colliding_pairs(6_000))
HARMFUL: list[tuple[str, Any, Any]] = [
    ("texts of many lengths", Takes.numbers, ["a" * 100_000] + ["b"] * 18_000),
    ("texts where any array is declared", Takes.array, ["a" * 100_000] + ["b"] * 18_000),
    ("texts where text is declared", Takes.text, ["a" * 100_000] + ["b"] * 18_000),
    ("bytes of many lengths", Takes.array, [b"a" * 100_000] + [b"b"] * 18_000),
    ("texts in lists", Takes.array, [["a" * 100_000] + ["b"] * 9_000] * 2),
    ("texts and numbers", Takes.numbers, [1.5, "a" * 100_000, *range(20_000)]),
    ("numbers and none", Takes.numbers, [None, 1]),
    ("a number for bytes", Takes.raw, 2**33),
    ("a number for a void", Takes.void, 2**33),
    ("rows without items", Takes.array, array("<f8", (2**24, 0))),
    ("rows without items, within", Takes.array, array("<f8", (0, 2**40, 2**20))),
    ("rows without items as anything", Takes.anything, [array("<f8", (2**24, 0))]),
    ("a shape that overflows", Takes.array, array("<f8", (2**40, 2**40))),
    ("a shape below zero", Takes.array, array("<f8", (-1, 4), bytes(32))),
    ("many dimensions", Takes.array, array("<f8", (1,) * 100, bytes(8))),
    ("less than its shape", Takes.array, array("<f8", (2**30,), bytes(8))),
    ("large items", Takes.array, array("<U999999999", (2,))),
    ("decimals", Takes.decimals, DECIMALS),
    ("decimals or none", Takes.decimals_or_none, [*DECIMALS, None]),
    ("decimals in the depth", Takes.deep, [{"a": {"prices": DECIMALS}}]),
    ("decimals as keys", Takes.prices, dict.fromkeys(DECIMALS, 1)),
    ("ids", Takes.ids, IDS),
    ("pairs", Takes.pairs, PAIRS),
    ("structs", Takes.keys, PAIRS),
    ("pairs as keys", Takes.table, dict.fromkeys(PAIRS, 1)),
    ("pairs as keys of anything", Takes.anything, dict.fromkeys(PAIRS, 1)),
    ("pairs as keys, within", Takes.anything, {"a": [1, dict.fromkeys(PAIRS, 1)]}),
]
HARMLESS: list[tuple[str, Any, Any]] = [
    ("whole numbers", Takes.integers, [n << 48 for n in range(2**15)]),
    ("floats", Takes.floats, [2.0 ** (n % 900) * (1 + n) for n in range(9_000)]),
    ("a list as an array", Takes.numbers, [1.5] * 50_000),
    ("whole numbers as an array", Takes.whole, [[1, 2], [3, 4]]),
    ("short texts", Takes.text, ["a", "bc"] * 10_000),
    ("honest decimals", Takes.decimals, [f"{n}.50" for n in range(9_000)]),
    ("honest ids", Takes.ids, [str(uuid.UUID(int=n * 12345678912345678)) for n in range(9_000)]),
    ("honest pairs", Takes.table, {(n, n * 7): n for n in range(9_000)}),
    ("honest structs", Takes.keys, [(n, n * 7) for n in range(9_000)]),
    (
        "honest anything",
        Takes.anything,
        {"rows": [{"a": n} for n in range(9_000)], "ids": IDS[:5000], "more": [b"\xde\xff\xff"]},
    ),
    ("an honest dict", Takes.anything, {f"key {n}": n for n in range(9_000)}),
    ("lists in lists", Takes.array, functools.reduce(lambda inner, _: [inner], range(60), 1)),
    ("many arrays without items", Takes.anything, [array("<f8", (65_536, 0))] * 9_000),
    ("no rows", Takes.array, array("<f8", (0, 10))),
]


def outcome(what: Callable[[], Any]) -> str:
    try:
        what()
    except BadMessage as error:
        return f"refused: {error}"[:200]
    return "taken"


def main() -> None:
    rows = [
        (name, method, b"\x91" + encode(value)) for name, method, value in (*HARMFUL, *HARMLESS)
    ]
    np.array([1.0]).astype(np.float32)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_SECONDS, PROCESSOR_SECONDS))
    for name, method, data in rows:
        print(f"{name}\t{len(data)}\t{outcome(lambda m=method, d=data: m.decode_arguments(d))}")  # type: ignore[misc]
        outcome(lambda d=data: codec.to_builtins(d))  # type: ignore[misc]  # as `inspect` shows it
        sys.stdout.flush()


if __name__ == "__main__":
    main()
