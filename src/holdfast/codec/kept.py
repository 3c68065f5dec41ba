"""What a value would lose on its way through bytes.

A type decodes only what it declares. An object of a derived class where its base is declared loses the fields that it
adds; so does a dict where a struct is declared, and a set that was given as a list loses what it holds twice. Decoding
says nothing of it. So a value that was encoded and decoded is compared with the one before: by the bytes, which is
cheap and nearly always enough, and item by item where they differ, to tell a loss from a mere change of form (a tuple that
comes back as a list, a whole number where a float is declared).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec
import msgspec.inspect as inspect

from holdfast import codec
from holdfast.codec import arrays, models, moments, types

_NOT_DECLARED: Final = "its declared type does not have that field"
_FEWER: Final = "some of its items become one"
_ROUNDED: Final = "a float does not have all the digits of this whole number"


class Losses:
    """See the module. ``exact``: the type of a value of which only what is counted can be lost; ``always``: see `find`."""

    def __init__(self, kind: Any) -> None:
        found = inspect.type_info(kind)
        self._encode = codec.encoder(kind)
        self._arrays = types.of(kind).arrays
        self._counted: list[str] = []
        self._root_counted = False
        self._floats: list[str] = []
        self.exact: Any = NOTHING
        if isinstance(found, inspect.StructType) and not found.cls.__struct_config__.dict:
            worst = {field.name: types.loss_of(field.type) for field in found.fields}
            if types.OPEN not in worst.values():
                self.exact = found.cls
                self._counted = [name for name, loss in worst.items() if loss == types.COUNTED]
                self._floats = [field.name for field in found.fields if _is_float(field.type)]
        elif types.loss_of(found) != types.OPEN:
            self.exact = _class_of(found)
            self._root_counted = types.loss_of(found) == types.COUNTED
        self.always = self.exact is NOTHING or bool(self._counted or self._floats) or self._root_counted
        """Whether each value has to be looked at; else only one that is not of the exact type."""

    def find(self, live: Any, data: bytes, kept: Any) -> str:
        """What would be lost of a value, and why; empty where nothing is. ``data``: its bytes, ``kept``: what they give."""
        if type(live) is self.exact:
            if self._root_counted and len(live) != len(kept):
                return f"$: {_FEWER}"
            for name in self._counted:
                one, other = getattr(live, name), getattr(kept, name)
                if one is not None and len(one) != len(other):
                    return f"$.{name}: {_FEWER}"
            for name in self._floats:
                if _is_rounded(getattr(live, name), getattr(kept, name)):
                    return f"$.{name}: {_ROUNDED}"
            return ""
        if extra := _beyond_fields(live, kept):
            return f"$.{extra}: {_NOT_DECLARED}"
        if self._arrays and arrays.numpy_or_none() is not None:
            same = codec.encode_outline(live) == codec.encode_outline(kept)  # arrays are exact, and may be large
        else:
            same = self._encode(kept) == data
        return "" if same else _lost(live, kept, "$")


def _is_float(found: inspect.Type) -> bool:
    """Whether a whole number becomes a float in a field of a type."""
    if isinstance(found, (inspect.UnionType, inspect.Metadata)):
        return any(map(_is_float, types.parts_of(found)))
    return isinstance(found, inspect.FloatType)


def _is_rounded(live: Any, kept: Any) -> bool:
    return type(kept) is float and type(live) is int and kept != live


class NOTHING:
    """The type of no value."""


def _class_of(found: inspect.Type) -> Any:
    """The class of all values of a type that is not a struct, where there is one."""
    names = {
        inspect.DictType: dict, inspect.SetType: set, inspect.FrozenSetType: frozenset, inspect.ListType: list,
        inspect.IntType: int, inspect.FloatType: float, inspect.StrType: str, inspect.BytesType: bytes,
        inspect.NoneType: type(None), inspect.BoolType: bool,
    }  # fmt: skip
    return names.get(type(found), NOTHING)


def _beyond_fields(live: Any, kept: Any) -> str:
    """An attribute that was set on an object beside its fields."""
    if not hasattr(live, "__dict__") or fields_of(live) is None:
        return ""
    there = getattr(kept, "__dict__", {})
    return next((name for name in vars(live) if name not in there), "")


def fields_of(value: Any) -> dict[str, Any] | None:
    """An object's fields as they are encoded; None where it has none."""
    if isinstance(value, msgspec.Struct):
        names = zip(value.__struct_encode_fields__, value.__struct_fields__, strict=True)
        return {encoded: getattr(value, name) for encoded, name in names}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
    if models.is_model_type(type(value)):
        return models.fields(value)
    if hasattr(type(value), "__attrs_attrs__"):
        return {field.name: getattr(value, field.name, None) for field in type(value).__attrs_attrs__}
    return None


