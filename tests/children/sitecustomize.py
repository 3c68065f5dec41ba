"""What a Python that a test starts does first: it is as patient as the tests themselves
(`tests.patience`).

It changes bounds when their modules are imported, and imports nothing itself. `tests/conftest.py`
puts this directory into ``PYTHONPATH``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_PATIENT_SECONDS = 240.0
_BOUNDS = {
    "holdfast.limits": ["ASK_TIMEOUT_SECONDS", "JOIN_SECONDS", "FOUND_SECONDS"],
    "holdfast.testing.chaos.run": ["_SETTLE_SECONDS"],
}


class _Patient(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        names = _BOUNDS.get(fullname)
        spec = PathFinder.find_spec(fullname, path, target) if names else None
        if names and spec is not None and spec.loader is not None:
            _extend(spec.loader, names)
        return spec


def _extend(loader: Loader, names: list[str]) -> None:
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        execute(module)
        for name in names:
            assert name in vars(module), f"{module.__name__} has no {name}"
            setattr(module, name, _PATIENT_SECONDS)

    loader.exec_module = exec_module  # type: ignore[method-assign]


sys.meta_path.insert(0, _Patient())
