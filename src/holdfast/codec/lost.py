"""Where a value lost something on its way through bytes: it is compared with what they gave back,
item by item.

What was lost is told from a mere change of form (a tuple that comes back as a list, a whole number
where a float is declared). Two things stand between a value and its likeness. A ``__post_init__``
makes of the fields what it likes: so an object of such a class is decoded once more as one without
it, and compared with that. A set has no order: so each of its items is decoded once more by itself.
That two items are equal says nothing, unless they are plain: an author's ``__eq__`` may compare
only ids.
"""

from __future__ import annotations

import enum
import numbers
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final, get_type_hints

import msgspec

from holdfast import codec
from holdfast.codec import arrays, models, objects

FEWER: Final = "some of its items become one"
_NOT_DECLARED: Final = "its declared type does not have that field"
_ROUNDED: Final = "a float does not have all the digits of this whole number"
_MANY: Final = (list, tuple, set, frozenset)


def lost(live: Any, kept: Any) -> str:
    """Where below a value something was lost, and why, as ``.field: why``; empty where nothing
    was."""
    cls: Any = type(kept)
    if type(live) is cls and cls in objects.PLAIN:
        return ""
    if _is_rounded(live, kept):
        return f": {_ROUNDED}"
    if isinstance(live, _MANY) and isinstance(kept, _MANY):
        return "" if _equal(live, kept) else _of_items(live, kept)
    if isinstance(live, Mapping) and isinstance(kept, Mapping):
        return "" if _equal(live, kept) else _of_mapping(live, kept)
    if extra := objects.beside(live, kept):
        return f".{extra}: {_NOT_DECLARED}"
    fields, keeps = objects.fields_of(live), objects.fields_of(kept)
    if objects.derives(cls):
        same, kept = _as_given(live, cls)
        if same:
            return ""
        keeps = objects.fields_of(kept)
    if fields is not None and isinstance(kept, (list, tuple)):
        return (
            ""
            if models.is_model_type(type(live))
            else _of_items(list(fields.values()), kept[_tags(live) :])
        )
    if keeps is not None and isinstance(live, _MANY):
        return _of_row(live, kept, keeps)
    if fields is not None or (keeps is not None and isinstance(live, Mapping)):
        return _of_fields(
            live, live if fields is None else fields, kept, kept if keeps is None else keeps
        )
    return ""


def _is_rounded(live: Any, kept: Any) -> bool:
    """Whether a whole number became a float that is another number."""
    floats: Any = (float, *arrays.floats())
    if type(live) is type(kept) or not isinstance(kept, floats):
        return False
    whole = live.value if isinstance(live, enum.Enum) else live
    return isinstance(whole, numbers.Integral) and int(kept) != int(whole)


def _equal(live: Any, kept: Any) -> bool:
    """Whether two collections are seen to be the same at once, as large sets are that only have
    another order."""
    try:
        return type(live) is type(kept) and objects.is_plain(live) and bool(live == kept)
    except Exception:  # such as of a decimal that signals
        return False


def _of_items(live: Any, kept: Any) -> str:
    if len(live) != len(kept):
        return f": {FEWER}"
    if isinstance(kept, (set, frozenset)):
        return _of_set(live, kept)
    plain = objects.PLAIN
    for place, (one, other) in enumerate(zip(live, kept, strict=True)):
        if (type(one) is not type(other) or type(one) not in plain) and (text := lost(one, other)):
            return f"[{place}]{text}"
    return ""


def _of_mapping(live: Mapping[Any, Any], kept: Mapping[Any, Any]) -> str:
    if len(live) != len(kept):
        return f": {FEWER}"
    for (key, one), (name, other) in zip(live.items(), kept.items(), strict=True):
        if text := lost(key, name) or lost(one, other):
            return f"[{key!r:.40}]{text}"
    return ""


def _of_fields(live: Any, fields: Mapping[Any, Any], kept: Any, found: Any) -> str:
    if not isinstance(found, Mapping):  # a model of one value, under `Any`
        return ""
    tag = getattr(getattr(kept, "__struct_config__", None), "tag_field", None)
    config = getattr(live, "__struct_config__", None)
    omits = found is kept and config is not None and config.omit_defaults
    for name, value in fields.items():
        if name in found:
            if text := lost(value, found[name]):
                return f".{name}{text}"
        elif name != tag and value is not msgspec.UNSET and not omits:
            return f".{name}: {_NOT_DECLARED}"
    return ""


def _of_row(live: Any, kept: Any, keeps: dict[str, Any]) -> str:
    """What a list or a tuple loses as a struct that is one in bytes."""
    items, names = list(live)[_tags(kept) :], list(keeps)
    if len(items) > len(names):
        return f"[{_tags(kept) + len(names)}]: {_NOT_DECLARED}"
    return next(
        (
            f".{name}{text}"
            for name, one in zip(names, items, strict=False)
            if (text := lost(one, keeps[name]))
        ),
        "",
    )


def _tags(value: Any) -> int:
    """How many items of an object's row are none of its fields."""
    config = getattr(value, "__struct_config__", None)
    return int(config is not None and config.array_like and config.tag is not None)


# Objects that make something else of their fields -------------------------------------------------


def _as_given(live: Any, cls: type) -> tuple[bool, Any]:
    """A value decoded as an object that leaves its fields as they are; and whether that is seen to
    be all there is."""
    twin = _without_code(cls)
    encode = codec.encoder(twin)
    data = encode(live)
    kept = codec.decoder(twin).decode(data)
    return encode(kept) == data and not objects.any_beside(live), kept


@lru_cache(maxsize=1024)
def _without_code(cls: Any) -> Any:
    """A struct with the fields of a class, and no code of its own."""
    config: dict[str, Any] = {}
    if issubclass(cls, msgspec.Struct):
        own = cls.__struct_config__
        fields = [
            (field.name, field.type, field.encode_name) for field in msgspec.structs.fields(cls)
        ]
        config = {"array_like": own.array_like, "tag_field": own.tag_field, "tag": own.tag}
    else:
        hints = get_type_hints(cls, include_extras=True)
        fields = [(name, hints[name], name) for name in objects.names_of(cls) or ()]
    made = [
        (name, kind, msgspec.field(name=encoded, default=msgspec.UNSET))
        for name, kind, encoded in fields
    ]
    return msgspec.defstruct(cls.__name__, made, kw_only=True, module=cls.__module__, **config)


# Sets ---------------------------------------------------------------------------------------------


def _of_set(live: Iterable[Any], kept: Any) -> str:
    rest = [one for one in live if not (type(one) in objects.PLAIN and one in kept)]
    types = dict.fromkeys(map(_type_of, kept)) if rest else {}
    for one in rest:
        if text := lost(one, _counterpart(one, types, kept)):
            return f"[...]{text}"
    return ""


def _counterpart(one: Any, types: Iterable[Any], kept: Any) -> Any:
    """What an item became: what its bytes give as one of the types that are in the set. The item
    itself if nothing is found."""
    for found in types:
        try:
            other = codec.decoder(found).decode(codec.encoder(found)(one))
            if other in kept:
                return other
        except Exception:  # not of this type
            continue
    return one


def _type_of(one: Any) -> Any:
    """The type that an item of a set is of, with those of what it holds."""
    if type(one) is not tuple:
        return type(one)
    types = tuple(map(_type_of, one))
    return tuple[types[0], ...] if len(set(types)) == 1 else tuple[types]  # type: ignore[valid-type]
