"""Messages whose items all have one hash: a set of 20,000 of them keeps a process busy for ten
seconds.

Python's hashes of text are secret, and its hashes of numbers collide too little to harm. But the
hashes of `Decimal`, `UUID`, tuples and structs are public and can be aimed at, so a sender may
choose items that all fall together. Before a large message of such a type is decoded, the hashes of
its large sets and dicts are counted. That costs as much as decoding, so it is done for these types
only, and only where the bytes hold a large collection at all.
"""

from __future__ import annotations

import decimal
import struct
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import msgspec
import msgspec.inspect as inspect

from holdfast import limits
from holdfast.codec import moments, types

_U16: Final = struct.Struct(">H")
_U32: Final = struct.Struct(">I")
_LARGE: Final = ((b"\xdc", _U16, 1), (b"\xdd", _U32, 1), (b"\xde", _U16, 2), (b"\xdf", _U32, 2))
"""What a large array, or map, begins with; the reader of its count; values for each of its
items."""

_AIMED_AT: Final = (
    inspect.DecimalType,
    inspect.UUIDType,
    inspect.TupleType,
    inspect.VarTupleType,
    inspect.FrozenSetType,
    inspect.StructType,
    inspect.DataclassType,
    inspect.NamedTupleType,
    inspect.AnyType,
    inspect.CustomType,
)
_SETS: Final = (inspect.SetType, inspect.FrozenSetType)


