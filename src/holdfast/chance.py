"""Randomness. All that is random in Holdfast is drawn from here, so that a simulation can draw it from its seed."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from random import Random

_source: ContextVar[Random | None] = ContextVar("holdfast.chance", default=None)


def random() -> Random:
    """A generator of its own, for somebody who draws more than once."""
    return Random(bits(64))


def bits(count: int) -> int:
    """Random bits that no other process draws: the operating system's, or the simulation's."""
    source = _source.get()
    return secrets.randbits(count) if source is None else source.getrandbits(count)


@contextmanager
def drawn_from(source: Random) -> Iterator[None]:
    """All that runs within, and the tasks that it starts, draw from this generator."""
    token = _source.set(source)
    try:
        yield
    finally:
        _source.reset(token)
