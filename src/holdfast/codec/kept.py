"""What a value would lose on its way through bytes.

A type decodes only what it declares. An object of a derived class where its base is declared loses
the fields that it adds; so does a dict where a struct is declared, and a set that was given as a
list loses what it holds twice. Decoding says nothing of it. So a value that was encoded and decoded
is compared with the one before: by the bytes, which is cheap and nearly always enough, and item by
item where they differ (`lost`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec
import msgspec.inspect as inspect

from holdfast import codec
from holdfast.codec import arrays, models, moments, objects, types
from holdfast.codec.lost import FEWER, lost


class Losses:
    """See the module. ``exact``: the type of a value of which only what is counted can be lost;
    ``always``: see `find`."""

    def __init__(self, kind: Any) -> None:
        found = inspect.type_info(kind)
        traits = types.of(kind)
        self._encode = codec.encoder(kind)
        self._arrays = traits.arrays
        self._attributes = traits.attributes
        self._counted: list[str] = []
        self._floats: list[str] = []
        self._holds_floats: list[str] = []
        self._root_counted = self._root_floats = False
        self.exact: Any = NOTHING
        if isinstance(found, inspect.StructType) and not types.has_attributes(
            types.class_of(found)
        ):
            kinds = {field.name: field.type for field in found.fields}
            worst = {name: types.loss_of(one) for name, one in kinds.items()}
            if types.OPEN not in worst.values():
                self.exact = types.class_of(found)
                self._counted = [name for name, loss in worst.items() if loss == types.COUNTED]
                self._floats = [name for name, one in kinds.items() if types.is_float(one)]
                self._holds_floats = [
                    name for name, one in kinds.items() if types.holds_floats(one)
                ]
        elif types.loss_of(found) != types.OPEN:
            self.exact = _class_of(found)
            self._root_counted = types.loss_of(found) == types.COUNTED
            self._root_floats = types.holds_floats(found)
        looked_at = (
            self._counted
            or self._floats
            or self._holds_floats
            or self._root_counted
            or self._root_floats
        )
        self.always = self.exact is NOTHING or bool(looked_at)
        """Whether each value has to be looked at; else only one that is not of the exact type."""

    def find(self, live: Any, data: bytes, kept: Any) -> str:
        """What would be lost of a value, and why; empty where nothing is. ``data``: its bytes,
        ``kept``: what they give."""
        if type(live) is self.exact:
            return self._find_exact(live, kept)
        if not ((self._attributes or hasattr(live, "__dict__")) and objects.any_beside(live)):
            if self._arrays and arrays.numpy_or_none() is not None:
                # arrays are exact, and may be large
                same = codec.encode_outline(live) == codec.encode_outline(kept)
            else:
                same = self._encode(kept) == data
            if same:
                return ""
        text = lost(live, kept)
        return text and f"${text}"

    def _find_exact(self, live: Any, kept: Any) -> str:
        if self._root_counted and len(live) != len(kept):
            return f"$: {FEWER}"
        if self._root_floats and (text := _rounded(live, kept)):
            return f"${text}"
        for name in self._counted:
            one, other = getattr(live, name), getattr(kept, name)
            if (
                isinstance(other, _COUNTED)
                and isinstance(one, objects.COLLECTIONS)
                and len(one) != len(other)
            ):
                return f"$.{name}: {FEWER}"
        for name in self._floats:
            one, other = getattr(live, name), getattr(kept, name)
            if type(one) is not type(other) and (text := lost(one, other)):
                return f"$.{name}{text}"
        for name in self._holds_floats:
            if text := _rounded(getattr(live, name), getattr(kept, name)):
                return f"$.{name}{text}"
        return ""


_COUNTED: Final = (dict, set, frozenset)


def _rounded(live: Any, kept: Any) -> str:
    """Where a whole number was rounded: a float that was one has other bytes."""
    if kept is None or kept is msgspec.UNSET:
        return ""
    return "" if codec.encode_raw(live) == codec.encode_raw(kept) else lost(live, kept)


class NOTHING:
    """The type of no value."""


def _class_of(found: inspect.Type) -> Any:
    """The class of all values of a type that is not a struct, where there is one."""
    names = {
        inspect.DictType: dict,
        inspect.SetType: set,
        inspect.FrozenSetType: frozenset,
        inspect.ListType: list,
        inspect.IntType: int,
        inspect.FloatType: float,
        inspect.StrType: str,
        inspect.BytesType: bytes,
        inspect.NoneType: type(None),
        inspect.BoolType: bool,
    }
    return names.get(type(found), NOTHING)


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
    if isinstance(value, (list, tuple, set, frozenset)):
        return [(f"[{place}]", one) for place, one in enumerate(value)]
    return [(f".{name}", one) for name, one in (objects.fields_of(value) or {}).items()]


# Stored values that a type no longer has ----------------------------------------------------------


def unknown_fields(kind: Any, data: bytes) -> list[str]:
    """The fields that stored bytes hold a value of, and their type does not have: where they are,
    each once."""
    raw = msgspec.msgpack.decode(data, ext_hook=codec.own_extension)
    found: dict[str, None] = {}
    _unknown(inspect.type_info(kind), raw, "$", found)
    return list(found)


def unknown_at_top(kind: Any, data: bytes) -> list[str]:
    """`unknown_fields` for a type that holds no others with fields: nothing but what has no field
    is decoded."""
    if not issubclass(kind, msgspec.Struct):
        return []
    if kind.__struct_config__.array_like:
        return unknown_fields(kind, data)
    known = {*kind.__struct_encode_fields__, kind.__struct_config__.tag_field}
    stored = _decode_names(data)
    return [
        f"$.{name}"
        for name in stored
        if name not in known and not _empty(_decode_any(stored[name]))
    ]


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
            fields = {
                name: _type_of(annotation) for name, annotation in models.declared(kind.cls).items()
            }
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
    return next(
        (one for one in structs if one.tag is not None and raw.get(one.tag_field) == one.tag), None
    )


def _empty(value: Any) -> bool:
    return (
        value is None
        or value is False
        or (hasattr(value, "__len__") and len(value) == 0)
        or value == 0
    )
