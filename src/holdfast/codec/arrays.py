"""numpy arrays as bytes: what comes back is what was given, or the array is refused.

An array travels as its dtype, its shape and its raw data in C order. What numpy would lose on the
way is refused before it is written: the mask of a masked array, a dtype whose name says less than
the dtype, objects. What arrives is not trusted: numpy allocates by what the bytes say, so every
size is checked before numpy sees it.
"""

from __future__ import annotations

import math
import re
import struct
import sys
from functools import lru_cache
from types import UnionType
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin

import msgspec

from holdfast import limits

_DTYPE: Final = re.compile(r"[<>|][?biufcmMSUV][0-9]{1,9}(\[[0-9]{0,9}[A-Za-z]{1,2}\])?", re.ASCII)
"""What ``dtype.str`` is for plain numbers, dates, bytes and text: numpy's parser is given nothing
else."""

_NAMED: Final = re.compile(r"[a-z][a-z0-9_]{1,40}", re.ASCII)
"""A dtype of the package ``ml_dtypes``, such as ``bfloat16``, goes by its name."""

_HEAD: Final = struct.Struct("<I")
_DIMENSIONS_MAX: Final = 64  # numpy's own
_EXACT_FLOATS: Final = 2**53
"""Whole numbers beyond this are not all floats."""


def numpy_or_none() -> Any:
    """numpy, if this process has loaded it: a value of its types cannot be there before."""
    return sys.modules.get("numpy")


def is_array_type(kind: Any) -> bool:
    """Whether a class is numpy's array or one of its scalars."""
    numpy = numpy_or_none()
    return (
        numpy is not None
        and isinstance(kind, type)
        and issubclass(kind, (numpy.ndarray, numpy.generic))
    )


def to_bytes(array: Any) -> bytes:
    """An array as bytes. Raises `TypeError` where it could not be read back as it is."""
    head = head_of(array)
    return _HEAD.pack(len(head)) + head + array.tobytes()  # type: ignore[no-any-return]


def head_of(array: Any) -> bytes:
    """The dtype and the shape of an array as bytes. Raises `TypeError` where it could not be read
    back as it is."""
    numpy, cls, kind = numpy_or_none(), type(array), array.dtype
    if cls is not numpy.ndarray and cls is not numpy.memmap:
        lost = "without its mask" if isinstance(array, numpy.ma.MaskedArray) else "as a plain array"
        raise TypeError(
            f"a {cls.__qualname__} would come back {lost}: store numpy.asarray(...) of what is to "
            "be kept"
        )
    if kind.metadata:
        raise TypeError(
            f"an array of dtype {kind} would come back without the metadata of its dtype"
        )
    name, shape = _name_of(kind), array.shape
    if 0 in shape:
        try:
            _check_shape(shape)
        except ValueError as error:
            raise TypeError(str(error)) from None
    return msgspec.msgpack.encode((name, shape))


@lru_cache(maxsize=256)
def _name_of(kind: Any) -> str:
    """What names a dtype in bytes. Raises `TypeError` where nothing does exactly."""
    name: str = kind.str
    if kind.type.__module__.partition(".")[0] == "ml_dtypes":
        return str(kind.name)
    if kind.names is not None or not kind.itemsize or kind.hasobject or not _DTYPE.fullmatch(name):
        raise TypeError(
            f"an array of dtype {kind} cannot be stored: only plain numbers, bool, dates and text"
        )
    if (other := numpy_or_none().dtype(name)) != kind:
        raise TypeError(
            f"an array of dtype {kind} would come back as one of {other}: store it as another"
        )
    return name


def _check_shape(shape: tuple[int, ...]) -> int:
    """The number of items. Raises `ValueError` for a shape that costs more than its items do."""
    if len(shape) > _DIMENSIONS_MAX or min(shape, default=0) < 0:
        raise ValueError(f"an array of shape {shape[:40]} is not accepted")
    if math.prod(size for size in shape if size) > limits.EMPTY_ARRAY_ROWS_MAX and 0 in shape:
        raise ValueError(
            f"an array of shape {shape} has no items, but more than {limits.EMPTY_ARRAY_ROWS_MAX} "
            "rows"
        )
    return math.prod(shape)


