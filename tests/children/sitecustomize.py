"""What a Python that a test starts does first: it is as patient as the tests themselves
(`tests.patience`).

It changes bounds when their modules are imported, and imports no module of Holdfast itself.
`tests/conftest.py` puts this directory into ``PYTHONPATH``. A test that is about a bound gives that
bound itself, in the variable ``HOLDFAST_TESTS_BOUNDS``: MODULE:NAME=SECONDS, with spaces between
several.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_PATIENT_SECONDS = 240.0
_BOUNDS = {
    "holdfast.limits": ["ASK_TIMEOUT_SECONDS", "CONNECT_SECONDS", "JOIN_SECONDS", "FOUND_SECONDS"],
    "holdfast.node.node": ["Node.ready"],
    "holdfast.testing.chaos.run": ["_SETTLE_SECONDS"],
}
"""CLASS.METHOD stands for the one default of a method."""


def _seconds() -> dict[str, dict[str, float]]:
    """Each bound that is changed, by its module and its name."""
    found = {module: dict.fromkeys(names, _PATIENT_SECONDS) for module, names in _BOUNDS.items()}
    for given in os.environ.get("HOLDFAST_TESTS_BOUNDS", "").split():
        bound, _, seconds = given.partition("=")
        module, _, name = bound.partition(":")
        found.setdefault(module, {})[name] = float(seconds)
    return found


class _Patient(MetaPathFinder):
    def __init__(self) -> None:
        self._bounds = _seconds()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        bounds = self._bounds.get(fullname)
        spec = PathFinder.find_spec(fullname, path, target) if bounds else None
        if bounds and spec is not None and spec.loader is not None:
            _extend(spec.loader, bounds)
        return spec


def _extend(loader: Loader, bounds: dict[str, float]) -> None:
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        execute(module)
        for name, seconds in bounds.items():
            _change(module, name, seconds)

    loader.exec_module = exec_module  # type: ignore[method-assign]


def _change(module: ModuleType, name: str, seconds: float) -> None:
    first, _, method = name.partition(".")
    assert first in vars(module), f"{module.__name__} has no {first}"
    if not method:
        setattr(module, name, seconds)
        return
    function = getattr(vars(module)[first], method)
    assert len(function.__defaults__) == 1, f"{name} has not one default"
    function.__defaults__ = (seconds,)


sys.meta_path.insert(0, _Patient())