def _lost(live: Any, kept: Any, path: str) -> str:
    if _equal(live, kept):
        return ""
    if _is_rounded(live, kept):
        return f"{path}: {_ROUNDED}"
    fields, keeps = fields_of(live), fields_of(kept)
    if fields is not None and isinstance(kept, (list, tuple)):
        live, fields = list(fields.values()), None
    if fields is not None or (keeps is not None and isinstance(live, Mapping)):
        tag = getattr(getattr(kept, "__struct_config__", None), "tag_field", None)
        found = keeps if keeps is not None else kept
        for name, value in (live if fields is None else fields).items():
            if not isinstance(found, Mapping) or (name not in found and name != tag):
                return f"{path}.{name}: {_NOT_DECLARED}"
            # What `__post_init__` makes of the fields is its author's.
            if (
                name in found
                and not hasattr(type(kept), "__post_init__")
                and (text := _lost(value, found[name], f"{path}.{name}"))
            ):
                return text
        return ""
    if isinstance(live, Mapping) and isinstance(kept, Mapping):
        if len(live) != len(kept):
            return f"{path}: {_FEWER}"
        return _first(
            _lost(one, other, f"{path}[{key!r}]") for (key, one), other in zip(live.items(), kept.values(), strict=True)
        )
    if isinstance(live, _MANY) and isinstance(kept, _MANY):
        if len(live) != len(kept):
            return f"{path}: {_FEWER}"
        if isinstance(kept, (set, frozenset)):
            there = {type(one) for one in kept}
            odd = next((one for one in live if fields_of(one) is not None and type(one) not in there), None)
            return "" if odd is None else f"{path}: a {type(odd).__qualname__} is not of its declared type"
        return _first(_lost(one, other, f"{path}[{i}]") for i, (one, other) in enumerate(zip(live, kept, strict=True)))
    return ""


def _equal(live: Any, kept: Any) -> bool:
    """Whether two collections are seen to be equal at once, as large sets are that only have another order."""
    if type(live) is not type(kept) or not isinstance(live, (dict, *_MANY)):
        return False
    try:
        return bool(live == kept)
    except Exception:  # arrays are not simply equal, and an item's own code may raise
        return False


_MANY: Final = (list, tuple, set, frozenset)


def _first(texts: Iterable[str]) -> str:
    return next(filter(None, texts), "")


def unsendable(value: Any) -> str:
    """Where in a value the part is that cannot be encoded: ``$`` where it is the value itself."""
    path = "$"
    for _ in range(_DEPTH_MAX):
        for name, part in _parts(value):
            try:
                codec.encode_any(part)
            except Exception:  # whatever it was that encoding the whole raised
                path, value = f"{path}{name}", part
                break
        else:
            break
    return path


_DEPTH_MAX: Final = 64


def _parts(value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(f"[{key!r:.40}]", one) for key, one in value.items()]
    if isinstance(value, _MANY):
        return [(f"[{place}]", one) for place, one in enumerate(value)]
    return [(f".{name}", one) for name, one in (fields_of(value) or {}).items()]


# Stored values that a type no longer has ------------------------------------------------------------------------------


def unknown_fields(kind: Any, data: bytes) -> list[str]:
    """The fields that stored bytes hold a value of, and their type does not have: where they are, each once."""
    raw = msgspec.msgpack.decode(data, ext_hook=codec.own_extension)
    found: dict[str, None] = {}
    _unknown(inspect.type_info(kind), raw, "$", found)
    return list(found)


def unknown_at_top(kind: Any, data: bytes) -> list[str]:
    """`unknown_fields` for a type that holds no others with fields: nothing but what has no field is decoded."""
    if not issubclass(kind, msgspec.Struct):
        return []
    if kind.__struct_config__.array_like:
        return unknown_fields(kind, data)
    known = {*kind.__struct_encode_fields__, kind.__struct_config__.tag_field}
    stored = _decode_names(data)
    return [f"$.{name}" for name in stored if name not in known and not _empty(_decode_any(stored[name]))]


_decode_names: Final = msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode
_decode_any: Final = msgspec.msgpack.Decoder(ext_hook=codec.own_extension).decode


def _unknown(kind: inspect.Type, raw: Any, path: str, found: dict[str, None]) -> None:
    kind = _by_tag(kind, raw) or moments.within(kind, raw)
    closed = isinstance(kind, inspect.DictType) and types.loss_of(kind.value_type) == types.CLOSED
    if closed or isinstance(kind, inspect.AnyType):
        return
    if isinstance(raw, dict):
        fields = {field.encode_name: field.type for field in types.fields_of(kind)}
        if isinstance(kind, inspect.CustomType) and models.is_model_type(kind.cls):
            if models.keeps_extra(kind.cls):
                return
            fields = {name: _type_of(annotation) for name, annotation in models.declared(kind.cls).items()}
        tag = getattr(kind, "tag_field", None)
        for key, value in raw.items():
            if key in fields:
                _unknown(fields[key], value, f"{path}.{key}", found)
            elif isinstance(kind, inspect.DictType):
                _unknown(kind.value_type, value, f"{path}[...]", found)
            elif fields and key != tag and not _empty(value):
                found[f"{path}.{key}"] = None
    elif isinstance(raw, list):
        if isinstance(kind, inspect.StructType) and kind.array_like:
            items = [field.type for field in kind.fields]
            if any(not _empty(value) for value in raw[len(items) + (kind.tag is not None) :]):
                found[f"{path}[{len(items)}]"] = None
            return
        if types.loss_of(getattr(kind, "item_type", moments.ANY)) == types.CLOSED:
            return
        for value, item in zip(raw, moments.item_types(kind, len(raw)), strict=True):
            _unknown(item, value, f"{path}[...]", found)


def _type_of(annotation: Any) -> inspect.Type:
    try:
        return inspect.type_info(annotation)
    except Exception:  # what pydantic knows and msgspec does not
        return moments.ANY


def _by_tag(kind: inspect.Type, raw: Any) -> inspect.Type | None:
    """Of a union of tagged structs, the one that the stored tag names."""
    if not isinstance(kind, inspect.UnionType) or not isinstance(raw, dict):
        return None
    structs = (one for one in kind.types if isinstance(one, inspect.StructType))
    return next((one for one in structs if one.tag is not None and raw.get(one.tag_field) == one.tag), None)


def _empty(value: Any) -> bool:
    return value is None or value is False or (hasattr(value, "__len__") and len(value) == 0) or value == 0
