"""Round trips: what was encoded is what is decoded, arrays of every dtype and shape too; errors
name the field.

Views borrow the record's bytes, so they must be read-only even where the bytes are not; state owns
its arrays.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import math
import uuid
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from holdfast import codec
from holdfast.errors import BadMessage, DataLoss


class Colour(enum.Enum):
    RED = "red"


class Inner(msgspec.Struct):
    values: list[int]
    label: str = ""


class Outer(msgspec.Struct):
    inner: Inner
    table: dict[str, tuple[int, float]]
    colour: Colour = Colour.RED
    at: datetime.datetime | None = None
    key: uuid.UUID | None = None
    raw: bytes = b""
    tags: frozenset[str] = frozenset()


@dataclasses.dataclass
class Point:
    x: float
    y: float = 0.0


class Weights(msgspec.Struct):
    matrix: npt.NDArray[np.float64]
    bias: np.ndarray
    scale: np.float32 = np.float32(1.0)


def trip(value: Any, kind: Any) -> Any:
    return codec.decode(codec.encode(value, "value"), kind, "value")


# numpy's own item sizes; text and bytes keep their width, dates their unit.
PLAIN = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
    hnp.complex_number_dtypes(endianness="?", sizes=(64, 128)),
    hnp.datetime64_dtypes(),
    hnp.timedelta64_dtypes(),
    hnp.byte_string_dtypes(min_len=1),
    hnp.unicode_string_dtypes(min_len=1),
)
ARRAYS = PLAIN.flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_side=4))
)


def same(one: Any, other: Any) -> bool:
    return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


@given(ARRAYS)
def test_arrays_of_every_dtype_and_shape(array: Any) -> None:
    for kind in (Any, np.ndarray):
        back = trip(array, kind)
        assert isinstance(back, np.ndarray)
        assert same(array, back)
        assert back.flags.writeable
        assert back.flags.owndata


@given(ARRAYS)
def test_borrowed_arrays_are_read_only(array: Any) -> None:
    data = codec.encode({"a": array}, "value")
    for raw in (data, bytearray(data), memoryview(bytearray(data))):
        back = codec.decoder(Any, borrowed=True).decode(raw)["a"]
        assert same(array, back)
        assert not back.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            back[...] = array


@given(
    hnp.arrays(np.int32, (4, 6, 2)),
    st.sampled_from(["T", "step", "reverse", "fortran", "broadcast"]),
)
def test_arrays_that_are_not_contiguous(array: Any, form: str) -> None:
    view = {
        "T": lambda: array.T,
        "step": lambda: array[::2, 1::3],
        "reverse": lambda: array[::-1, ::-1],
        "fortran": lambda: np.asfortranarray(array),
        "broadcast": lambda: np.broadcast_to(array[0], (3, 6, 2)),
    }[form]()
    assert same(np.ascontiguousarray(view), trip(view, np.ndarray))


@pytest.mark.parametrize(
    "array",
    [
        np.array([object()]),
        np.zeros(2, dtype=[("a", "i4"), ("b", "f8")]),
        np.zeros(2, dtype="V0"),
    ],
    ids=["objects", "fields", "no width"],
)
def test_arrays_that_cannot_be_read_back_are_refused_before_they_are_written(array: Any) -> None:
    with pytest.raises(BadMessage, match="dtype"):
        codec.encode({"a": array}, "state")


@given(PLAIN.filter(lambda dtype: dtype.kind in "biuf").flatmap(lambda d: hnp.arrays(d, ())))
def test_scalars_become_plain_numbers(array: Any) -> None:
    scalar = array[()]
    back = trip(scalar, Any)
    assert type(back) in (bool, int, float)
    assert back == scalar.item() or (math.isnan(back) and math.isnan(scalar.item()))


def test_typed_arrays_are_checked_and_widened_only() -> None:
    kind = npt.NDArray[np.float64]
    assert trip(np.array([1, 2], np.int16), kind).dtype == np.float64
    assert trip(np.array([1, 2], np.float32), kind).dtype == np.float64
    assert trip([1.5, 2.5], kind).tolist() == [1.5, 2.5]
    with pytest.raises(BadMessage, match="complex"):
        trip(np.array([1j]), kind)
    with pytest.raises(BadMessage, match="array"):
        trip("text", kind)


@pytest.mark.parametrize("value", [[[1], [1, 2]], [{"a": 1}], [None], [1, "a", None]])
def test_a_list_that_is_no_array_is_refused(value: Any) -> None:
    with pytest.raises(BadMessage):
        trip(value, np.ndarray)


def test_a_number_too_large_for_its_scalar_is_refused() -> None:
    with pytest.raises(BadMessage):
        trip(300, np.int8)
    with pytest.raises(BadMessage):
        trip("x", np.int8)


structs = st.builds(
    Outer,
    inner=st.builds(Inner, values=st.lists(st.integers(-(2**63), 2**64 - 1)), label=st.text()),
    table=st.dictionaries(
        st.text(), st.tuples(st.integers(-(2**63), 2**63), st.floats(allow_nan=False))
    ),
    at=st.none() | st.datetimes(timezones=st.just(datetime.UTC)),
    key=st.none() | st.uuids(),
    raw=st.binary(),
    tags=st.frozensets(st.text()),
)


@given(structs)
def test_structs(value: Outer) -> None:
    assert trip(value, Outer) == value


@given(st.builds(Point, st.floats(allow_nan=False), st.floats(allow_nan=False)))
def test_dataclasses(value: Point) -> None:
    assert trip(value, Point) == value


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(plain)
def test_plain_values(value: Any) -> None:
    assert trip(value, Any) == value
    codec.to_builtins(codec.encode(value, "value"))


def test_arrays_inside_of_structs() -> None:
    back = trip(Weights(np.eye(3), np.arange(4), np.float32(0.5)), Weights)
    assert same(back.matrix, np.eye(3))
    assert back.bias.tolist() == [0, 1, 2, 3]
    assert isinstance(back.scale, np.float32)


@pytest.mark.parametrize(
    ("value", "kind", "where"),
    [
        ({"inner": {"values": [1, "x"]}, "table": {}}, Outer, r"\$\.inner\.values\[1\]"),
        ({"inner": {"values": []}}, Outer, "table"),
        ({"inner": {"values": []}, "table": {"a": [1]}}, Outer, r"\$\.table\[\.\.\.\]"),
        ({"inner": {"values": []}, "table": {}, "colour": "blue"}, Outer, r"\$\.colour"),
        ({"x": "a"}, Point, r"\$\.x"),
        ({"matrix": 7, "bias": []}, Weights, r"\$\.matrix"),
        ({"matrix": [1.0], "bias": [], "scale": "a"}, Weights, r"\$\.scale"),
        ({"n": -1}, dict[str, Annotated[int, msgspec.Meta(ge=0)]], r"\$\[\.\.\.\]"),
    ],
)
def test_errors_name_the_field(value: Any, kind: Any, where: str) -> None:
    with pytest.raises(BadMessage, match=rf"^the state of Counter/a: .*{where}"):
        codec.decode(codec.encode(value, "value"), kind, "the state of Counter/a")


@pytest.mark.parametrize(
    "value", [object(), {"a": {1, object()}}, 2**64, 1j, lambda: None, {"deep": {"er": Colour}}]
)
def test_what_cannot_be_sent_is_named(value: Any) -> None:
    with pytest.raises(BadMessage, match=r"^reply: "):
        codec.encode(value, "reply")


def test_what_contains_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(BadMessage, match=r"^reply: "):
        codec.encode(value, "reply")


def test_for_people_to_read() -> None:
    value = {
        "struct": Inner([1]),
        "array": np.arange(3),
        "raw": b"ab",
        "at": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    }
    shown = codec.to_builtins(codec.encode(value, "value"))
    assert shown == {
        "struct": {"values": [1], "label": ""},
        "array": [0, 1, 2],
        "raw": "YWI=",
        "at": "2026-01-01T00:00:00Z",
    }


@given(ARRAYS)
def test_every_array_can_be_shown(array: Any) -> None:
    codec.to_builtins(codec.encode([array], "value"))


@given(st.binary(), st.data())
def test_a_changed_byte_is_found(body: bytes, data: st.DataObject) -> None:
    sealed = codec.seal(body)
    assert bytes(codec.unseal(sealed, "record")) == body
    at = data.draw(st.integers(0, len(sealed) - 1))
    flipped = data.draw(st.integers(1, 255))
    broken = sealed[:at] + bytes([sealed[at] ^ flipped]) + sealed[at + 1 :]
    with pytest.raises(DataLoss, match=r"^record: "):
        codec.unseal(broken, "record")


@pytest.mark.parametrize("payload", [b"", b"a", b"abc"])
def test_what_is_too_short_is_lost(payload: bytes) -> None:
    with pytest.raises(DataLoss):
        codec.unseal(payload, "record")
