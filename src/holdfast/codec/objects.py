"""Objects with fields: structs, dataclasses, attrs classes, models. What their fields are, and what
they hold beside them.

Only fields travel. An attribute that was set beside them is in no bytes, so comparing bytes does
not show it, and to look at each object costs more than to encode it. So objects are looked at by
classes, a level at a time, without a line of Python for each; and only where a type says that there
may be objects which can have such attributes (`types.Traits.attributes`).
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import types as python
import uuid
from collections.abc import Iterable
from functools import lru_cache
from inspect import getattr_static
from itertools import chain
from operator import attrgetter
from typing import Any, Final

import msgspec
import msgspec.inspect as inspect

from holdfast.codec import models, types

PLAIN: Final = frozenset(
    {
        int,
        float,
        bool,
        str,
        bytes,
        type(None),
        datetime.datetime,
        datetime.date,
        datetime.time,
        datetime.timedelta,
        decimal.Decimal,
        uuid.UUID,
    }
)
"""Classes whose values hold nothing, and are the same if they are equal."""
COLLECTIONS: Final = (dict, list, tuple, set, frozenset)


@lru_cache(maxsize=4096)
def names_of(cls: Any) -> tuple[str, ...] | None:
    """The names of a class's fields; None where it has none, or is a model."""
    if issubclass(cls, msgspec.Struct):
        return tuple(cls.__struct_fields__)
    if dataclasses.is_dataclass(cls):
        return tuple(field.name for field in dataclasses.fields(cls))
    if hasattr(cls, "__attrs_attrs__"):
        return tuple(field.name for field in cls.__attrs_attrs__)
    return None


def fields_of(value: Any) -> dict[str, Any] | None:
    """An object's fields as they are encoded; None where it has none."""
    cls: Any = type(value)
    if models.is_model_type(cls):
        return models.fields(value)
    names = names_of(cls)
    if names is None:
        return None
    encoded = cls.__struct_encode_fields__ if issubclass(cls, msgspec.Struct) else names
    return {other: getattr(value, name, None) for other, name in zip(encoded, names, strict=True)}


def derives(cls: Any) -> bool:
    """Whether objects of a class make something of their fields when they are made."""
    return names_of(cls) is not None and (
        hasattr(cls, "__post_init__") or hasattr(cls, "__attrs_post_init__")
    )


def beside(live: Any, kept: Any) -> str:
    """An attribute that was set on an object beside its fields, and is not on what was kept of
    it."""
    cls: Any = type(live)
    names = names_of(cls)
    if names is None or not hasattr(live, "__dict__") or (derives(cls) and isinstance(kept, dict)):
        return ""
    there = {*names, *getattr(kept, "__dict__", ())}
    return next(
        (name for name in vars(live) if name not in there and not _is_derived(cls, name)), ""
    )


def _is_derived(cls: type, name: str) -> bool:
    """Whether an attribute is not what an author set: one of Python's own, or what a cached
    property computed."""
    if name.startswith("__") and name.endswith("__"):
        return True
    found = getattr_static(cls, name, None)
    return (
        hasattr(found, "__get__")
        and not hasattr(found, "__set__")
        and not isinstance(found, python.FunctionType)
    )


def any_beside(value: Any) -> bool:
    """Whether an object in a value may have attributes beside its fields."""
    level = [value]
    while level:
        below: list[Any] = []
        classes: set[Any] = set(map(type, level))
        for cls in classes - PLAIN:
            ones = level if len(classes) == 1 else [one for one in level if type(one) is cls]
            if issubclass(cls, COLLECTIONS):
                below.extend(_items(cls, ones))
            elif models.is_model_type(cls):
                below.extend(chain.from_iterable(models.fields(one).values() for one in ones))
            elif names_of(cls) is not None:
                names, inner, has_dict = _shape(cls)
                if has_dict and any(
                    not _is_derived(cls, name) for name in _attributes(ones) - names
                ):
                    return True
                try:
                    for name in inner:
                        below.extend(map(attrgetter(name), ones))
                except AttributeError:  # a field that has no value
                    return True
        level = below
    return False


def _attributes(ones: list[Any]) -> set[str]:
    return set[str]().union(*map(vars, ones))


def _items(cls: type, ones: list[Any]) -> Iterable[Any]:
    items = chain.from_iterable(ones)
    return (
        chain(items, chain.from_iterable(map(dict.values, ones)))
        if issubclass(cls, dict)
        else items
    )


@lru_cache(maxsize=4096)
def _shape(cls: Any) -> tuple[frozenset[str], tuple[str, ...], bool]:
    """The fields of a class; those that may hold objects; and whether its objects have attributes
    at all."""
    names = names_of(cls) or ()
    try:
        found = {field.name: field.type for field in types.fields_of(inspect.type_info(cls))}
    except Exception:  # what is stored under `Any` may be annotated with anything
        found = {}
    inner = tuple(
        name for name in names if name not in found or types.loss_of(found[name]) == types.OPEN
    )
    return frozenset(names), inner, types.has_attributes(cls)


def is_plain(value: Any) -> bool:
    """Whether collections hold nothing but plain scalars, at any depth: then they are the same if
    they are equal."""
    level = [value]
    while level:
        below: list[Any] = []
        classes: set[Any] = set(map(type, level))
        for cls in classes - PLAIN:
            if cls not in COLLECTIONS:
                return False
            ones = level if len(classes) == 1 else [one for one in level if type(one) is cls]
            below.extend(_items(cls, ones))
        level = below
    return True
