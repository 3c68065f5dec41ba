"""What an agent has in memory after a turn is what a reload gives, for every kind of value; else
the turn is refused.

Each row of the table is a type, a value that a handler assigns, and whether it is kept. A kept one
must be the same in the next turn and after a restart, types and offsets included; of a refused one
nothing may be left.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import datetime as dt
import decimal
import enum
import functools
import logging
import uuid
import zoneinfo
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypedDict, TypeVar

import ml_dtypes
import msgspec
import numpy as np
import numpy.typing as npt
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.agents.kinds import serving
from tests.patience import logged

from holdfast import Agent, BadState, HandlerFailed, State, codec, handler, limits, reader
from holdfast.codec.kept import unknown_fields

BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
EAST = dt.timezone(dt.timedelta(hours=5, minutes=30))
AT = dt.datetime(2026, 7, 1, 10, 30, 1, 5, EAST)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1


class Word(str, enum.Enum):  # noqa: UP042
    HI = "hi"


class Base(msgspec.Struct):
    a: int = 0


class Derived(Base):
    b: int = 0


class SameFields(Base):
    pass


class Renamed(msgspec.Struct, rename="camel"):
    some_thing: int = 0


class Row(msgspec.Struct, array_like=True):
    a: int = 0


class LongRow(Row):
    b: int = 0


class Cat(msgspec.Struct, tag="cat"):
    lives: int = 9


class Dog(msgspec.Struct, tag="dog"):
    bones: list[Base] = msgspec.field(default_factory=list)


class Key(msgspec.Struct, frozen=True):
    a: int = 0


class LongKey(Key, frozen=True):
    b: int = 0


class Loose(msgspec.Struct, dict=True):
    a: int = 0


class Sums(msgspec.Struct):
    items: list[int] = msgspec.field(default_factory=list)
    total: int = 0

    def __post_init__(self) -> None:
        self.items = self.items[-2:]
        self.total = sum(self.items)


class MoreSums(Sums):
    z: int = 0


class Checks(msgspec.Struct):
    items: list[Base] = msgspec.field(default_factory=list)
    names: set[str] = msgspec.field(default_factory=set)
    weight: float = 0.0
    at: dt.datetime | None = None
    pets: list[Cat | Dog] = msgspec.field(default_factory=list)

    def __post_init__(self) -> None:
        self.items = self.items[-2:]
        self.pets = sorted(self.pets, key=lambda pet: str(type(pet)))


class CheckedRow(msgspec.Struct, array_like=True, tag="row"):
    items: list[Base] = msgspec.field(default_factory=list)

    def __post_init__(self) -> None:
        self.items = [*self.items, Base()][-3:]


class Above(msgspec.Struct):
    checks: list[Checks] = msgspec.field(default_factory=list)


class Identified(msgspec.Struct, eq=False):
    id: int = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identified) and other.id == self.id

    def __hash__(self) -> int:
        return self.id


class MoreIdentified(Identified, eq=False):
    b: int = 0


class HoldsKey(msgspec.Struct, frozen=True):
    key: Key = Key()
    weight: float = 0.0


class TaggedRow(msgspec.Struct, array_like=True, tag="tagged"):
    a: int = 0


class Sparse(msgspec.Struct, omit_defaults=True):
    a: int = 0
    b: int | msgspec.UnsetType = msgspec.UNSET


T = TypeVar("T")


class Tree(msgspec.Struct):
    below: list[Tree] = msgspec.field(default_factory=list)
    at: dt.datetime | None = None


class Limbs(Tree):
    extra: int = 0


@dataclasses.dataclass
class Point:
    x: float = 0.0


@dataclasses.dataclass
class Point3(Point):
    z: float = 0.0


@dataclasses.dataclass
class Derivation:
    x: int = 1
    double: int = dataclasses.field(init=False, default=0)

    def __post_init__(self) -> None:
        self.double = self.x * 2


@dataclasses.dataclass
class Trimmed:
    items: list[Base] = dataclasses.field(default_factory=list)
    at: dt.datetime | None = None

    def __post_init__(self) -> None:
        self.items = self.items[-1:]
        self._count = len(self.items)


@dataclasses.dataclass
class Crate(Generic[T]):
    items: list[T]


@dataclasses.dataclass
class Cached:
    x: int = 0

    @functools.cached_property
    def double(self) -> int:
        return self.x * 2

    def plain(self) -> int:
        return self.x


class CachedModel(pydantic.BaseModel):
    x: int = 0
    _seen: int = 0

    @functools.cached_property
    def double(self) -> int:
        return self.x * 2


class Pair(NamedTuple):
    a: int
    b: Base


class Weighed(NamedTuple):
    weight: float


class Typed(TypedDict):
    a: int


class Inner(pydantic.BaseModel):
    when: dt.datetime | None = None
    tags: set[str] = set()
    key: uuid.UUID | None = None
    price: decimal.Decimal = decimal.Decimal(0)
    raw: bytes = b""


class InnerMore(Inner):
    more: int = 0


class Model(pydantic.BaseModel):
    inner: Inner = Inner()
    many: list[Inner] = []
    named: int = pydantic.Field(default=0, alias="Named")
    path: Path = Path("/")
    point: Point | None = None
    _secret: int = 0


class Hidden(pydantic.BaseModel):
    shown: int = 0
    hidden: int = pydantic.Field(default=0, exclude=True)


def extra_on(value: Any) -> Any:
    value.beside = 1
    return value


def used(value: Any) -> Any:
    """An object whose cached property was read."""
    assert value.double == value.x * 2
    return value


def private(value: Any) -> Any:
    value._seen = 3
    return used(value)


def overridden(value: Any) -> Any:
    value.plain = 5
    return value


def nested(value: Any) -> Any:
    return {"deep": [{"er": value}]}


IntArray = np.ndarray[tuple[int], np.dtype[np.int64]]
Case = tuple[str, Any, Callable[[], Any], bool]
KEPT, REFUSED = True, False
CASES: list[Case] = [
    ("int", int, lambda: 2**63, KEPT),
    ("int too large", int, lambda: 2**64, REFUSED),
    ("int as float", float, lambda: 5, KEPT),
    ("float as int", int, lambda: 5.0, REFUSED),
    ("bool as int", int, lambda: True, REFUSED),
    ("nan", float, lambda: float("nan"), KEPT),
    ("minus zero", float, lambda: -0.0, KEPT),
    ("infinity", float, lambda: float("inf"), KEPT),
    ("text", str, lambda: "ä\x00\U0001f600", KEPT),
    ("half a character", str, lambda: "\ud800", REFUSED),
    ("int subclass", int, lambda: type("I", (int,), {})(5), REFUSED),
    ("str subclass", str, lambda: type("S", (str,), {})("x"), REFUSED),
    ("bytes", bytes, lambda: b"ab", KEPT),
    ("bytearray as bytes", bytes, lambda: bytearray(b"ab"), KEPT),
    ("bytearray", bytearray, lambda: bytearray(b"ab"), KEPT),
    ("memoryview as bytes", bytes, lambda: memoryview(b"ab"), KEPT),
    ("enum", Colour, lambda: Colour.RED, KEPT),
    ("enum as str", str, lambda: Word.HI, KEPT),
    ("enum as int", int, lambda: Level.LOW, KEPT),
    ("value as enum", Colour, lambda: "red", KEPT),
    ("literal", Literal["a", "b"], lambda: "b", KEPT),
    ("bounded", Annotated[int, msgspec.Meta(le=3)], lambda: 3, KEPT),
    ("over its bound", Annotated[int, msgspec.Meta(le=3)], lambda: 4, REFUSED),
    ("decimal", decimal.Decimal, lambda: decimal.Decimal("1.10"), KEPT),
    ("decimal nan", decimal.Decimal, lambda: decimal.Decimal("NaN"), KEPT),
    ("float as decimal", decimal.Decimal, lambda: 1.1, KEPT),
    ("uuid", uuid.UUID, lambda: uuid.UUID(int=7), KEPT),
    ("text as uuid", uuid.UUID, lambda: str(uuid.UUID(int=7)), KEPT),
    ("date", dt.date, lambda: dt.date(2026, 2, 3), KEPT),
    ("time with an offset", dt.time, lambda: dt.time(10, 0, tzinfo=EAST), KEPT),
    ("timedelta", dt.timedelta, lambda: dt.timedelta(days=-3, microseconds=1), KEPT),
    ("naive moment", dt.datetime, lambda: dt.datetime(2026, 1, 1), KEPT),
    ("moment in UTC", dt.datetime, lambda: dt.datetime(2026, 1, 1, tzinfo=dt.UTC), KEPT),
    ("moment with an offset", dt.datetime, lambda: AT, KEPT),
    ("moment in a zone", dt.datetime, lambda: dt.datetime(2026, 7, 1, tzinfo=BERLIN), KEPT),
    ("offset of seconds", dt.datetime, lambda: dt.datetime(1880, 1, 1, tzinfo=BERLIN), REFUSED),
    ("moment or none", dt.datetime | None, lambda: AT, KEPT),
    ("moment under Any", Any, lambda: AT, KEPT),
    ("moment deep under Any", Any, lambda: nested(AT), KEPT),
    ("moments in a list", list[dt.datetime], lambda: [AT, AT.astimezone(dt.UTC)], KEPT),
    ("moments in a set", set[dt.datetime], lambda: {AT}, KEPT),
    ("moments in a tuple", tuple[int, dt.datetime], lambda: (1, AT), KEPT),
    ("moments as keys", dict[dt.datetime, int], lambda: {AT: 1}, KEPT),
    ("moments as values", dict[str, dt.datetime | int], lambda: {"a": AT, "b": 3}, KEPT),
    ("moment in a tree", Tree, lambda: Tree([Tree([], AT)], AT), KEPT),
    ("moment in a frozen struct", list[Key], lambda: [Key(3)], KEPT),
    ("list", list[int], lambda: [1, 2], KEPT),
    ("tuple as list", list[int], lambda: (1, 2), KEPT),
    ("set as list", list[int], lambda: {1, 2}, KEPT),
    ("list subclass", list[int], lambda: type("L", (list,), {})([1]), KEPT),
    ("deque", list[int], lambda: collections.deque([1]), REFUSED),
    ("range", list[int], lambda: range(3), REFUSED),
    ("generator", list[int], lambda: (n for n in range(3)), REFUSED),
    ("wrong items", list[int], lambda: [1, "a"], REFUSED),
    ("set", set[str], lambda: {"a", "b"}, KEPT),
    ("frozenset as set", set[str], lambda: frozenset("ab"), KEPT),
    ("list as set", set[str], lambda: ["a", "b"], KEPT),
    ("list as set, twice the same", set[str], lambda: ["a", "a"], REFUSED),
    ("set of keys", set[Key], lambda: {Key(1), Key(2)}, KEPT),
    ("set of longer keys", set[Key], lambda: {LongKey(1, 2)}, REFUSED),
    ("frozenset", frozenset[int], lambda: frozenset({1}), KEPT),
    ("set under Any", Any, lambda: {1, 2}, KEPT),
    ("tuple", tuple[int, str], lambda: (1, "a"), KEPT),
    ("list as tuple", tuple[int, ...], lambda: [1], KEPT),
    ("tuple under Any", Any, lambda: nested((1, (2,))), KEPT),
    ("dict", dict[str, int], lambda: {"a": 1}, KEPT),
    ("defaultdict", dict[str, list[int]], lambda: collections.defaultdict(list, {"a": [1]}), KEPT),
    ("OrderedDict", dict[str, int], lambda: collections.OrderedDict(b=1, a=2), KEPT),
    ("Counter", dict[str, int], lambda: collections.Counter("aab"), KEPT),
    ("dict under Any", Any, lambda: {1: {"a": None}, "b": [True]}, KEPT),
    ("dict with tuples as keys", dict[tuple[int, int], str], lambda: {(1, 2): "a"}, KEPT),
    ("tuples as keys under Any", Any, lambda: {(1, 2): "a"}, KEPT),
    ("two keys in one", dict[str, int], lambda: {Colour.RED: 1, "red": 2}, REFUSED),
    ("two keys in one under Any", Any, lambda: nested({Colour.RED: 1, "red": 2}), REFUSED),
    ("enum keys under Any", Any, lambda: {Colour.RED: 1}, KEPT),
    ("struct", Base, lambda: Base(3), KEPT),
    ("derived struct", Base, lambda: Derived(3, 4), REFUSED),
    ("derived struct or none", Base | None, lambda: Derived(3, 4), REFUSED),
    ("derived structs in a list", list[Base], lambda: [Base(1), Derived(3)], REFUSED),
    ("derived structs in a dict", dict[str, Base], lambda: {"a": Derived(3)}, REFUSED),
    ("derived structs in a tuple", tuple[Base, ...], lambda: (Derived(3),), REFUSED),
    ("derived struct deep", list[dict[str, list[Base]]], lambda: [{"a": [Derived()]}], REFUSED),
    ("derived without new fields", list[Base], lambda: [SameFields(3)], KEPT),
    ("derived node of a tree", Tree, lambda: Tree([Tree([Limbs()])]), REFUSED),
    ("dict as struct", Base, lambda: {"a": 4}, KEPT),
    ("dict with more as struct", Base, lambda: {"a": 4, "z": 1}, REFUSED),
    ("another struct", Base, lambda: Loose(4), KEPT),
    ("struct under Any", Any, lambda: Derived(3, 4), KEPT),
    ("renamed fields", Renamed, lambda: Renamed(3), KEPT),
    ("renamed fields in a list", list[Renamed], lambda: [Renamed(3)], KEPT),
    ("rows", list[Row], lambda: [Row(1), Row(2)], KEPT),
    ("longer rows", list[Row], lambda: [LongRow(1, 2)], REFUSED),
    ("tagged", Cat | Dog, lambda: Dog([Base(1)]), KEPT),
    ("tagged with a derived one", Cat | Dog, lambda: Dog([Derived(1)]), REFUSED),
    ("attribute on a struct", Loose, lambda: extra_on(Loose()), REFUSED),
    ("struct that may have attributes", Loose, lambda: Loose(3), KEPT),
    ("attribute on a struct under Any", Any, lambda: nested(extra_on(Loose())), REFUSED),
    ("attribute on a dataclass", Point, lambda: extra_on(Point()), REFUSED),
    (
        "attribute on a dataclass in a list",
        list[Point],
        lambda: [Point(), extra_on(Point())],
        REFUSED,
    ),
    ("attribute on a dataclass in a model", Model, lambda: Model(point=extra_on(Point())), REFUSED),
    ("attribute in place of a method", Cached, lambda: overridden(Cached()), REFUSED),
    ("attribute beside a normalised list", Trimmed, lambda: extra_on(Trimmed([Base()])), REFUSED),
    ("attribute that post init sets", list[Trimmed], lambda: [Trimmed([Base()])], KEPT),
    ("attribute that post init sets, under Any", Any, lambda: [Trimmed([Base()])], KEPT),
    ("cached property of a dataclass", list[Cached], lambda: [used(Cached(2))], KEPT),
    ("cached property of a dataclass under Any", Any, lambda: used(Cached(2)), KEPT),
    ("cached property of a model", CachedModel, lambda: used(CachedModel(x=2)), KEPT),
    ("private attribute of a model", list[CachedModel], lambda: [private(CachedModel(x=2))], KEPT),
    ("generic dataclass", Crate[Base], lambda: Crate[Base]([Base()]), KEPT),
    (
        "generic dataclass with a derived one",
        Crate[Base],
        lambda: Crate[Base]([Derived()]),
        REFUSED,
    ),
    ("post init", Sums, lambda: Sums([1, 2]), KEPT),
    ("post init that changes", list[Sums], lambda: [_with(Sums(), items=[1, 2, 3, 4])], KEPT),
    ("post init, derived", Sums, lambda: MoreSums(z=1), REFUSED),
    ("post init, derived below", Checks, lambda: Checks([Base(), Derived()]), REFUSED),
    (
        "post init, derived far below",
        list[Above],
        lambda: [Above([Checks([Base()]), Checks([Derived()])])],
        REFUSED,
    ),
    (
        "post init, derived and dropped",
        list[Checks],
        lambda: [_with(Checks(), items=[Derived(), Base(), Base()])],
        REFUSED,
    ),
    ("post init, dict with more below", Checks, lambda: Checks([{"a": 1, "z": 2}]), REFUSED),
    ("post init, dict with more", Checks, lambda: {"items": [], "z": 2}, REFUSED),
    ("post init, twice the same", Checks, lambda: Checks(names=["a", "a"]), REFUSED),
    ("post init, rounded", Checks, lambda: Checks(weight=2**53 + 1), REFUSED),
    ("post init, moment", Checks, lambda: Checks([Base()], at=AT), KEPT),
    ("post init, dropped", Checks, lambda: _with(Checks(), items=[Base(), Base(), Base()]), KEPT),
    ("post init, sorted", Checks, lambda: _with(Checks(), pets=[Dog(), Cat(), Dog(), Cat()]), KEPT),
    (
        "post init, derived in one that is sorted",
        Checks,
        lambda: _with(Checks(), pets=[Dog([Derived()]), Cat()]),
        REFUSED,
    ),
    ("post init, row", list[CheckedRow], lambda: [CheckedRow([Base()])], KEPT),
    ("post init, derived in a row", list[CheckedRow], lambda: [CheckedRow([Derived()])], REFUSED),
    (
        "post init of a dataclass",
        Trimmed,
        lambda: _with(Trimmed(), items=[Base(), Base()], at=AT),
        KEPT,
    ),
    (
        "post init of a dataclass, derived",
        Trimmed,
        lambda: _with(Trimmed(), items=[Derived(), Base()]),
        REFUSED,
    ),
    ("equal by its id", list[Identified], lambda: [MoreIdentified(1, 2)], REFUSED),
    (
        "equal by its id, in a dict",
        dict[str, Identified],
        lambda: {"a": MoreIdentified(1, 2)},
        REFUSED,
    ),
    ("equal by its id, in a set", set[Identified], lambda: {MoreIdentified(1, 2)}, REFUSED),
    ("equal by its id, nested", list[list[Identified]], lambda: [[MoreIdentified(1, 2)]], REFUSED),
    ("longer keys", dict[Key, int], lambda: {LongKey(1, 2): 3}, REFUSED),
    ("keys in a set of tuples", set[tuple[int, Key]], lambda: {(1, Key(1)), (2, Key(1))}, KEPT),
    ("longer keys in a set of tuples", set[tuple[int, Key]], lambda: {(1, LongKey(1, 2))}, REFUSED),
    (
        "longer keys deep in a set",
        set[HoldsKey],
        lambda: {HoldsKey(Key(2)), HoldsKey(LongKey(1, 2))},
        REFUSED,
    ),
    ("whole numbers deep in a set", set[HoldsKey], lambda: {HoldsKey(weight=3)}, KEPT),
    ("rounded deep in a set", set[HoldsKey], lambda: {HoldsKey(weight=2**53 + 1)}, REFUSED),
    ("enums as a set of str", set[str], lambda: {Colour.RED, Word.HI}, KEPT),
    ("list as a row", Row, lambda: [1], KEPT),
    ("longer list as a row", Row, lambda: [1, 2], REFUSED),
    ("tagged row under Any", Any, lambda: [TaggedRow(1), (1,), Colour.RED, {1}, Derived()], KEPT),
    (
        "left out under Any",
        Any,
        lambda: [Sparse(), Sparse(1, 2), Colour.RED, TaggedRow(1), {1.5}],
        KEPT,
    ),
    ("dict or int", dict[str, int] | int, lambda: 5, KEPT),
    ("set or bool", set[str] | bool, lambda: True, KEPT),
    ("set or bool, twice the same", set[str] | bool, lambda: ["a", "a"], REFUSED),
    ("struct as dict", dict[str, int], lambda: Base(3), KEPT),
    ("floats", list[float], lambda: [1.5, float("nan"), float("inf")], KEPT),
    ("whole numbers as floats", list[float], lambda: [1, 2**60, float("nan")], KEPT),
    ("rounded in a list", list[float], lambda: [1.5, 2**53 + 1], REFUSED),
    ("rounded in a list with a nan", list[float], lambda: [float("nan"), -(2**53) - 1], REFUSED),
    ("rounded in a list or a float", list[float] | float, lambda: [2**53 + 1], REFUSED),
    ("rounded in a float or a list", list[float] | float, lambda: 2**53 + 1, REFUSED),
    ("not rounded beside whole numbers", list[int | float], lambda: [2**53 + 1, 0.5], KEPT),
    ("rounded in a dict", dict[str, float], lambda: {"a": 2**53 + 1}, REFUSED),
    ("rounded keys", dict[float, str], lambda: {2**53 + 1: "a"}, REFUSED),
    ("floats in a set", set[float], lambda: {5, 2**60, 0.5, 7.25}, KEPT),
    ("rounded in a set", set[float], lambda: {0.5, 2**53 + 1}, REFUSED),
    ("rounded in a frozenset", frozenset[float], lambda: frozenset({2**53 + 1}), REFUSED),
    ("rounded in a tuple", tuple[str, float], lambda: ("a", 2**53 + 1), REFUSED),
    ("rounded in a named tuple", Weighed, lambda: Weighed(2**53 + 1), REFUSED),
    (
        "rounded in a set of tuples",
        set[tuple[float, int]],
        lambda: {(2**53 + 1, 2**53 + 1)},
        REFUSED,
    ),
    (
        "not rounded in a set of tuples",
        set[tuple[float, int]],
        lambda: {(1, 2**53 + 1), (0.5, 1)},
        KEPT,
    ),
    (
        "rounded deep",
        dict[str, list[tuple[float, ...]]],
        lambda: {"a": [(1,), (1, 2**53 + 1)]},
        REFUSED,
    ),
    (
        "bounded and rounded",
        list[Annotated[float, msgspec.Meta(gt=0)]],
        lambda: [2**53 + 1],
        REFUSED,
    ),
    ("rounded enum", float, lambda: enum.Enum("Big", {"ONE": 2**53 + 1}).ONE, REFUSED),
    ("numpy int as float", float, lambda: np.int64(5), KEPT),
    ("numpy int that is rounded", float, lambda: np.int64(2**53 + 1), REFUSED),
    ("numpy ints that are rounded", list[float], lambda: [0.5, np.uint64(2**53 + 1)], REFUSED),
    ("numpy ints that are rounded in a set", set[float], lambda: {np.int64(2**53 + 1)}, REFUSED),
    ("rounded as a numpy float", np.float64, lambda: 2**53 + 1, REFUSED),
    ("rounded as numpy floats", list[np.float32], lambda: [np.float32(0.1), 2**24 + 1], REFUSED),
    ("dataclass", Point, lambda: Point(3.0), KEPT),
    ("derived dataclass", Point, lambda: Point3(3.0, 1.0), REFUSED),
    ("derived dataclasses in a list", list[Point], lambda: [Point3(3.0, 1.0)], REFUSED),
    ("dataclass with a derived field", Derivation, lambda: Derivation(4), KEPT),
    ("named tuple", Pair, lambda: Pair(1, Base(2)), KEPT),
    ("named tuple with a derived one", Pair, lambda: Pair(1, Derived(2)), REFUSED),
    ("typed dict", Typed, lambda: {"a": 1}, KEPT),
    ("typed dict with more", Typed, lambda: {"a": 1, "b": 2}, REFUSED),
    ("model", Model, lambda: Model(Named=3), KEPT),
    (
        "model with everything",
        Model,
        lambda: Model(inner=Inner(when=AT, tags={"a"}, key=uuid.UUID(int=3))),
        KEPT,
    ),
    (
        "models in a list",
        list[Inner],
        lambda: [Inner(price=decimal.Decimal("1.10"), raw=b"\xff")],
        KEPT,
    ),
    ("derived model in a model", Model, lambda: Model(many=[InnerMore(more=3)]), REFUSED),
    ("derived model", list[Inner], lambda: [InnerMore(more=3)], REFUSED),
    ("excluded field", Hidden, lambda: Hidden(hidden=3), REFUSED),
    ("excluded field at its default", Hidden, lambda: Hidden(shown=3), KEPT),
    ("model under Any", Any, lambda: Inner(raw=b"a"), KEPT),
    ("array", np.ndarray, lambda: np.arange(3), KEPT),
    ("array of a kind", npt.NDArray[np.float64], lambda: np.ones((2, 2)), KEPT),
    ("narrow array", npt.NDArray[np.float64], lambda: np.arange(3, dtype=np.int16), KEPT),
    ("wide array", npt.NDArray[np.float32], lambda: np.ones(3), REFUSED),
    ("large numbers as floats", npt.NDArray[np.float64], lambda: np.array([2**53 + 1]), REFUSED),
    ("array in one dimension", IntArray, lambda: np.arange(3), KEPT),
    ("array in two dimensions", IntArray, lambda: np.ones((2, 2), np.int64), REFUSED),
    ("array in one dimension of another kind", IntArray, lambda: np.ones(2), REFUSED),
    ("arrays in a dict", dict[str, np.ndarray], lambda: {"a": np.ones(2)}, KEPT),
    ("array under Any", Any, lambda: nested(np.eye(2)[::-1].T), KEPT),
    ("big-endian array", np.ndarray, lambda: np.arange(3, dtype=">i4"), KEPT),
    ("array of dates", np.ndarray, lambda: np.array(["2026-01-01"], "M8[ns]"), KEPT),
    ("array of text", np.ndarray, lambda: np.array(["ä", "bc"]), KEPT),
    ("masked array", np.ndarray, lambda: np.ma.array([1, 2], mask=[True, False]), REFUSED),
    ("masked array under Any", Any, lambda: nested(np.ma.array([1, 2])), REFUSED),
    ("matrix", np.ndarray, lambda: np.matrix([[1]]), REFUSED),
    ("recarray", np.ndarray, lambda: np.rec.array([(1, 2.0)]), REFUSED),
    ("chararray", np.ndarray, lambda: np.char.array(["a"]), REFUSED),
    (
        "array subclass",
        np.ndarray,
        lambda: np.arange(3).view(type("A", (np.ndarray,), {})),
        REFUSED,
    ),
    ("structured array", np.ndarray, lambda: np.zeros(1, [("a", "i4")]), REFUSED),
    ("array of objects", np.ndarray, lambda: np.array([None]), REFUSED),
    (
        "array of long text",
        np.ndarray,
        lambda: np.array(["a"], getattr(np.dtypes, "StringDType", lambda: "O")()),
        REFUSED,
    ),
    (
        "dtype with metadata",
        np.ndarray,
        lambda: np.zeros(1, np.dtype("f8", metadata={"a": 1})),
        REFUSED,
    ),
    ("bfloat16", np.ndarray, lambda: np.array([1.5], ml_dtypes.bfloat16), KEPT),
    (
        "declared bfloat16",
        npt.NDArray[ml_dtypes.bfloat16],
        lambda: np.array([1.5], ml_dtypes.bfloat16),
        KEPT,
    ),
    ("int4", Any, lambda: np.array([1, -2], ml_dtypes.int4), KEPT),
    ("float8", Any, lambda: np.array([1, -2], ml_dtypes.float8_e4m3fn), KEPT),
    ("rows without items", np.ndarray, lambda: np.zeros((2**24, 0)), REFUSED),
    ("no rows", np.ndarray, lambda: np.zeros((0, 3)), KEPT),
    ("numpy float", float, lambda: np.float64(1.5), KEPT),
    ("numpy int", int, lambda: np.int64(5), KEPT),
    ("numpy int under Any", Any, lambda: nested(np.uint8(5)), KEPT),
    ("declared numpy float", np.float32, lambda: np.float32(0.1), KEPT),
    ("declared numpy text", np.str_, lambda: np.str_("a"), KEPT),
    ("numpy date under Any", Any, lambda: np.datetime64("2026-01-01", "ns"), KEPT),
    ("declared numpy date", np.datetime64, lambda: np.datetime64("2026-01-01", "ns"), KEPT),
    ("declared numpy span", np.timedelta64, lambda: np.timedelta64(5, "s"), KEPT),
    ("declared complex", np.complex128, lambda: np.complex128(1 + 2j), KEPT),
    ("numpy complex under Any", Any, lambda: np.complex64(1), KEPT),
    ("long double under Any", Any, lambda: np.longdouble(1) / 3, KEPT),
    ("complex", Any, lambda: 1j, REFUSED),
    ("object", Any, object, REFUSED),
    ("function", Any, lambda: len, REFUSED),
    ("module", Any, lambda: enum, REFUSED),
    ("none", int, lambda: None, KEPT),
]


def _with(value: Any, **fields: Any) -> Any:
    for name, one in fields.items():
        setattr(value, name, one)
    return value


def form(value: Any) -> Any:
    """A value with all types, offsets and bytes in it, as something that can be compared."""
    cls = type(value).__name__
    if isinstance(value, (np.ndarray, np.generic)):
        return cls, str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, dict):
        return cls, [(form(key), form(one)) for key, one in value.items()]
    if isinstance(value, (set, frozenset)):
        return cls, sorted((form(one) for one in value), key=repr)
    if isinstance(value, (list, tuple)):
        return cls, [form(one) for one in value]
    if isinstance(value, msgspec.Struct):
        return cls, form(msgspec.structs.asdict(value)), sorted(getattr(value, "__dict__", ()))
    if isinstance(value, pydantic.BaseModel) or dataclasses.is_dataclass(value):
        return cls, form(dict(vars(value)))
    return cls, repr(value)


def kinds_of_agents() -> dict[str, type[Agent[Any]]]:
    found = {}
    for place, (name, declared, make, _) in enumerate(CASES):
        holds = msgspec.defstruct(
            f"Holds{place}", [("value", declared | None, None)], bases=(State,)
        )

        class Holder(Agent[holds], kind=f"Holder{place}"):  # type: ignore[valid-type]
            made = staticmethod(make)

            @handler
            async def assign(self) -> None:
                self.state.value = self.made()

            @handler
            async def look(self) -> Any:
                return repr(form(self.state.value))

        found[name] = Holder
    return found


async def test_what_is_in_memory_after_a_turn_is_what_a_reload_gives(tmp_path: Path) -> None:
    classes = kinds_of_agents()
    assert len(CASES) > 100
    seen: dict[str, str] = {}
    wrong: list[str] = []
    async with serving(tmp_path / "log.db", *classes.values()) as node:
        empty = repr(form(None))
        for name, _, _, kept in CASES:
            agent, cls = node.agent(classes[name], "a"), classes[name]
            try:
                await agent.ask(cls.assign)
            except BadState as error:
                if kept or "$.value" not in str(error):
                    wrong.append(f"{name}: refused: {error}")
            else:
                if not kept:
                    wrong.append(f"{name}: kept as {await agent.ask(cls.look)}")
            seen[name] = await agent.ask(cls.look)
            if not kept and seen[name] != empty:
                wrong.append(f"{name}: refused, but {seen[name]} is there")
    async with serving(tmp_path / "log.db", *classes.values()) as node:
        for name, cls in classes.items():
            again = await node.agent(cls, "a").ask(cls.look)
            if again != seen[name]:
                wrong.append(f"{name}: {seen[name]} became {again}")
    assert wrong == []


class Ways(Agent[Base]):
    """Every way in which a turn may run."""

    @handler
    async def at_once(self, derived: bool) -> None:
        self.state = Derived(1, 2) if derived else SameFields(1)

    @handler
    async def waits(self, derived: bool) -> None:
        await asyncio.sleep(0)
        self.state = Derived(1, 2) if derived else SameFields(1)

    @handler(runs_in="thread")
    async def in_a_thread(self, derived: bool) -> None:
        self.state = Derived(1, 2) if derived else SameFields(1)

    @handler(runs_in="process")
    async def in_a_process(self, derived: bool) -> None:
        self.state = Derived(1, 2) if derived else SameFields(1)

    @handler
    async def kind(self) -> str:
        return type(self.state).__name__


async def test_it_is_so_wherever_a_turn_runs(tmp_path: Path) -> None:
    async with serving(tmp_path / "log.db", Ways) as node:
        for method in (Ways.at_once, Ways.waits, Ways.in_a_thread, Ways.in_a_process):
            agent = node.agent(Ways, method.name)
            await agent.ask(method, False)
            assert await agent.ask(Ways.kind) == "Base"
            with pytest.raises(BadState, match=r"\$\.b"):
                await agent.ask(method, True)
            assert await agent.ask(Ways.kind) == "Base"


@dataclasses.dataclass
class Bag:
    items: dict[str, list[int]] = dataclasses.field(default_factory=dict)


ROOTS: list[Case] = [
    ("dict", dict[str, int], lambda: collections.Counter("aab"), KEPT),
    ("set", set[str], lambda: ["a", "b"], KEPT),
    ("set, twice the same", set[str], lambda: ["a", "a"], REFUSED),
    ("list", list[Base], lambda: [Derived()], REFUSED),
    ("number", int, lambda: 4, KEPT),
    ("text", str, lambda: Word.HI, KEPT),
    ("dataclass", Bag, lambda: Bag(collections.defaultdict(list, {"a": [1]})), KEPT),
    ("attribute on a dataclass", Bag, lambda: extra_on(Bag()), REFUSED),
    ("attribute on a struct", Loose, lambda: extra_on(Loose()), REFUSED),
    ("model", Model, lambda: Model(Named=4), KEPT),
    ("derived model", Inner, lambda: InnerMore(more=4), REFUSED),
    ("another type", Base, lambda: {"a": 4}, KEPT),
    ("another type with more", Base, lambda: {"a": 4, "b": 1}, REFUSED),
    ("none", Base, lambda: None, REFUSED),
    ("moment", list[dt.datetime], lambda: [AT], KEPT),
]


async def test_a_state_itself_may_be_anything(tmp_path: Path) -> None:
    classes = []
    for place, (_, declared, make, _) in enumerate(ROOTS):

        class Root(Agent[declared], kind=f"Root{place}"):  # type: ignore[valid-type]
            made = staticmethod(make)

            @handler
            async def assign(self) -> None:
                self.state = self.made()

            @handler
            async def look(self) -> str:
                return repr(form(self.state))

        classes.append(Root)
    seen, wrong = [], []
    async with serving(tmp_path / "log.db", *classes) as node:
        for (name, _, _, kept), cls in zip(ROOTS, classes, strict=True):
            try:
                await node.agent(cls, "a").ask(cls.assign)
            except BadState as error:
                if kept:
                    wrong.append(f"{name}: refused: {error}")
            else:
                if not kept:
                    wrong.append(f"{name}: kept")
            seen.append(await node.agent(cls, "a").ask(cls.look))
    async with serving(tmp_path / "log.db", *classes) as node:
        for (name, *_), cls, before in zip(ROOTS, classes, seen, strict=True):
            if (again := await node.agent(cls, "a").ask(cls.look)) != before:
                wrong.append(f"{name}: {before} became {again}")
    assert wrong == []


class Old(State):
    total: int = 0
    names: list[str] = msgspec.field(default_factory=list)
    nothing: str = ""
    inner: list[Derived] = msgspec.field(default_factory=list)


class New(State):
    sum: int = 0
    inner: list[Base] = msgspec.field(default_factory=list)


def renaming(state: type[Any], version: int = 1) -> type[Agent[Any]]:
    class Renaming(Agent[state], kind="Renaming", state_version=version):  # type: ignore[valid-type]
        @handler
        async def fill(self) -> None:
            self.state.total, self.state.names = 5, ["a"]
            self.state.inner = [Derived(1, 2)]

        @handler
        async def write(self) -> None:
            self.state.inner.append(Base(7))

        @reader
        async def show(self) -> Any:
            return self.state

        @classmethod
        def upgrade_state(cls, version: int, old: Any) -> Any:
            return {**old, "sum": old["total"]}

    return Renaming


async def test_a_field_that_is_no_more_is_said_once_and_kept_until_a_turn_writes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, old, new = tmp_path / "log.db", renaming(Old), renaming(New)
    async with serving(path, old) as node:
        for name in ("a", "b"):
            await node.agent(old, name).ask(old.fill)
    assert logged(caplog) == []
    async with serving(path, new) as node:
        for name in ("a", "b"):
            assert await node.agent(new, name).ask(new.show) == {"sum": 0, "inner": [{"a": 1}]}
    said = [record.getMessage() for record in logged(caplog) if record.levelno >= logging.WARNING]
    assert len(said) == 3
    for field, text in zip(("$.total", "$.names", "$.inner[...].b"), said, strict=True):
        assert f"holds a value of {field}" in text
        assert "Renaming" in text and "upgrade_state" in text and "msgspec.field(name=" in text
    async with serving(path, old) as node:  # nothing was written
        assert (await node.agent(old, "a").ask(old.show))["total"] == 5
    async with serving(path, new) as node:
        await node.agent(new, "b").ask(new.write)
    async with serving(path, old) as node:
        assert (await node.agent(old, "a").ask(old.show))["total"] == 5
        assert (await node.agent(old, "b").ask(old.show))["total"] == 0
    caplog.clear()
    upgraded = renaming(New, 2)
    async with serving(path, upgraded) as node:
        assert (await node.agent(upgraded, "a").ask(upgraded.show))["sum"] == 5
    assert logged(caplog) == []


class OldModel(pydantic.BaseModel):
    inner: list[InnerMore] = []
    total: int = 0
    named: int = pydantic.Field(default=0, alias="Named")


class NewModel(pydantic.BaseModel):
    inner: list[Inner] = []
    named: int = pydantic.Field(default=0, alias="Named")


def test_a_model_s_field_that_is_no_more_is_found() -> None:
    data = codec.encoder(OldModel)(OldModel(inner=[InnerMore(more=1)], total=5, Named=3))
    assert unknown_fields(OldModel, data) == []
    assert unknown_fields(NewModel, data) == ["$.inner[...].more", "$.total"]


class Derives(State):
    items: list[int] = msgspec.field(default_factory=list)
    total: int = 0

    def __post_init__(self) -> None:
        self.total = sum(self.items)


class Deriving(Agent[Derives]):
    @handler
    async def add(self, number: int) -> int:
        self.state.items.append(number)
        return self.state.total

    @reader
    async def total(self) -> int:
        return self.state.total

    @reader
    async def spoil(self) -> None:
        self.state.total = 7


async def test_a_state_may_derive_a_field_when_it_is_made(tmp_path: Path) -> None:
    async with serving(tmp_path / "log.db", Deriving) as node:
        agent = node.agent(Deriving, "a")
        assert [await agent.ask(Deriving.add, 5) for _ in range(3)] == [0, 5, 10]
        assert await agent.ask(Deriving.total) == 15
        with pytest.raises(HandlerFailed, match="immutable"):
            await agent.ask(Deriving.spoil)


class Fussy(State):
    n: int = 0

    def __post_init__(self) -> None:
        if self.n > 2:
            raise KeyError("more than two")


class Fussing(Agent[Fussy]):
    @handler
    async def add(self) -> int:
        self.state.n += 1
        return self.state.n


async def test_a_state_that_would_not_load_is_not_kept(tmp_path: Path) -> None:
    async with serving(tmp_path / "log.db", Fussing) as node:
        agent = node.agent(Fussing, "a")
        assert [await agent.ask(Fussing.add) for _ in range(2)] == [1, 2]
        with pytest.raises(BadState, match="more than two"):
            await agent.ask(Fussing.add)
        with pytest.raises(BadState, match="more than two"):
            await agent.ask(Fussing.add)


async def test_parts_of_a_past_state_are_nobodys(tmp_path: Path) -> None:
    """A reference that was kept to a part of the state does not reach the state of a later turn, as
    after a reload."""

    class Holding(Agent[Old]):
        names: list[str]

        @handler
        async def hold(self) -> None:
            self.names = self.state.names

        @handler
        async def through(self) -> int:
            self.names.append("a")
            return len(self.state.names)

    async with serving(tmp_path / "log.db", Holding) as node:
        agent = node.agent(Holding, "a")
        await agent.ask(Holding.hold)
        assert await agent.ask(Holding.through) == 0


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text()
    | st.binary()
    | st.datetimes(
        timezones=st.sampled_from([None, dt.UTC, EAST, BERLIN]), min_value=dt.datetime(1950, 1, 1)
    )
    | st.dates()
    | st.uuids()
    | st.decimals()
    | st.sampled_from(
        [
            *Colour,
            Level.LOW,
            Derived(1, 2),
            Point3(1.0, 2.0),
            Pair(1, Base(2)),
            np.arange(3),
            np.int8(3),
        ]
    ),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.text() | st.integers(0, 99) | st.tuples(st.integers(), st.text()), inner
        )
        | st.lists(inner).map(tuple)
        | st.sets(st.integers() | st.text())
    ),
    max_leaves=12,
)


class AnyBox(State):
    value: Any = None


class AnyBoxes(Agent[AnyBox]):
    """Only its kind is wanted."""


@given(anything)
def test_a_state_that_was_kept_stays_as_it_is(value: Any) -> None:
    """Whatever it was made from: a turn that changes nothing changes nothing."""
    kind = AnyBoxes.__kind__
    try:
        data, kept = kind.keep(AnyBox(value=value))
    except BadState:
        return
    again, later = kind.keep(kept)
    assert (
        form(kept)
        == form(kind.load_state(data, 1))
        == form(later)
        == form(kind.load_state(again, 1))
    )
    assert form(kind.view(data).value) == form(kind.view(again).value)


class Free(State):
    parts: dict[str, int] = msgspec.field(default_factory=dict)


class Part(msgspec.Struct):
    x: int = 0


class Bound(State):
    parts: Part = msgspec.field(default_factory=Part)


class Sets(State):
    names: set[str] = msgspec.field(default_factory=set)


class FewerSets(State):
    others: set[str] = msgspec.field(default_factory=set)


def test_what_the_log_says_of_stored_fields_is_bounded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Many(Agent[Bound]):
        """Its fields were keys before."""

    kind = Many.__kind__
    monkeypatch.setattr(limits, "UNKNOWN_FIELDS_OF_LOAD", 3)
    monkeypatch.setattr(limits, "UNKNOWN_FIELDS_MAX", 7)
    for load in range(10):
        data = codec.encode_raw(Free({f"{load}-{place}": 1 for place in range(3000)}))
        kind.note_unknown("Many/a", data, kind.decode_state(data))
    said = [record.getMessage() for record in caplog.records]
    assert [text.startswith("Many/a holds a value of $.parts.") for text in said].count(True) == 7
    assert len(said) == 8 and len(kind._said) == 7


def test_a_state_without_inner_fields_is_not_encoded_to_find_stored_ones(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Renamed(Agent[FewerSets]):
        """Its field had another name before."""

    kind = Renamed.__kind__
    monkeypatch.setattr(kind, "encode_bytes", None)
    for names in ({"a", "b"}, set[str]()):
        data = codec.encode_raw(Sets(names))
        kind.note_unknown("Renamed/a", data, kind.decode_state(data))
    kind.note_unknown("Renamed/a", codec.encode_raw(FewerSets({"a", "b"})), None)
    assert [record.getMessage().partition(",")[0] for record in caplog.records] == [
        "Renamed/a holds a value of $.names"
    ]


class Weights(State):
    one: float = 0.0
    other: float | None = None


class Nested(State):
    parts: list[Weights] = msgspec.field(default_factory=list)


class Weighing(Agent[Weights]):
    """Has floats."""


class WeighingParts(Agent[Nested]):
    """Has them further down."""


def test_a_whole_number_that_a_float_rounds_is_refused() -> None:
    kind, parts = Weighing.__kind__, WeighingParts.__kind__
    assert kind.keep(Weights(one=2**53, other=2**60))[1] == Weights(
        one=float(2**53), other=float(2**60)
    )
    assert parts.keep(Nested([Weights(one=3)]))[1] == Nested([Weights(one=3.0)])
    with pytest.raises(BadState, match=r"would lose \$\.one: a float does not have all the digits"):
        kind.keep(Weights(one=2**53 + 1))
    with pytest.raises(BadState, match=r"would lose \$\.other: a float"):
        kind.keep(Weights(other=2**53 + 1))
    with pytest.raises(BadState, match=r"would lose \$\.parts\[0\]\.one: a float"):
        parts.keep(Nested([Weights(one=2**53 + 1)]))


def holding(declared: Any, default: Any = None) -> Any:
    """A kind of agents whose state is one field."""
    holds = msgspec.defstruct("Holds", [("value", declared, default)], bases=(State,))

    class Holder(Agent[holds]):  # type: ignore[valid-type]
        """Only its kind is wanted."""

    return Holder.__kind__, holds


TWO_IN_ONE = {Colour.RED: 1, "red": 2}


@pytest.mark.parametrize("declared", [dict[str, int], set[str], frozenset[int], dict[str, float]])
def test_a_collection_that_may_be_left_unset_may_be_unset(declared: Any) -> None:
    kind, holds = holding(declared | msgspec.UnsetType, msgspec.UNSET)
    assert kind.new_state()[1] == holds()
    with pytest.raises(BadState, match=r"would lose \$\.value: some of its items become one"):
        kind.keep(
            holds(
                ["a", "a"]
                if declared == set[str]
                else [1, 1]
                if declared == frozenset[int]
                else TWO_IN_ONE
            )
        )


@pytest.mark.parametrize(
    ("declared", "value", "where"),
    [
        (list[Base], [Base(), Derived()], r"\$\.value\[1\]\.b"),
        (Checks, Checks([Derived()]), r"\$\.value\.items\[0\]\.b"),
        (
            list[Above],
            [Above([Checks(), Checks([Base(), Derived()])])],
            r"\$\.value\[0\]\.checks\[1\]\.items\[1\]\.b",
        ),
        (Trimmed, Trimmed([Derived()]), r"\$\.value\.items\[0\]\.b"),
        (dict[str, Loose], {"a": extra_on(Loose())}, r"\$\.value\['a'\]\.beside"),
        (list[Trimmed], [extra_on(Trimmed([Base()]))], r"\$\.value\[0\]\.beside"),
        (set[HoldsKey], {HoldsKey(LongKey(1, 2))}, r"\$\.value\[\.\.\.\]\.key\.b"),
        (dict[Key, int], {LongKey(1, 2): 3}, r"\$\.value\[LongKey\(a=1, b=2\)\]\.b"),
        (dict[str, list[float]], {"a": [0.5, 2**53 + 1]}, r"\$\.value\['a'\]\[1\]: a float"),
        (Row, [1, 2], r"\$\.value\[1\]"),
    ],
)
def test_what_is_refused_says_where_it_is(declared: Any, value: Any, where: str) -> None:
    kind, holds = holding(declared | None)
    with pytest.raises(BadState, match=f"would lose {where}"):
        kind.keep(holds(value))


@pytest.mark.parametrize("declared", [list[float], dict[str, float], set[float], frozenset[float]])
def test_a_state_that_is_a_collection_of_floats_is_looked_at(declared: Any) -> None:
    class Floats(Agent[declared]):  # type: ignore[valid-type]
        """Only its kind is wanted."""

    def of(*numbers: float) -> Any:
        return (
            {str(float(one)): one for one in numbers}
            if declared == dict[str, float]
            else (declared)(numbers)
        )

    assert Floats.__kind__.keep(of(1, 2.5))[1] == of(1.0, 2.5)
    with pytest.raises(BadState, match=r"would lose \$.*: a float does not have all the digits"):
        Floats.__kind__.keep(of(0.5, 2**53 + 1))


def test_the_code_of_an_item_is_not_asked_whether_it_is_the_same() -> None:
    class Asked(msgspec.Struct, eq=False):
        a: int = 0

        def __eq__(self, other: object) -> bool:
            raise AssertionError

    kind, holds = holding(list[Asked] | None)
    assert kind.keep(holds((Asked(1),)))[1].value[0].a == 1


def test_objects_of_attrs_classes_are_kept() -> None:
    """Also their offsets, what they make of their fields, and what is beside them."""
    import attrs

    @attrs.define
    class Visit:
        at: dt.datetime | None = None
        many: list[dt.datetime] = attrs.field(factory=list)
        weights: list[float] = attrs.field(factory=list)

    @attrs.frozen
    class Stay:
        at: dt.datetime = AT

    @attrs.define
    class Last:
        items: list[Base] = attrs.field(factory=list)

        def __attrs_post_init__(self) -> None:
            self.items = self.items[-1:]

    @attrs.define(slots=False)
    class Open:
        a: int = 0

    @attrs.define
    class Longer(Visit):
        b: int = 0

    visit = Visit(AT, [AT, AT.astimezone(dt.UTC), dt.datetime(2026, 7, 1, tzinfo=BERLIN)])
    for declared, value in [
        (Visit, visit),
        (list[Visit], [visit]),
        (Stay, Stay()),
        (Any, visit),
        (Open, Open(3)),
    ]:
        kind, holds = holding(declared | None)
        data, kept = kind.keep(holds(value))
        assert repr(kept) == repr(kind.load_state(data, 1))
        wanted = kept.value[0] if declared == list[Visit] else kept.value
        if declared is Any:
            assert isinstance(wanted, dict)
            wanted = Visit(**wanted)
        if isinstance(wanted, Visit):
            moments = [wanted.at, *wanted.many]
            assert [one.utcoffset() for one in moments] == [
                one.utcoffset() for one in [AT, *visit.many]
            ]
        elif isinstance(wanted, Stay):
            assert wanted.at.utcoffset() == AT.utcoffset()
        else:
            assert wanted == value
    kind, holds = holding(list[Visit] | None)
    with pytest.raises(BadState, match=r"\$\.value\[0\]\.b"):
        kind.keep(holds([Longer(AT)]))
    with pytest.raises(BadState, match=r"\$\.value\[0\]\.weights\[0\]: a float"):
        kind.keep(holds([Visit(weights=[2**53 + 1])]))
    kind, holds = holding(Open | None)
    with pytest.raises(BadState, match=r"\$\.value\.beside"):
        kind.keep(holds(extra_on(Open())))
    kind, holds = holding(Last | None)
    last = Last()
    last.items = [Base(), Base(2)]
    assert kind.keep(holds(last))[1].value.items == [Base(2)]
    last.items = [Derived(), Base(2)]
    with pytest.raises(BadState, match=r"\$\.value\.items\[0\]\.b"):
        kind.keep(holds(last))


class Held(State, Generic[T]):
    items: list[T] = msgspec.field(default_factory=list)


def test_a_state_may_be_generic() -> None:
    class Holding(Agent[Held[Base]]):
        """Only its kind is wanted."""

    assert Holding.__kind__.keep(Held(items=[Base(1)]))[1].items == [Base(1)]
    with pytest.raises(BadState, match=r"\$\.items\[0\]\.b"):
        Holding.__kind__.keep(Held(items=[Derived(1)]))