def from_bytes(data: memoryview, own: bool) -> Any:
    """The array from bytes: one of its own, or one that borrows the bytes and is read-only. Raises
    `ValueError`."""
    try:
        import numpy
    except ModuleNotFoundError:
        raise ValueError(
            "this value holds a numpy array: install it with `pip install holdfast[numpy]`"
        ) from None
    (size,) = _HEAD.unpack_from(data)
    name, shape = msgspec.msgpack.decode(data[4 : 4 + size], type=tuple[str, tuple[int, ...]])
    count = _check_shape(shape)
    kind = numpy.dtype(name) if _DTYPE.fullmatch(name) else _named(name)
    body = data[4 + size :]
    if count * kind.itemsize != len(body):
        raise ValueError(
            f"an array of {count} items of {kind} has {count * kind.itemsize} bytes, not "
            f"{len(body)}"
        )
    array = numpy.frombuffer(body, dtype=kind).reshape(shape)
    if own:
        return array.copy()
    array.flags.writeable = False
    return array


def _named(name: str) -> Any:
    import numpy

    if not _NAMED.fullmatch(name):
        raise ValueError(f"an array of dtype {name[:40]!r} is not accepted")
    try:
        import ml_dtypes
    except ModuleNotFoundError:
        raise ValueError(
            f"this value holds an array of dtype {name}: install `ml_dtypes`"
        ) from None
    found = getattr(ml_dtypes, name, None)
    if not isinstance(found, type) or not issubclass(found, numpy.generic):
        raise ValueError(f"an array of dtype {name!r} is not accepted")
    return numpy.dtype(found)


# Scalars ------------------------------------------------------------------------------------------


def plain_scalar(value: Any) -> Any:
    """A numpy scalar as the plain value that equals it; None where there is none, so that it goes
    as an array."""
    kind = value.dtype
    if kind.kind in "biu" or (kind.kind == "f" and kind.itemsize <= 8):
        return value.item()
    return {"U": str, "S": bytes}[kind.kind](value) if kind.kind in "US" else None


def floats() -> tuple[Any, ...]:
    """numpy's classes of floats."""
    numpy = numpy_or_none()
    return () if numpy is None else (numpy.float64, numpy.float32, numpy.float16, numpy.longdouble)


_SCALARS: Final = {
    "b": (bool,),
    "i": (int,),
    "u": (int,),
    "f": (int, float),
    "c": (int, float),
    "U": (str,),
    "S": (bytes,),
}


def scalar(kind: Any, value: Any) -> Any:
    """A scalar of a numpy type from what was decoded. Raises `TypeError`, `ValueError`."""
    numpy = numpy_or_none()
    if (
        isinstance(value, numpy.ndarray)
        and value.shape == ()
        and issubclass(value.dtype.type, kind)
    ):
        return value[()]
    if issubclass(kind, (numpy.datetime64, numpy.timedelta64)):
        accepted: tuple[type, ...] = (str,)
    else:
        accepted = next(
            (types for one, types in _SCALARS.items() if issubclass(kind, _bases(one))), ()
        )
    # a number would be a size for some, and a text a number for others
    if type(value) not in accepted:
        raise TypeError(f"Expected `{kind.__name__}`, got `{type(value).__name__}`")
    made = kind(value)
    if isinstance(value, (int, float)) and numpy.isinf(made) and not math.isinf(value):
        raise ValueError(f"{value} is too large for {kind.__name__}")
    return made


def _bases(code: str) -> Any:
    numpy = numpy_or_none()
    return {
        "b": numpy.bool_, "i": numpy.signedinteger, "u": numpy.unsignedinteger, "f": numpy.floating,
        "c": numpy.complexfloating, "U": numpy.str_, "S": numpy.bytes_,
    }[code]  # fmt: skip


# What a type says ---------------------------------------------------------------------------------


def typed(wanted: Any, value: Any) -> Any:
    """An array as its type says it: of its scalar, widened where nothing is lost, and with its
    number of dimensions.

    ``value``: an array, or a list as a shell sends it. Raises `TypeError`, `ValueError`.
    """
    numpy = numpy_or_none()
    scalars, dimensions = _declared(wanted)
    if isinstance(value, list):
        value = _from_list(value, scalars)
    if not isinstance(value, numpy.ndarray):
        raise TypeError(f"Expected an array, got `{type(value).__name__}`")
    if dimensions is not None and value.ndim != len(dimensions):
        raise TypeError(f"Expected an array of {len(dimensions)} dimensions, got {value.ndim}")
    for size, expected in zip(value.shape, dimensions or (), strict=bool(dimensions)):
        if expected and size not in expected:
            raise TypeError(f"Expected an array of shape {dimensions}, got {value.shape}")
    if not scalars or any(numpy.issubdtype(value.dtype, one) for one in scalars):
        return value
    for one in scalars:
        if numpy.can_cast(value.dtype, one, casting="safe") and _is_exact(value, numpy.dtype(one)):
            return value.astype(one)
    raise TypeError(
        f"Expected an array of {' or '.join(one.__name__ for one in scalars)}, got {value.dtype}"
    )


