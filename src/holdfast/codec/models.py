"""Pydantic models as values: a model travels as the plain data of its fields, and is validated
where it arrives.

pydantic is not a dependency: only a process that has loaded it can have a model. What a model's
dump leaves out (a subclass's fields under a field of its base, an excluded field, a secret) would
be lost in silence, so each model is read back before it is sent, and one that does not come back
equal is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final

_WAYS: Final = (("python", True), ("python", False), ("json", True), ("json", False))
"""How a model is dumped, and whether by its aliases; the first way that brings back an equal model
is taken."""


def is_model_type(kind: Any) -> bool:
    """Whether a class is a pydantic model."""
    pydantic = sys.modules.get("pydantic")
    if pydantic is None or not isinstance(kind, type) or not issubclass(kind, pydantic.BaseModel):
        return False
    return hasattr(kind, "model_validate")  # not so before its version 2


def plain(model: Any, through: Callable[[Any], Any]) -> Any:
    """A model as plain data. ``through``: to bytes and back, without a type. Raises `TypeError`
    where a field would be lost."""
    why = "it cannot be read back"
    for mode, by_alias in _WAYS:
        try:
            dump = model.model_dump(mode=mode, by_alias=by_alias, round_trip=True, warnings=False)
            again = from_plain(type(model), through(dump))
        except Exception as error:  # a model's validators are its author's
            why = f"{type(error).__name__}: {str(error)[:300]}"
            continue
        if (field := _difference(model, again)) is None:
            return dump
        why = f"its field {field!r} is lost or changed"
    raise TypeError(f"a {type(model).__qualname__} would not come back as it is: {why}")


def from_plain(kind: Any, value: Any) -> Any:
    """The model from plain data. Raises what its validators raise."""
    return kind.model_validate(value, strict=False)


def declared(kind: Any) -> dict[str, Any]:
    """The fields that a model's class reads, by each of their names, with their annotations."""
    found = {}
    for name, field in kind.model_fields.items():
        aliases = (field.alias, field.validation_alias, field.serialization_alias)
        found.update({one: field.annotation for one in (name, *aliases) if isinstance(one, str)})
    return found


def keeps_extra(kind: Any) -> bool:
    """Whether a model keeps what it has no field for."""
    return bool(kind.model_config.get("extra") == "allow")


def fields(model: Any) -> dict[str, Any]:
    """A model's fields, and what it holds beyond them. What its cached properties computed is
    neither."""
    known = type(model).model_fields
    own = {name: value for name, value in model.__dict__.items() if name in known}
    return {**own, **(model.__pydantic_extra__ or {})}


def _difference(one: Any, other: Any) -> str | None:
    """The first field in which two models differ."""
    left, right = fields(one), fields(other)
    for name in left | right:
        if name not in left or name not in right or not _equal(left[name], right[name]):
            return name
    return None


def _equal(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if hasattr(one, "tobytes"):
        return bool(
            one.dtype == other.dtype
            and one.shape == other.shape
            and one.tobytes() == other.tobytes()
        )
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            _equal(value, other[key]) for key, value in one.items()
        )
    if is_model_type(type(one)):
        return _difference(one, other) is None
    if (offset := getattr(one, "utcoffset", None)) is not None and offset() != other.utcoffset():
        return False
    return bool(one == other or (one != one and other != other))
