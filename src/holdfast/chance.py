"""Randomness. All that is random in Holdfast is drawn from here, so that a simulation can draw it
from its seed."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random


class _Source(threading.local):
    """No context variable: users' code runs in empty contexts, and draws for us there too."""

    random: Random | None = None


_source = _Source()


def random() -> Random:
    """A generator of its own, for somebody who draws more than once."""
    return Random(bits(64))


def bits(count: int) -> int:
    """Random bits that no other process draws: the operating system's, or the simulation's."""
    source = _source.random
    return secrets.randbits(count) if source is None else source.getrandbits(count)


@contextmanager
def drawn_from(source: Random) -> Iterator[None]:
    """All that this thread does meanwhile draws from this generator."""
    before, _source.random = _source.random, source
    try:
        yield
    finally:
        _source.random = before
