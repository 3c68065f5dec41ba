"""Conditions on metadata: a dotted path, an operator and a value. Whatever is stored, a condition
never raises.

A path that leads nowhere fits no operator but ``ne`` and ``not_in``; values that cannot be compared
do not fit.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from holdfast.errors import BadMessage

_MISSING: Final = object()
_OPERATORS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "gt": operator.gt,
    "lt": operator.lt,
    "ge": operator.ge,
    "le": operator.le,
    "in": lambda found, wanted: found in wanted,
    "not_in": lambda found, wanted: found not in wanted,
}


class Where(NamedTuple):
    """A condition such as ``Where("region.name", "in", ["eu", "us"])``.

    ``operator`` is one of ``eq ne gt lt ge le in not_in``. Lists are walked by their index:
    ``"gpus.0.memory"``.
    """

    path: str
    operator: str
    value: Any


Condition = Where | tuple[str, str, Any]


def compile_conditions(conditions: Iterable[Condition]) -> Callable[[Mapping[str, Any]], bool]:
    """One function that tells whether metadata fit all the conditions. Raises `BadMessage` for a
    bad condition."""
    checks: list[tuple[list[str], str, Callable[[Any, Any], bool], Any]] = []
    for condition in conditions:
        if not isinstance(condition, tuple) or len(condition) != 3:
            raise BadMessage(
                f'{condition!r} is no condition: write ("path", "eq", value) or Where("path", '
                '"eq", value)'
            )
        path, name, value = condition
        if not isinstance(path, str) or not path:
            raise BadMessage(f'{path!r} is no path into metadata: write "name" or "outer.inner"')
        if name not in _OPERATORS:
            raise BadMessage(f"{name!r} is no operator: use one of {' '.join(_OPERATORS)}")
        if name in ("in", "not_in") and not isinstance(value, (list, tuple, set, frozenset)):
            raise BadMessage(f"{name} needs a list of values, not {value!r}")
        checks.append((path.split("."), name, _OPERATORS[name], value))

    def fits(metadata: Mapping[str, Any]) -> bool:
        return all(
            _fits(_find(metadata, path), name, check, value) for path, name, check, value in checks
        )

    return fits


def _fits(found: Any, name: str, check: Callable[[Any, Any], bool], wanted: Any) -> bool:
    if found is _MISSING:
        return name in ("ne", "not_in")
    try:
        return bool(check(found, wanted))
    except (TypeError, ValueError):  # what cannot be compared or hashed
        return name in ("ne", "not_in")


def _find(metadata: Any, path: list[str]) -> Any:
    here = metadata
    for token in path:
        if isinstance(here, Mapping):
            here = here.get(token, _MISSING)
        elif isinstance(here, list) and token.isdecimal() and int(token) < len(here):
            here = here[int(token)]
        else:
            return _MISSING
    return here