def guarded(kind: Any, decode: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The decoder of a type, which looks at large messages first if somebody may have chosen their
    hashes."""
    found = inspect.type_info(kind)
    if not _is_open(found, set()):
        return decode

    def decode_guarded(data: Any) -> Any:
        if len(data) > limits.COLLISIONS_MAX * 2 and _has_large(bytes(data)):
            _check(found, bytes(data))
        return decode(data)

    return decode_guarded


def _is_open(found: inspect.Type, seen: set[int]) -> bool:
    if id(found) in seen:
        return False
    seen.add(id(found))
    if isinstance(found, inspect.AnyType) or getattr(found, "cls", None) is object:
        return True
    return _is_aimed_at(_hashed(found)) or any(
        _is_open(part, seen) for part in types.parts_of(found)
    )


def _hashed(found: inspect.Type) -> inspect.Type | None:
    """The type of what a set holds, or of a dict's keys."""
    if isinstance(found, inspect.DictType):
        return found.key_type
    return found.item_type if isinstance(found, _SETS) else None


def _is_aimed_at(found: inspect.Type | None) -> bool:
    if isinstance(found, (inspect.UnionType, inspect.Metadata)):
        return any(map(_is_aimed_at, types.parts_of(found)))
    return isinstance(found, _AIMED_AT)


def _has_large(data: bytes) -> bool:
    """Whether the bytes may hold a collection of more items than may collide."""
    for first, count, width in _LARGE:
        place = data.find(first)
        while 0 <= place < len(data) - count.size:
            (items,) = count.unpack_from(data, place + 1)
            if items > limits.COLLISIONS_MAX and items * width < len(data) - place:
                return True
            place = data.find(first, place + 1)
    return False


def _check(found: inspect.Type, data: bytes) -> None:
    """Raise `ValueError` where too many items of one collection have one hash."""
    try:
        _end(data, 0)  # dicts with tuples as keys, before they are decoded even without a type
    except (IndexError, KeyError):
        return  # it does not decode either
    raw = msgspec.msgpack.decode(data, ext_hook=lambda _code, _data: None)
    for hashes in _collections(found, raw):
        _count(hashes)


def _count(hashes: Iterable[int]) -> None:
    most = Counter(hashes).most_common(1)
    if most and most[0][1] > limits.COLLISIONS_MAX:
        raise ValueError(f"{most[0][1]} items of one set or dict have the same hash")


def _collections(found: inspect.Type, raw: Any) -> Iterator[list[int]]:
    """The hashes of each large set and dict whose items may be aimed at."""
    found = moments.within(found, raw)
    hashed = _hashed(found)
    if _is_aimed_at(hashed) and len(raw) > limits.COLLISIONS_MAX:
        assert hashed is not None
        yield [_hash(hashed, item) for item in raw]
    if isinstance(raw, dict):
        fields = {field.encode_name: field.type for field in types.fields_of(found)}
        value_type = getattr(found, "value_type", moments.ANY)
        for key, value in raw.items():
            yield from _collections(fields.get(key, value_type), value)
    elif isinstance(raw, list):
        if isinstance(found, inspect.StructType):
            kinds = [field.type for field in found.fields]
            kinds += [moments.ANY] * (len(raw) - len(kinds))
        else:
            kinds = moments.item_types(found, len(raw))
        for value, kind in zip(raw, kinds, strict=False):
            if isinstance(value, (list, dict)):
                yield from _collections(kind, value)


def _hash(found: inspect.Type, raw: Any) -> int:
    """The hash of an item once it is decoded, or one that collides as that does."""
    if isinstance(raw, str):
        choices = types.parts_of(found) if isinstance(found, inspect.UnionType) else [found]
        try:
            if any(isinstance(one, inspect.DecimalType) for one in choices):
                return hash(decimal.Decimal(raw))
            if any(isinstance(one, inspect.UUIDType) for one in choices):
                return hash(uuid.UUID(raw))
        except (ValueError, decimal.InvalidOperation):
            return 0  # it does not decode either
        return hash(raw)
    found = moments.within(found, raw)
    if isinstance(raw, dict):
        kinds = {field.encode_name: field.type for field in types.fields_of(found)}
        return hash(tuple(_hash(kinds.get(key, moments.ANY), value) for key, value in raw.items()))
    if isinstance(raw, (list, tuple)):
        kinds_of = [field.type for field in types.fields_of(found)] or moments.item_types(
            found, len(raw)
        )
        hashes = [_hash(kind, value) for kind, value in zip(kinds_of, raw, strict=False)]
        return (
            hash(frozenset(hashes))
            if isinstance(found, inspect.FrozenSetType)
            else hash(tuple(hashes))
        )
    return hash(raw)


# The bytes themselves -----------------------------------------------------------------------------

_FIXED: Final = {
    0xC0: 1,
    0xC2: 1,
    0xC3: 1,
    0xCA: 5,
    0xCB: 9,
    0xCC: 2,
    0xCD: 3,
    0xCE: 5,
    0xCF: 9,
    0xD0: 2,
    0xD1: 3,
    0xD2: 5,
    0xD3: 9,
    0xD4: 3,
    0xD5: 4,
    0xD6: 6,
    0xD7: 10,
    0xD8: 18,
}
_SIZED: Final = {
    0xC4: (1, 2), 0xD9: (1, 2), 0xC5: (2, 3), 0xDA: (2, 3), 0xC6: (4, 5), 0xDB: (4, 5),
    0xC7: (1, 3), 0xC8: (2, 4), 0xC9: (4, 6),
}  # fmt: skip
"""By the first byte: how many bytes say the length, and what comes beside the content."""

_HOLDERS: Final = {0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}


def _end(data: bytes, place: int) -> int:
    """Where the value at a place ends. Raises `ValueError` for a dict with too many arrays of one
    hash as keys."""
    first = data[place]
    if first <= 0x7F or first >= 0xE0:
        return place + 1
    if 0xA0 <= first <= 0xBF:
        return place + 1 + (first & 31)
    if first in _FIXED:
        return place + _FIXED[first]
    if first in _SIZED:
        size, beside = _SIZED[first]
        return place + beside + int.from_bytes(data[place + 1 : place + 1 + size])
    if first <= 0x9F:
        count, place, is_map = first & 15, place + 1, first <= 0x8F
    else:
        size, is_map = _HOLDERS[first], first >= 0xDE
        count, place = int.from_bytes(data[place + 1 : place + 1 + size]), place + 1 + size
    large = is_map and count > limits.COLLISIONS_MAX
    hashes: list[int] = []
    for _ in range(count):
        start, place = place, _end(data, place)
        if large and (data[start] & 0xF0 == 0x90 or data[start] in (0xDC, 0xDD)):
            hashes.append(_hash(moments.ANY, msgspec.msgpack.decode(data[start:place])))
        if is_map:
            place = _end(data, place)
    _count(hashes)
    return place
