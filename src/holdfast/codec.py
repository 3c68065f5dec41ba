"""How values become bytes: msgpack through msgspec, numpy arrays as one extension type, and a checksum on every record.

Never pickle: bytes from another process are decoded into declared types only. An array travels as its dtype, its shape
and its raw data in C order; arrays of objects are refused. Decoded *state* owns its arrays and may change them; decoded
*views* borrow the bytes and are read-only.
"""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, get_args, get_origin
from zlib import crc32

import msgspec
import msgspec.inspect

from holdfast.errors import BadMessage, DataLoss

_ARRAY: Final = 1
_DTYPE: Final = re.compile(r"[<>|][?biufcmMSUV][0-9]{1,9}(\[[0-9]{0,9}[A-Za-z]{1,2}\])?", re.ASCII)
"""What ``dtype.str`` is for plain numbers, dates, bytes and text: numpy's parser is given nothing else."""

_SUM: Final = struct.Struct("<I")


def _encode_hook(value: Any) -> Any:
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        if isinstance(value, numpy.ndarray):
            kind = value.dtype
            if kind.names is not None or not kind.itemsize or not _DTYPE.fullmatch(kind.str):
                raise TypeError(f"an array of dtype {kind} cannot be stored: only plain numbers, bool, dates and text")
            head = msgspec.msgpack.encode((value.dtype.str, value.shape))
            return msgspec.msgpack.Ext(_ARRAY, _SUM.pack(len(head)) + head + value.tobytes())
        if isinstance(value, numpy.generic):
            return value.item()
    raise TypeError(f"values of type {type(value).__qualname__} cannot be stored or sent")


def _array(data: memoryview, own: bool) -> Any:
    try:
        import numpy
    except ModuleNotFoundError:
        raise ValueError("this value holds a numpy array: install it with `pip install holdfast[numpy]`") from None
    (size,) = _SUM.unpack_from(data)
    dtype, shape = msgspec.msgpack.decode(data[4 : 4 + size], type=tuple[str, tuple[int, ...]])
    if not _DTYPE.fullmatch(dtype) or min(shape, default=0) < 0:
        raise ValueError(f"an array of dtype {dtype[:40]!r} and shape {shape[:40]} is not accepted")
    array = numpy.frombuffer(data[4 + size :], dtype=dtype).reshape(shape)
    if own:
        return array.copy()
    array.flags.writeable = False
    return array


def owned_array(code: int, data: memoryview) -> Any:
    """An array of its own from an extension value: the hook of decoders. Raises `ValueError`."""
    if code != _ARRAY:
        raise ValueError(f"unknown extension type {code}")
    return _array(data, own=True)


def _borrowed(code: int, data: memoryview) -> Any:
    if code != _ARRAY:
        raise ValueError(f"unknown extension type {code}")
    return _array(data, own=False)


def _decode_hook(wanted: Any, value: Any) -> Any:
    numpy = sys.modules.get("numpy")
    base = get_origin(wanted) or wanted
    if numpy is not None and isinstance(base, type) and issubclass(base, numpy.ndarray):
        if isinstance(value, list):
            value = numpy.array(value)
        if not isinstance(value, numpy.ndarray):
            raise TypeError(f"Expected an array, got `{type(value).__name__}`")
        if value.dtype.hasobject:
            raise TypeError("Expected an array of numbers or text, got a list of other values")
        scalar = _scalar_type(wanted)
        if scalar is not None and not numpy.issubdtype(value.dtype, scalar):
            if not numpy.can_cast(value.dtype, scalar, casting="safe"):
                raise TypeError(f"Expected an array of {scalar.__name__}, got {value.dtype}")
            value = value.astype(scalar)
        return value
    if numpy is not None and isinstance(base, type) and issubclass(base, numpy.generic):
        return base(value)
    if isinstance(base, type) and isinstance(value, base):
        return value
    raise TypeError(f"Expected `{getattr(base, '__qualname__', base)}`, got `{type(value).__qualname__}`")


@lru_cache(maxsize=256)
def _scalar_type(wanted: Any) -> Any:
    for argument in get_args(wanted):
        inner = get_args(argument)
        if len(inner) == 1 and isinstance(inner[0], type):
            return inner[0]
    return None


def is_immutable(kind: Any) -> bool:
    """Whether no value of a type, decoded with borrowed arrays, can be changed: then many may share it."""
    return _immutable(msgspec.inspect.type_info(kind), set())


