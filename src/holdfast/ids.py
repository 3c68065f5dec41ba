"""Names: how kinds, agents, shards and processes are written, and how they become subjects.

An agent's id is ``kind/name``. In a subject it must be one token, so the characters that a subject
cannot have are quoted as in a URL; quoting is reversible, and plain names stay readable.
"""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import blake2b
from typing import Final
from urllib.parse import quote, unquote
from zlib import crc32

from holdfast import chance, limits
from holdfast.errors import ConfigError, InvalidName

_KIND: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_MACHINE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,127}")
_INCARNATION: Final = re.compile(r"[A-Za-z0-9_-]{1,100}(?:~[1-9][0-9]{0,8})?")
_CAPABILITY: Final = re.compile(r"[A-Za-z0-9_:./-]{1,128}")


def check_kind(kind: str) -> str:
    """The kind, if it is a Python identifier of at most 64 ASCII characters. Raises
    `InvalidName`."""
    if not _KIND.fullmatch(kind):
        raise InvalidName(
            f"{kind!r} is no kind: a kind is an ASCII identifier of at most 64 characters"
        )
    return kind


def check_name(name: str) -> str:
    """The name, if it is not empty and at most 256 bytes of UTF-8. Raises `InvalidName`."""
    if not isinstance(name, str):
        raise InvalidName(f"an agent's name is a str, not {type(name).__name__}: {name!r}")
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        raise InvalidName(f"{name!r} cannot be written in UTF-8: {error.reason}") from None
    if not 0 < size <= limits.NAME_BYTES_MAX:
        raise InvalidName(
            f"an agent's name has 1 to {limits.NAME_BYTES_MAX} bytes in UTF-8, not {size}: "
            f"{name[:40]!r}"
        )
    return name


def check_capability(capability: str) -> str:
    """The capability, if it is 1 to 128 of ``A-Za-z0-9_:./-``. Raises `InvalidName`."""
    if not isinstance(capability, str) or not _CAPABILITY.fullmatch(capability):
        raise InvalidName(
            f"{capability!r} is no capability: use 1 to 128 of the characters A-Z a-z 0-9 _ : . / -"
        )
    return capability


def check_machine(name: str, what: str) -> str:
    """The name of a host or node (``what``), if it can stand in a subject and in a path. Raises
    `ConfigError`."""
    if not isinstance(name, str) or not _MACHINE.fullmatch(name):
        raise ConfigError(
            f"{str(name)[:40]!r} is not a {what}'s name: use 1 to 128 of the characters A-Z a-z "
            "0-9 _ . : -, with a letter, digit or _ at the front"
        )
    return name


@lru_cache(maxsize=4096)
def is_incarnation(name: str) -> bool:
    """Whether it can be the name of one life of a process: a token of subjects, with the life's
    number behind a ``~``."""
    return _INCARNATION.fullmatch(name) is not None


@lru_cache(maxsize=65536)
def agent_token(kind: str, name: str) -> str:
    """``kind/name`` as one token of a subject. Raises `InvalidName`."""
    quoted = quote(check_name(name), safe="").replace(".", "%2E").replace("~", "%7E")
    return f"{check_kind(kind)}/{quoted}"


def from_agent_token(token: str) -> tuple[str, str]:
    """The kind and the name that `agent_token` was given. Raises `InvalidName`."""
    kind, slash, name = token.partition("/")
    if not slash:
        raise InvalidName(f"{token!r} is no agent's token: there is no '/'")
    return check_kind(kind), check_name(unquote(name))


def parse_agent_id(agent_id: str) -> tuple[str, str]:
    """The kind and name of ``kind/name`` as a person writes it. Raises `InvalidName`."""
    if not isinstance(agent_id, str):
        raise InvalidName(
            f"an agent id is a str, KIND/NAME, not {type(agent_id).__name__}: {agent_id!r:.100}"
        )
    kind, slash, name = agent_id.partition("/")
    if not slash:
        raise InvalidName(
            f"{agent_id!r} is no agent id: write KIND/NAME, for example Reviewer/acme"
        )
    return check_kind(kind), check_name(name)


def shard_of(token: str, shards: int) -> int:
    """The shard, 0 to ``shards - 1``, of an agent's token. It never changes for a given number of
    shards."""
    return crc32(token.encode()) % shards


def new_id(prefix: str) -> str:
    """A new id that no other process has, such as ``n-5f3a9c21b0e4``: 48 random bits."""
    return f"{prefix}-{chance.bits(48):012x}"


def digest64(data: bytes) -> int:
    """64 bits that tell two messages apart (BLAKE2b)."""
    return int.from_bytes(blake2b(data, digest_size=8).digest())
