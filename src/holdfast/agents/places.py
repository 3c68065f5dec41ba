"""Where an error came from, for people: file, line and function of users' code, and a traceback of
bounded length.

Python's own traceback shows absolute paths, copies texts of any size, and runs code of users' again
(``__str__``, ``__dir__``). This one shows a path from where Python imports, is cut, and asks
nothing of the error but its text, with care.
"""

from __future__ import annotations

import linecache
import sys
import sysconfig
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Final

from holdfast import errors, limits

_PACKAGE: Final = Path(__file__).parents[1]
_LIBRARIES: Final = tuple(
    path
    for name in ("stdlib", "platstdlib", "purelib", "platlib")
    if (path := sysconfig.get_path(name))
)
_DOOR: Final = str(Path(__file__).with_name("guard.py"))
"""Through which all that code is entered: of no interest to anybody."""

_FRAMES_MAX: Final = 24
_CHAIN_MAX: Final = 4
"""Errors of one traceback: those that it was raised from, and those of a group."""
_LINE_MAX: Final = 160


@lru_cache(maxsize=1024)
def short(path: str) -> str:
    """A file's path from where Python imports it, so that it is the same wherever the program
    lies."""
    try:
        roots = {
            str(_PACKAGE.parent),
            *_LIBRARIES,
            *(root or str(Path.cwd()) for root in sys.path),
            str(Path.cwd()),
        }
    except OSError:  # there is no working directory any more
        roots = {str(_PACKAGE.parent), *_LIBRARIES, *(root for root in sys.path if root)}
    root = max(
        (root for root in roots if path.startswith(root.rstrip("/") + "/")), key=len, default=""
    )
    if root:
        return path[len(root.rstrip("/")) + 1 :]
    return path if path.startswith("<") else Path(path).name


@lru_cache(maxsize=1024)
def is_ours(path: str) -> bool:
    """Whether a file is of Holdfast itself. What it tests and measures with stands for users'
    code."""
    inner = path.removeprefix(f"{_PACKAGE}/")
    return inner != path and not inner.startswith(("testing/", "bench/"))


@lru_cache(maxsize=1024)
def is_users(path: str) -> bool:
    """Whether a file is of a user's: not of Holdfast, nor of a library, nor made at run time as a
    dataclass makes methods."""
    if path.startswith("<"):
        return path.startswith(("<stdin>", "<ipython-input", "<doctest"))
    return not is_ours(path) and not path.startswith(_LIBRARIES)


def _steps(error: BaseException) -> list[tuple[str, int, str]]:
    """File, line and function from the outermost frame that is not ours to the innermost, the
    middle of many left out."""
    found: list[tuple[str, int, str]] = []
    place: TracebackType | None = error.__traceback__
    while place is not None:
        code = place.tb_frame.f_code
        if (found or not is_ours(code.co_filename)) and code.co_filename != _DOOR:
            found.append((code.co_filename, place.tb_lineno or 0, code.co_name))
            if len(found) > _FRAMES_MAX:
                del found[_FRAMES_MAX // 2]
        place = place.tb_next
    return found


def of(error: BaseException) -> str:
    """``file:line`` of the innermost line of a user's, else of any; empty where nothing is
    known."""
    steps = _steps(error)
    inner = next(
        (step for step in reversed(steps) if is_users(step[0])), steps[-1] if steps else None
    )
    if inner is None:  # Python made it of another, as it does of a `StopIteration`
        return (
            ""
            if error.__cause__ is None or error.__cause__.__cause__ is not None
            else of(error.__cause__)
        )
    return f"{short(inner[0])}:{inner[1]}"


def traceback_of(error: BaseException) -> str:
    """The error's traceback, with those that it came from, the last `limits.ERROR_DETAILS_MAX`
    characters of it."""
    parts: list[str] = []
    for some, how in _chain(error):
        lines = [f"{how}Traceback (most recent call last):" if how or some.__traceback__ else ""]
        for path, line, name in _steps(some):
            lines.append(f'  File "{short(path)}", line {line}, in {name}')
            if code := linecache.getline(path, line).strip():
                lines.append(f"    {code[:_LINE_MAX]}")
        title, text = errors.class_of(some), errors.text_of(some)
        lines.append(f"{title}: {text}" if text else title)
        lines += [errors.plain(note) for note in _notes(some)]
        parts.append("\n".join(line for line in lines if line))
    return errors.plain("\n\n".join(parts))[-limits.ERROR_DETAILS_MAX :]


def _chain(error: BaseException) -> Iterator[tuple[BaseException, str]]:
    """The errors to show, the first cause first, and what stands before each."""
    found: list[tuple[BaseException, str]] = []
    some: BaseException | None = error
    seen: set[int] = set()
    while some is not None and id(some) not in seen and len(found) < _CHAIN_MAX:
        seen.add(id(some))
        found.append((some, ""))
        some = some.__cause__ or (None if some.__suppress_context__ else some.__context__)
    yield from reversed(found)
    if isinstance(error, BaseExceptionGroup):
        for number, one in enumerate(error.exceptions[:_CHAIN_MAX], 1):
            yield one, f"{number} of {len(error.exceptions)}: "


def _notes(error: BaseException) -> list[str]:
    notes = (
        getattr(error, "__notes__", None) if not isinstance(error, errors.HoldfastError) else None
    )
    return (
        [note for note in notes[:_CHAIN_MAX] if isinstance(note, str)]
        if isinstance(notes, list)
        else []
    )
