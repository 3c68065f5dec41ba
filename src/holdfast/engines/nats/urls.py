"""URLs of servers, apart from the secrets that people write into them, which are never shown
again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import unquote, urlsplit

from holdfast.errors import ConfigError

_USERINFO = re.compile(r"//[^/?#\s]*@")


def shown(urls: str | Sequence[str]) -> str:
    """URLs as they may be printed: without a user and a password. It takes any text."""
    text = urls if isinstance(urls, str) else ", ".join(urls)
    return _USERINFO.sub("//", text)


def split(urls: Sequence[str]) -> tuple[list[str], str, str]:
    """The URLs without their userinfo, and the user and the password that stood in them; empty
    where none did.

    Raises `ConfigError` for a user without a password, and for URLs that name different ones: what
    is meant for one server would be sent to another.
    """
    plain: list[str] = []
    found: set[tuple[str, str]] = set()
    for url in urls:
        parts = urlsplit(url)
        plain.append(parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl())
        if "@" in parts.netloc:
            user, password = unquote(parts.username or ""), unquote(parts.password or "")
            if not user or not password:
                raise ConfigError(
                    f"{shown(url)}: write a user with a password, as nats://USER:PASSWORD@HOST:PORT"
                )
            found.add((user, password))
    if len(found) > 1:
        raise ConfigError(
            f"{shown(urls)}: the URLs name different users or passwords; give one for all"
        )
    user, password = found.pop() if found else ("", "")
    return plain, user, password


def check_schemes(urls: Sequence[str]) -> bool:
    """Whether the URLs ask for TLS. Raises `ConfigError` for a list in which only some do."""
    schemes = {urlsplit(url).scheme for url in urls}
    if {"nats", "tls"} <= schemes:
        raise ConfigError(
            f"{shown(urls)}: write tls:// for all of them or for none; a client that trusts one "
            "uses all"
        )
    return "tls" in schemes
