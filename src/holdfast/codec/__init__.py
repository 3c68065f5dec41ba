"""How values become bytes: msgpack through msgspec, numpy arrays as an extension type, and a
checksum on every record.

Never pickle: bytes from another process are decoded into declared types only. Decoded *state* owns
its arrays and may change them; decoded *views* borrow the bytes and are read-only. What a value
cannot be, it is refused for: `arrays`, `models` and `moments` see to that what comes back is what
was given.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, get_origin
from zlib import crc32

import msgspec
import msgspec.inspect

from holdfast.codec import arrays, flooding, models, moments, types
from holdfast.errors import BadMessage, DataLoss

_ARRAY: Final = 1
_SUM: Final = struct.Struct("<I")


def encode_hook(value: Any) -> Any:
    """What stands for a value that msgpack does not know. Raises `TypeError`."""
    numpy = arrays.numpy_or_none()
    if numpy is not None:
        if isinstance(value, numpy.generic):
            if (plain := arrays.plain_scalar(value)) is not None:
                return plain
            value = numpy.asarray(value)
        if isinstance(value, numpy.ndarray):
            return msgspec.msgpack.Ext(_ARRAY, arrays.to_bytes(value))
    if models.is_model_type(type(value)):
        return moments.spelled_out(models.plain(value, _through), moments.ANY)
    raise TypeError(types.unsupported(type(value)))


def _through(value: Any) -> Any:
    """Plain data as it arrives."""
    return msgspec.msgpack.decode(
        encode_raw(moments.spelled_out(value, moments.ANY)), ext_hook=own_extension
    )


def _outline_hook(value: Any) -> Any:
    numpy = arrays.numpy_or_none()
    if numpy is not None and isinstance(value, numpy.ndarray):
        return arrays.head_of(value)
    return encode_hook(value)


def own_extension(code: int, data: memoryview) -> Any:
    """An extension value, an array as one of its own: the hook of decoders. Raises `ValueError`."""
    if code == _ARRAY:
        return arrays.from_bytes(data, own=True)
    if code == moments.MOMENT:
        return moments.from_bytes(data)
    raise ValueError(f"unknown extension type {code}")


def _borrowed_extension(code: int, data: memoryview) -> Any:
    return arrays.from_bytes(data, own=False) if code == _ARRAY else own_extension(code, data)


def _decode_hook(wanted: Any, value: Any) -> Any:
    numpy = arrays.numpy_or_none()
    base = get_origin(wanted) or wanted
    if numpy is not None and isinstance(base, type):
        if issubclass(base, numpy.ndarray):
            return arrays.typed(wanted, value)
        if issubclass(base, numpy.generic):
            return arrays.scalar(base, value)
    if models.is_model_type(base):
        return models.from_plain(base, value)
    if isinstance(base, type) and isinstance(value, base):
        return value
    raise TypeError(
        f"Expected `{getattr(base, '__qualname__', base)}`, got `{type(value).__qualname__}`"
    )


def is_immutable(kind: Any) -> bool:
    """Whether no value of a type, decoded with borrowed arrays, can be changed: then many may share
    it."""
    return _immutable(msgspec.inspect.type_info(kind), set())


def _immutable(found: Any, seen: set[type]) -> bool:
    if isinstance(found, msgspec.inspect.StructType):
        if found.cls in seen:
            return True
        seen.add(found.cls)
        return found.cls.__struct_config__.frozen and all(
            _immutable(field.type, seen) for field in found.fields
        )
    if isinstance(found, msgspec.inspect.UnionType):
        return all(_immutable(one, seen) for one in found.types)
    if isinstance(found, msgspec.inspect.TupleType):
        return all(_immutable(one, seen) for one in found.item_types)
    if isinstance(found, (msgspec.inspect.VarTupleType, msgspec.inspect.FrozenSetType)):
        return _immutable(found.item_type, seen)
    if isinstance(found, msgspec.inspect.CustomType):
        return arrays.is_array_type(found.cls)
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

_ENCODER: Final = msgspec.msgpack.Encoder(enc_hook=encode_hook)
encode_raw: Final[Callable[[Any], bytes]] = _ENCODER.encode
"""Encode without translating errors: for our own structs, on the hot path."""

encode_outline: Final[Callable[[Any], bytes]] = msgspec.msgpack.Encoder(
    enc_hook=_outline_hook
).encode
"""Encode of arrays the dtype and the shape alone: to compare values whose arrays are known to be
the same."""


def encoder(kind: Any) -> Callable[[Any], bytes]:
    """What encodes values of a type; it raises one of `UNSENDABLE`. Raises `TypeError` for a type
    that cannot be sent."""
    if not types.of(kind).moments:
        return encode_raw
    return moments.encoder_of(msgspec.inspect.type_info(kind), encode_raw)


encode_any: Final = encoder(Any)

UNSENDABLE: Final = (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError)
"""What an encoder may raise on a value that cannot be sent."""


def encode(value: Any, what: str) -> bytes:
    """The value as bytes. ``what`` names it in the error. Raises `BadMessage` for a value that
    cannot be sent."""
    try:
        return encode_any(value)
    except UNSENDABLE as error:
        raise BadMessage(f"{what}: {error}") from None


@lru_cache(maxsize=4096)
def decoder(kind: Any, borrowed: bool = False) -> msgspec.msgpack.Decoder[Any]:
    """A decoder into a type. ``borrowed``: arrays are read-only and share the bytes. It raises one
    of `ERRORS`."""
    return msgspec.msgpack.Decoder(
        kind, dec_hook=_decode_hook, ext_hook=_borrowed_extension if borrowed else own_extension
    )


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
    """The value from bytes. ``what`` names it in the error. Raises `BadMessage`, naming the field
    that does not fit."""
    return decode_by(lambda some: decoder(kind).decode(some), data, what)


def decode_by(decode: Callable[[bytes], Any], data: bytes, what: str) -> Any:
    """`decode`, for who keeps the decoder of a type."""
    try:
        return decode(data)
    except ERRORS as error:
        raise BadMessage(f"{what}: {error}") from None


_decode_any: Final = flooding.guarded(Any, decoder(Any).decode)


def to_builtins(data: bytes) -> Any:
    """Decoded without a type, for people to read: structs become dicts, arrays lists. Raises
    `BadMessage`."""
    try:
        return msgspec.to_builtins(_decode_any(data), enc_hook=_plain)
    except ERRORS as error:
        raise BadMessage(f"value: {error}") from None


def _plain(value: Any) -> Any:
    if not arrays.is_array_type(type(value)):
        return str(value)
    # rows without items take no bytes, but each would be a list
    return value.tolist() if value.size else []


def seal(body: bytes) -> bytes:
    """A record's bytes with their checksum (CRC-32, 4 bytes) behind them."""
    return body + _SUM.pack(crc32(body))


def unseal(payload: bytes, what: str) -> memoryview:
    """A record's bytes without their checksum. Raises `DataLoss` where it does not agree."""
    view = memoryview(payload)
    if len(view) < 4 or _SUM.unpack_from(view, len(view) - 4)[0] != crc32(view[:-4]):
        raise DataLoss(f"{what}: the checksum does not agree with the {len(view)} bytes stored")
    return view[:-4]