def _immutable(found: Any, seen: set[type]) -> bool:
    if isinstance(found, msgspec.inspect.StructType):
        if found.cls in seen:
            return True
        seen.add(found.cls)
        return found.cls.__struct_config__.frozen and all(_immutable(field.type, seen) for field in found.fields)
    if isinstance(found, msgspec.inspect.UnionType):
        return all(_immutable(one, seen) for one in found.types)
    if isinstance(found, msgspec.inspect.TupleType):
        return all(_immutable(one, seen) for one in found.item_types)
    if isinstance(found, (msgspec.inspect.VarTupleType, msgspec.inspect.FrozenSetType)):
        return _immutable(found.item_type, seen)
    if isinstance(found, msgspec.inspect.CustomType):
        numpy = sys.modules.get("numpy")
        return numpy is not None and isinstance(found.cls, type) and issubclass(found.cls, numpy.ndarray)
    return isinstance(found, _IMMUTABLE)


_IMMUTABLE: Final = (
    msgspec.inspect.NoneType,
    msgspec.inspect.BoolType,
    msgspec.inspect.IntType,
    msgspec.inspect.FloatType,
    msgspec.inspect.StrType,
    msgspec.inspect.BytesType,
    msgspec.inspect.DateTimeType,
    msgspec.inspect.TimeType,
    msgspec.inspect.DateType,
    msgspec.inspect.TimeDeltaType,
    msgspec.inspect.UUIDType,
    msgspec.inspect.DecimalType,
    msgspec.inspect.EnumType,
    msgspec.inspect.LiteralType,
)

_ENCODER: Final = msgspec.msgpack.Encoder(enc_hook=_encode_hook)
encode_raw: Final[Callable[[Any], bytes]] = _ENCODER.encode
"""Encode without translating errors: for our own structs, on the hot path."""


UNSENDABLE: Final = (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError)
"""What an encoder may raise on a value that cannot be sent."""


def encode(value: Any, what: str) -> bytes:
    """The value as bytes. ``what`` names it in the error. Raises `BadMessage` for a value that cannot be sent."""
    try:
        return _ENCODER.encode(value)
    except UNSENDABLE as error:
        raise BadMessage(f"{what}: {error}") from None


@lru_cache(maxsize=4096)
def decoder(kind: Any, borrowed: bool = False) -> msgspec.msgpack.Decoder[Any]:
    """A decoder into a type. ``borrowed``: arrays are read-only and share the bytes. It raises one of `ERRORS`."""
    return msgspec.msgpack.Decoder(kind, dec_hook=_decode_hook, ext_hook=_borrowed if borrowed else owned_array)


ERRORS: Final = (
    msgspec.MsgspecError,
    ValueError,
    TypeError,
    UnicodeDecodeError,
    RecursionError,
    OverflowError,
    struct.error,
    MemoryError,
)
"""What a decoder may raise on bytes that do not fit, a hook's own errors included."""


def decode(data: bytes, kind: Any, what: str) -> Any:
    """The value from bytes. ``what`` names it in the error. Raises `BadMessage`, naming the field that does not fit."""
    return decode_by(lambda some: decoder(kind).decode(some), data, what)


def decode_by(decode: Callable[[bytes], Any], data: bytes, what: str) -> Any:
    """`decode`, for who keeps the decoder of a type."""
    try:
        return decode(data)
    except ERRORS as error:
        raise BadMessage(f"{what}: {error}") from None


def to_builtins(data: bytes) -> Any:
    """Decoded without a type, for people to read: structs become dicts, arrays lists. Raises `BadMessage`."""
    try:
        return msgspec.to_builtins(decode(data, Any, "value"), enc_hook=_plain)
    except ERRORS as error:
        raise BadMessage(f"value: {error}") from None


def _plain(value: Any) -> Any:
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic)):
        return value.tolist()
    return str(value)


def seal(body: bytes) -> bytes:
    """A record's bytes with their checksum (CRC-32, 4 bytes) behind them."""
    return body + _SUM.pack(crc32(body))


def unseal(payload: bytes, what: str) -> memoryview:
    """A record's bytes without their checksum. Raises `DataLoss` where it does not agree."""
    view = memoryview(payload)
    if len(view) < 4 or _SUM.unpack_from(view, len(view) - 4)[0] != crc32(view[:-4]):
        raise DataLoss(f"{what}: the checksum does not agree with the {len(view)} bytes stored")
    return view[:-4]
