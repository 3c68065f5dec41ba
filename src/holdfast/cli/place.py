"""Where a command connects to: what it was told, else what `holdfast up` left in the working
directory.

Whoever can write that file decides where commands go, and with them a password. A repository that
was cloned, or a directory that others write to, may bring one. So it counts only if it is this
user's alone; and if a command has secrets to show, it goes only to servers that the user named, or
confirmed once.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from holdfast import files
from holdfast.cli.printing import problems
from holdfast.engines.nats.urls import shown
from holdfast.errors import ConfigError

DIRECTORY: Final = Path(".holdfast")
WHERE_FILE: Final = "cluster.json"
"""In its directory `holdfast up` leaves the URLs of its servers, for the commands that are run next
to it."""

_SECRETS: Final = (
    "HOLDFAST_PASSWORD_FILE",
    "HOLDFAST_USER",
    "HOLDFAST_TLS_KEY",
    "HOLDFAST_TLS_CERT",
    "HOLDFAST_TLS_CA",
)
_HOW: Final = (
    "Give --at local:FILE or --at nats://HOST:PORT, set HOLDFAST_AT, or start `holdfast up` here"
)


def where(at: str) -> list[str]:
    """The URLs to join. Raises `ConfigError` if nothing is said, and nothing is found that
    counts."""
    if at:
        return [at]
    path = DIRECTORY / WHERE_FILE
    try:
        why = doubt(path)
        urls = [] if why else msgspec.json.decode(files.read_own(path), type=list[str])
    except OSError:
        raise ConfigError(f"where? {_HOW}") from None
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{path} cannot be read ({error}): give --at URL") from None
    if why:
        raise ConfigError(f"where? {path} does not count, as {why}. {_HOW}")
    if any(os.environ.get(name) for name in _SECRETS):
        _confirm(path, urls)
    return urls


def doubt(path: Path) -> str:
    """Why a file may have been written by somebody else; empty if it was not. Raises `OSError`."""
    if not hasattr(os, "geteuid"):
        return ""
    for one in (path.parent, path):
        found = one.lstat()
        if stat.S_ISLNK(found.st_mode):
            return f"{one} is a symbolic link"
        if found.st_uid != os.geteuid():
            return f"{one} belongs to another user"
        if stat.S_IMODE(found.st_mode) & 0o022:
            return f"others may write to {one}: `chmod go-w {one}`"
    return ""


# What was confirmed -------------------------------------------------------------------------------


def _memory() -> Path:
    home = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(home) / "holdfast" / "confirmed.json"


def _confirmed() -> dict[str, list[str]]:
    path = _memory()
    try:
        return (
            {}
            if doubt(path)
            else msgspec.json.decode(files.read_own(path), type=dict[str, list[str]])
        )
    except (OSError, msgspec.MsgspecError):
        return {}


def keep_confirmed(path: Path, urls: Sequence[str]) -> None:
    """Note that this user means these servers by this file. If that cannot be noted, the next
    command asks again."""
    known = {**_confirmed(), str(path.absolute()): list(urls)}
    there = {
        name: some
        for name, some in known.items()
        if Path(name).exists() or name == str(path.absolute())
    }
    try:
        files.make_directory(_memory().parent)
        files.write_private(_memory(), msgspec.json.encode(there).decode())
    except OSError:
        pass


def _confirm(path: Path, urls: list[str]) -> None:
    if _confirmed().get(str(path.absolute())) == urls:
        return
    text = f"{path} names {shown(urls)}, and this command has a password or certificates to show"
    if not (sys.stdin.isatty() and problems.is_terminal):
        raise ConfigError(
            f"{text}. Name the servers with --at URL or HOLDFAST_AT, or run the command once in a "
            "terminal to confirm them"
        )
    problems.print(f"{text}. Are these your servers? [y/N] ", end="")
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise ConfigError("nothing was sent: name the servers with --at URL")
    keep_confirmed(path, urls)
