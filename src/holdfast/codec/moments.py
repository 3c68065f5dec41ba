"""Moments with an offset: 10:00 at +02:00 comes back as that, and not as 08:00 UTC.

msgpack's own timestamp has no offset, and msgspec asks nobody before it writes one. So where a type
may hold a moment, and the bytes show a timestamp, the value is encoded a second time with its
offsets spelled out: as ISO 8601 text where the type says that a moment is there, as an extension
value where it does not.
"""

from __future__ import annotations

import copy
import datetime
from collections.abc import Callable
from typing import Any, Final

import msgspec
import msgspec.inspect as inspect

from holdfast.codec import objects

MOMENT: Final = 2
"""The code of the extension type."""

_TIMESTAMPS: Final = (b"\xd6\xff", b"\xd7\xff", b"\xc7\x0c\xff")
ANY: Final = inspect.AnyType()


def has_timestamps(data: bytes) -> bool:
    """Whether encoded bytes may hold a timestamp."""
    return any(mark in data for mark in _TIMESTAMPS)


def from_bytes(data: memoryview) -> datetime.datetime:
    """A moment from an extension value. Raises `ValueError`."""
    if len(data) > 40:
        raise ValueError("not a moment")
    return datetime.datetime.fromisoformat(str(data, "ascii"))


def _spell(value: datetime.datetime) -> str:
    offset = value.utcoffset()
    assert offset is not None
    if offset % datetime.timedelta(minutes=1):
        raise ValueError(
            f"the offset of {value.isoformat()} is not one of whole minutes: store it in UTC"
        )
    return value.isoformat()


def spelled_out(value: Any, kind: inspect.Type) -> Any:
    """The value, or a copy in which moments with an offset are spelled out, to be encoded. Raises
    `ValueError`."""
    if type(value) is datetime.datetime:
        if value.tzinfo is None or not value.utcoffset():
            return value
        text = _spell(value)
        return (
            text
            if isinstance(kind, inspect.DateTimeType)
            else msgspec.msgpack.Ext(MOMENT, text.encode())
        )
    if isinstance(value, dict):
        fields = {field.encode_name: field.type for field in getattr(kind, "fields", ())}
        of_key, of_value = getattr(kind, "key_type", ANY), getattr(kind, "value_type", ANY)
        # an extension value is no key
        keys = isinstance(within(of_key, datetime.datetime), inspect.DateTimeType)
        changed = {
            spelled_out(key, of_key) if keys else key: spelled_out(
                one, within(fields.get(key, of_value), one)
            )
            for key, one in value.items()
        }
        same = all(one is changed[key] for key, one in value.items() if key in changed) and len(
            changed
        ) == len(value)
        return value if same and not keys else changed
    if isinstance(value, (list, tuple, set, frozenset)):
        types = item_types(kind, len(value))
        items = [spelled_out(one, within(of, one)) for one, of in zip(value, types, strict=True)]
        return (
            items if any(new is not old for new, old in zip(items, value, strict=True)) else value
        )
    return _fields(value, kind)


def _fields(value: Any, kind: inspect.Type) -> Any:
    cls: Any = type(value)
    names = objects.names_of(cls)
    if names is None:
        return value
    change = (
        msgspec.structs.force_setattr if isinstance(value, msgspec.Struct) else object.__setattr__
    )
    types = {field.name: field.type for field in getattr(kind, "fields", ())}
    new: Any = None
    for name in names:
        old = getattr(value, name, None)
        found = spelled_out(old, within(types.get(name, ANY), old))
        if found is not old:
            new = copy.copy(value) if new is None else new
            change(new, name, found)
    return value if new is None else new


_HOLDERS: Final[tuple[tuple[Any, type | tuple[type, ...]], ...]] = (
    (dict, (inspect.DictType, inspect.TypedDictType, inspect.StructType, inspect.DataclassType)),
    (
        (list, tuple, set, frozenset),
        (
            inspect.ListType,
            inspect.SetType,
            inspect.FrozenSetType,
            inspect.VarTupleType,
            inspect.TupleType,
            inspect.NamedTupleType,
        ),
    ),
    ((msgspec.Struct,), (inspect.StructType,)),
)


def within(kind: inspect.Type, value: Any) -> inspect.Type:
    """Of a union, the type that a value is of; else the type itself."""
    if isinstance(kind, inspect.Metadata):
        kind = kind.type
    if not isinstance(kind, inspect.UnionType):
        return kind
    if value is datetime.datetime or type(value) is datetime.datetime:
        return next((one for one in kind.types if isinstance(one, inspect.DateTimeType)), ANY)
    exact = next((one for one in kind.types if getattr(one, "cls", None) is type(value)), None)
    if exact is not None:
        return exact
    for classes, types in _HOLDERS:
        if isinstance(value, classes):
            return next((one for one in kind.types if isinstance(one, types)), ANY)
    return next((one for one in kind.types if isinstance(one, inspect.DataclassType)), ANY)


def item_types(kind: inspect.Type, count: int) -> list[inspect.Type]:
    """The types of the items of a list, a set or a tuple."""
    if isinstance(kind, inspect.TupleType):
        types = list(kind.item_types)
    elif isinstance(kind, inspect.NamedTupleType):
        types = [field.type for field in kind.fields]
    else:
        return [getattr(kind, "item_type", ANY)] * count
    return (types + [ANY] * count)[:count]


def encoder_of(kind: inspect.Type, encode: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """An encoder of values of a type that may hold moments."""

    def encode_spelled(value: Any) -> bytes:
        data = encode(value)
        if not has_timestamps(data):
            return data
        return encode(spelled_out(value, within(kind, value)))

    return encode_spelled
