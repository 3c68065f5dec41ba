"""One form for all values that mean the same: to tell whether two messages under one id are the
same message.

The bytes do not tell. A set has another order in every process, a dict the order in which it was
filled, and a whole number may stand where a float is declared. So what was decoded is encoded
again, with all that has no order sorted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
import msgspec.inspect as inspect

from holdfast import codec
from holdfast.codec import objects, types

_EXACT: Final = 2**53
_ONE_FORM: Final = (
    inspect.NoneType,
    inspect.BoolType,
    inspect.IntType,
    inspect.StrType,
    inspect.BytesType,
    inspect.EnumType,
    inspect.LiteralType,
)
"""Types whose values have one encoding each."""

_OF_ONE_FORM: Final = (
    inspect.ListType,
    inspect.VarTupleType,
    inspect.TupleType,
    inspect.UnionType,
    inspect.Metadata,
)
"""… if what they hold has."""

_in_order: Final[Callable[[Any], bytes]] = msgspec.msgpack.Encoder(
    enc_hook=codec.encode_hook, order="deterministic"
).encode


def has_one_form(kind: Any) -> bool:
    """Whether equal values of a type are always the same bytes."""
    return _has_one_form(inspect.type_info(kind))


def _has_one_form(found: inspect.Type) -> bool:
    if isinstance(found, _OF_ONE_FORM):
        return all(map(_has_one_form, types.parts_of(found)))
    return isinstance(found, _ONE_FORM)


def canonical(value: Any, anything: bool) -> bytes:
    """The bytes of a decoded value, which are those of every value that equals it. ``anything``: it
    may hold what is not typed, so that a whole number may be there as a float."""
    if not anything:
        try:
            return _in_order(value)
        except TypeError:  # keys that are no text, or a set of what cannot be compared
            pass
    return codec.encode_raw(_ordered(value))


def _ordered(value: Any) -> Any:
    if type(value) is float and value.is_integer() and abs(value) < _EXACT:
        return int(value)
    if isinstance(value, Mapping):
        return sorted(
            [codec.encode_raw(_ordered(key)), codec.encode_raw(_ordered(one))]
            for key, one in value.items()
        )
    if isinstance(value, (set, frozenset)):
        return sorted(codec.encode_raw(_ordered(one)) for one in value)
    if isinstance(value, (list, tuple)):
        return [_ordered(one) for one in value]
    fields = objects.fields_of(value)
    return value if fields is None else [_ordered(one) for one in fields.values()]
