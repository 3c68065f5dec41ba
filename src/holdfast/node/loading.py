"""Find the agent classes of an application: ``app.py``, ``package.module``, or either with
``:ClassA,ClassB`` behind it."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from holdfast.agents import places
from holdfast.agents.agent import Agent
from holdfast.errors import ConfigError
from holdfast.serving.workers.modules import load_file

_IMPORTS: Final = (importlib.__file__, "<frozen importlib")
_FRAMES_MAX: Final = 20
_CHAIN_MAX: Final = 20


def load_module(app: str) -> ModuleType:
    """Import an application by path or by name.

    Raises `ConfigError` where there is none, or its import fails; the application's own traceback
    is a note on it.
    """
    where, _, _ = _split(app)
    try:
        if where.endswith(".py"):
            return _load_file(Path(where))
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        return importlib.import_module(where)
    except (Exception, SystemExit) as error:
        raise _explained(app, where, error) from error


def _explained(app: str, where: str, error: BaseException) -> ConfigError:
    """What became of an import, with the frames of the application's own code."""
    lines = _own_traceback(error)
    if isinstance(error, ConfigError):
        told = ConfigError(str(error))
    elif isinstance(error, ModuleNotFoundError) and f"{where}.".startswith(f"{error.name}."):
        told = ConfigError(
            f"{app!r}: {error}. Name a file (app.py) or a module that can be imported"
        )
    elif isinstance(error, SystemExit):
        told = ConfigError(
            f"importing {app!r} ended the program (SystemExit: {error}): put that behind a "
            "`__main__` guard"
        )
    else:
        told = ConfigError(f"importing {app!r} failed: {type(error).__name__}: {error}")
    if lines:
        told.add_note(lines)
    return told


def _own_traceback(error: BaseException) -> str:
    """The traceback without our frames and those of imports; empty where no other is left."""
    found = traceback.TracebackException.from_exception(error)
    chain, one = [found], found
    while (following := one.__cause__ or one.__context__) is not None and len(chain) < _CHAIN_MAX:
        one = following
        chain.append(one)
    for one in chain:
        own = (frame for frame in one.stack if not places.is_ours(frame.filename))
        kept = [frame for frame in own if not frame.filename.startswith(_IMPORTS)]
        one.stack = traceback.StackSummary.from_list(kept[-_FRAMES_MAX:])
    is_own = found.stack or isinstance(error, SyntaxError)
    return "".join(found.format()).rstrip() if is_own else ""


def _load_file(path: Path) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    return load_file(path)


def load_agents(app: str) -> list[type[Agent[Any]]]:
    """The agent classes that an application names, or all that its module defines. Raises
    `ConfigError`."""
    where, colon, names = _split(app)
    module = load_module(app)
    if colon:
        found = [getattr(module, name.strip(), None) for name in names.split(",")]
        for name, cls in zip(names.split(","), found, strict=True):
            if not _is_agent(cls):
                raise ConfigError(f"{where} has no agent class {name.strip()!r}")
    else:
        found = [
            cls
            for cls in vars(module).values()
            if _is_agent(cls) and cls.__module__ == module.__name__
        ]
        if not found:
            raise ConfigError(
                f"{where} defines no agent class: write class MyAgent(Agent[MyState])"
            )
    return [cls for cls in found if cls is not None]


def _split(app: str) -> tuple[str, str, str]:
    where, colon, names = app.rpartition(":")
    return (where, colon, names) if colon else (names, "", "")


def _is_agent(cls: Any) -> bool:
    return isinstance(cls, type) and issubclass(cls, Agent) and "__kind__" in vars(cls)
