"""Where an agent's class lives, so that a worker process finds the very same one: by its file as
well as by its name.

A name alone is not enough. Two applications may both be called ``app.py``; a file may be called
like a module of the standard library; and the program's own module is ``__main__`` in one process
only.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NamedTuple

_MAIN: Final = "__main__"
_MAIN_ELSEWHERE: Final = "__mp_main__"
"""What a program's own file is called where it is imported: such programs know the name from
`multiprocessing`."""


class Place(NamedTuple):
    """Of a class. ``file`` is empty for a module that has none."""

    module: str
    file: str
    qualname: str


@lru_cache(1024)
def place_of(cls: type) -> Place:
    """Where a class was defined."""
    module = sys.modules.get(cls.__module__)
    file = getattr(module, "__file__", None) or ""
    name = cls.__module__
    spec = getattr(module, "__spec__", None)
    # python -m package.module
    if name == _MAIN and spec is not None and not spec.name.endswith(_MAIN):
        name = spec.name
    return Place(name, str(Path(file).resolve()) if file else "", cls.__qualname__)


@lru_cache(1024)
def find(place: Place) -> Any:
    """The class at a place. Raises `ImportError`, and whatever its module raises while it is
    imported."""
    found: Any = _module(place.module, place.file)
    for name in place.qualname.split("."):
        found = getattr(found, name, None)
        if found is None:
            raise ImportError(
                f"{place.module} ({place.file or 'without a file'}) has no {place.qualname}"
            )
    return found


def _module(name: str, file: str) -> ModuleType:
    if name == _MAIN:
        if not file:
            raise ImportError(
                "a class of a shell, notebook or -c command cannot be imported: put it into a file"
            )
        return _main(Path(file))
    known = sys.modules.get(name)
    if known is not None and (not file or _is_at(known, file)):
        return known
    if not file or _would_find(name) == file:
        return importlib.import_module(name)
    return load_file(Path(file))


def _main(path: Path) -> ModuleType:
    known = sys.modules.get(_MAIN_ELSEWHERE)
    if known is not None:
        return known
    module = _load(path, _MAIN_ELSEWHERE)
    sys.modules[_MAIN] = module
    return module


def _is_at(module: ModuleType, file: str) -> bool:
    there = getattr(module, "__file__", None)
    return there is not None and str(Path(there).resolve()) == file


def _would_find(name: str) -> str:
    """The file that an import of a name would load."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return ""
    return str(Path(spec.origin).resolve()) if spec is not None and spec.origin else ""


def load_file(path: Path) -> ModuleType:
    """Import a file as a module, once; its directory becomes one to import from. Raises whatever
    the import raises.

    It is called like the file, unless that is the name of another module.
    """
    path = path.resolve()
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    name = path.stem
    known = sys.modules.get(name)
    if known is not None and _is_at(known, str(path)):
        return known
    if known is not None or name in sys.stdlib_module_names:
        where = str(path).encode(errors="surrogateescape")
        name = f"{name}_{blake2b(where, digest_size=4).hexdigest()}"
        known = sys.modules.get(name)
        if known is not None:
            return known
    return _load(path, name)


def _load(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
