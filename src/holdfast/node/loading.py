"""Find the agent classes of an application: ``app.py``, ``package.module``, or either with ``:ClassA,ClassB`` behind it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from holdfast.agents.agent import Agent
from holdfast.agents.modules import load_file
from holdfast.errors import ConfigError


def load_module(app: str) -> ModuleType:
    """Import an application by path or by name. Raises `ConfigError` where there is none, or its import fails."""
    where, _, _ = _split(app)
    try:
        if where.endswith(".py"):
            return _load_file(Path(where))
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        return importlib.import_module(where)
    except ConfigError:
        raise
    except ModuleNotFoundError as error:
        raise ConfigError(f"{app!r}: {error}. Name a file (app.py) or a module that can be imported") from error
    except Exception as error:
        raise ConfigError(f"importing {app!r} failed: {type(error).__name__}: {error}") from error


def _load_file(path: Path) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    return load_file(path)


def load_agents(app: str) -> list[type[Agent[Any]]]:
    """The agent classes that an application names, or all that its module defines. Raises `ConfigError`."""
    where, colon, names = _split(app)
    module = load_module(app)
    if colon:
        found = [getattr(module, name.strip(), None) for name in names.split(",")]
        for name, cls in zip(names.split(","), found, strict=True):
            if not _is_agent(cls):
                raise ConfigError(f"{where} has no agent class {name.strip()!r}")
    else:
        found = [cls for cls in vars(module).values() if _is_agent(cls) and cls.__module__ == module.__name__]
        if not found:
            raise ConfigError(f"{where} defines no agent class: write class MyAgent(Agent[MyState])")
    return [cls for cls in found if cls is not None]


def _split(app: str) -> tuple[str, str, str]:
    where, colon, names = app.rpartition(":")
    return (where, colon, names) if colon else (names, "", "")


def _is_agent(cls: Any) -> bool:
    return isinstance(cls, type) and issubclass(cls, Agent) and "__kind__" in vars(cls)