def _is_exact(value: Any, kind: Any) -> bool:
    """Whether large whole numbers are still the same ones as floats."""
    if (
        value.dtype.kind not in "iu"
        or kind.kind not in "fc"
        or value.dtype.itemsize < 8
        or not value.size
    ):
        return True
    return bool(kind.itemsize > 16) or (
        value.max() <= _EXACT_FLOATS and value.min() >= -_EXACT_FLOATS
    )


@lru_cache(maxsize=256)
def _declared(wanted: Any) -> tuple[tuple[Any, ...], tuple[tuple[int, ...], ...] | None]:
    """The scalars that a type of arrays allows (none: all), and what each dimension may be (none:
    any number of them)."""
    scalars: tuple[Any, ...] = ()
    dimensions = None
    for argument in get_args(wanted):
        origin, inner = get_origin(argument), get_args(argument)
        if origin is tuple and Ellipsis not in inner:
            dimensions = tuple(get_args(one) if get_origin(one) is Literal else () for one in inner)
        elif isinstance(origin, type) and origin.__name__ == "dtype" and len(inner) == 1:
            choices = get_args(inner[0]) if get_origin(inner[0]) in (Union, UnionType) else inner
            scalars = tuple(get_origin(one) or one for one in choices)
            if any(isinstance(one, TypeVar) or not isinstance(one, type) for one in scalars):
                scalars = ()
    return scalars, dimensions


def _from_list(value: list[Any], scalars: tuple[Any, ...]) -> Any:
    """An array from nested lists of numbers, or of text, or of bytes. numpy makes each text as long
    as the longest."""
    numpy = numpy_or_none()
    found, count, longest = _leaves(value)
    kinds = {"U" if one is str else "S" if one is bytes else "n" for one in found}
    if len(kinds) > 1 or found - {bool, int, float, str, bytes}:
        raise TypeError(
            "Expected an array, got a list with "
            f"{' and '.join(sorted(one.__name__ for one in found))}"
        )
    kind = kinds.pop() if kinds else "n"
    if kind != "n" and count * longest * 4 > limits.TEXT_ARRAY_BYTES_MAX:
        raise ValueError(
            f"an array of {count} texts as long as the longest of {longest} takes too much: send "
            "an array"
        )
    if scalars and not any(
        issubclass(one, _of_kind(kind)) or one is numpy.generic for one in scalars
    ):
        names = " or ".join(one.__name__ for one in scalars)
        raise TypeError(
            f"Expected an array of {names}, got a list with {next(iter(found), int).__name__}"
        )
    array = numpy.array(value) if count else numpy.array(value, dtype=_concrete(scalars))
    if array.dtype.hasobject or (found <= {int} and count and array.dtype.kind not in "iu"):
        raise TypeError("Expected an array, got a list with whole numbers that are too large")
    return array


def _concrete(scalars: tuple[Any, ...]) -> Any:
    """The dtype of an empty list."""
    numpy = numpy_or_none()
    for one in scalars:
        try:
            return numpy.dtype(one)
        except TypeError:
            continue
    return None


def _of_kind(kind: str) -> Any:
    numpy = numpy_or_none()
    return {"U": numpy.str_, "S": numpy.bytes_, "n": (numpy.number, numpy.bool_)}[kind]


def _leaves(value: list[Any]) -> tuple[set[type], int, int]:
    """The types of all that nested lists hold, how many there are, and the length of the longest
    text."""
    found: set[type] = set()
    count = longest = 0
    level = [value]
    for _ in range(_DIMENSIONS_MAX):
        below: list[list[Any]] = []
        for some in level:
            for one in some:
                if type(one) is list:
                    below.append(one)
                else:
                    found.add(type(one))
                    count += 1
                    if isinstance(one, (str, bytes)) and len(one) > longest:
                        longest = len(one)
        if not below:
            return found, count, longest
        level = below
    raise ValueError(f"an array has {_DIMENSIONS_MAX} dimensions at most")
