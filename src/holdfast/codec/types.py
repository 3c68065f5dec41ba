"""What can be said of a type before any of its values: read once, when a class is defined.

Whether its values may hold arrays, or moments with an offset, or run code of users', or lose
something on their way through bytes: where none of these can be, the hot path does none of the work
that they need.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import Any, Final, get_origin

import msgspec
import msgspec.inspect as inspect

from holdfast.codec import arrays, models

CLOSED: Final = 0
"""What decodes is what was encoded."""
COUNTED: Final = 1
"""… if there are as many items: two may have become one."""
OPEN: Final = 2
"""A value may hold what its type does not know."""

_MOMENTS: Final = (inspect.DateTimeType,)
_CODELESS: Final = (
    inspect.NoneType,
    inspect.BoolType,
    inspect.IntType,
    inspect.FloatType,
    inspect.StrType,
    inspect.BytesType,
    inspect.ByteArrayType,
    inspect.MemoryViewType,
    inspect.LiteralType,
    inspect.UnionType,
    inspect.Metadata,
    inspect.ListType,
    inspect.SetType,
    inspect.FrozenSetType,
    inspect.TupleType,
    inspect.VarTupleType,
    inspect.DictType,
)
"""What is encoded and decoded without code of users'. A date may have a time zone of theirs."""
_FIELDS: Final = (
    inspect.StructType,
    inspect.DataclassType,
    inspect.TypedDictType,
    inspect.NamedTupleType,
)


class Traits(msgspec.Struct, frozen=True):
    """See the module. ``moments``, ``arrays``, ``anything``: whether a value may hold some, or what
    has no type at all. ``attributes``: whether an object in it may have some beside its fields.
    ``loss``: what may be lost, at most."""

    moments: bool
    arrays: bool
    anything: bool
    attributes: bool
    loss: int


@lru_cache(maxsize=4096)
def of(kind: Any) -> Traits:
    """The traits of a type. Raises `TypeError` for one that cannot be stored or sent, naming what
    is in the way."""
    found = inspect.type_info(kind)
    names = set[str]()
    _collect(found, names, set())
    return Traits(
        "moments" in names,
        "arrays" in names,
        "anything" in names,
        "attributes" in names,
        loss_of(found),
    )


def runs_code(kind: Any) -> bool:
    """Whether code of users' may run where a value of a type is encoded or decoded."""
    found = inspect.type_info(kind)
    if not isinstance(found, inspect.StructType):
        return not _codeless(found)
    if hasattr(found.cls, "__post_init__"):
        return True
    makers = {field.default_factory for field in found.fields} - {
        msgspec.NODEFAULT,
        list,
        dict,
        set,
        bytearray,
    }
    return bool(makers) or not all(_codeless(field.type) for field in found.fields)


def _codeless(found: inspect.Type) -> bool:
    return isinstance(found, _CODELESS) and all(map(_codeless, parts_of(found)))


def fields_of(found: inspect.Type) -> tuple[inspect.Field, ...]:
    """The fields of a type that has some."""
    return found.fields if isinstance(found, _FIELDS) else ()


def class_of(found: Any) -> Any:
    """The class of a type with fields, also of a generic one that was given its arguments."""
    return get_origin(found.cls) or found.cls


def has_attributes(cls: type) -> bool:
    """Whether an object of a class may have attributes beside its fields."""
    return bool(cls.__dictoffset__)


def parts_of(found: inspect.Type) -> list[inspect.Type]:
    """The types of what a value of a type holds."""
    if isinstance(found, _FIELDS):
        return [field.type for field in found.fields]
    if isinstance(found, inspect.UnionType):
        return list(found.types)
    if isinstance(found, inspect.TupleType):
        return list(found.item_types)
    if isinstance(found, inspect.DictType):
        return [found.key_type, found.value_type]
    if isinstance(found, inspect.Metadata):
        return [found.type]
    item = getattr(found, "item_type", None)
    return [] if item is None else [item]


def _collect(found: inspect.Type, names: set[str], seen: set[int]) -> None:
    if id(found) in seen:
        return
    seen.add(id(found))
    if isinstance(found, _MOMENTS):
        names.add("moments")
    elif isinstance(found, inspect.AnyType) or getattr(found, "cls", None) is object:
        names.update(("moments", "arrays", "anything", "attributes"))
    elif isinstance(found, inspect.CustomType):
        names.update(
            ("arrays",) if arrays.is_array_type(found.cls) else ("moments", "arrays", "attributes")
        )
        _check_custom(found.cls)
    elif isinstance(found, (inspect.StructType, inspect.DataclassType)) and has_attributes(
        class_of(found)
    ):
        names.add("attributes")
    for field in fields_of(found):
        _check_default(found, field)
    for part in parts_of(found):
        _collect(part, names, seen)


def _check_custom(cls: Any) -> None:
    if cls is object or arrays.is_array_type(cls) or models.is_model_type(cls):
        return
    raise TypeError(unsupported(cls))


def unsupported(cls: type) -> str:
    """Why values of a class cannot be stored or sent, and what to do."""
    hint = getattr(
        cls, "__holdfast_hint__", "use a dataclass, a msgspec.Struct or a pydantic model"
    )
    return f"values of type {cls.__qualname__} cannot be stored or sent: {hint}"


def _check_default(found: Any, field: inspect.Field) -> None:
    where = f"{found.cls.__qualname__}.{field.name}"
    if isinstance(field.default, dataclasses.Field):
        raise TypeError(
            f"{where} has a dataclasses.field as its default: write msgspec.field(...) in a struct"
        )


def loss_of(found: inspect.Type) -> int:
    """What values of a type may lose, at most."""
    if isinstance(found, (inspect.AnyType, *_FIELDS)):
        return OPEN
    if isinstance(found, inspect.CustomType):
        return CLOSED if arrays.is_array_type(found.cls) else OPEN
    worst = max(map(loss_of, parts_of(found)), default=CLOSED)
    if isinstance(found, (inspect.UnionType, inspect.Metadata)):
        return worst
    if worst != CLOSED:
        return OPEN
    return (
        COUNTED
        if isinstance(found, (inspect.DictType, inspect.SetType, inspect.FrozenSetType))
        else CLOSED
    )


def is_float(found: inspect.Type) -> bool:
    """Whether a whole number becomes a float where a type is declared."""
    if isinstance(found, (inspect.UnionType, inspect.Metadata)):
        return any(map(is_float, parts_of(found)))
    return isinstance(found, inspect.FloatType) or getattr(found, "cls", None) in arrays.floats()


def holds_floats(found: inspect.Type) -> bool:
    """Whether a value of a type without fields may be a collection in which whole numbers become
    floats."""
    if isinstance(found, (inspect.UnionType, inspect.Metadata)):
        return any(map(holds_floats, parts_of(found)))
    return any(is_float(part) or holds_floats(part) for part in parts_of(found))
