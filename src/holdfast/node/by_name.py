"""Kinds and messages by names alone, as a shell has them: no class is needed to send one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from holdfast import codec, ids
from holdfast.agents.agent import Agent
from holdfast.agents.kind import Kind
from holdfast.agents.ref import not_a_class
from holdfast.errors import BadMessage


def kind_name(kind: type[Agent[Any]] | str) -> str:
    """The name of a kind that is given by its class, or by name. Raises `TypeError` for anything
    else."""
    return kind if isinstance(kind, str) else kind_of(kind).name


def kind_of(kind: type[Agent[Any]]) -> Kind:
    """What is known of an agent's class. Raises `TypeError` for anything else."""
    found = getattr(kind, "__kind__", None)
    if not isinstance(found, Kind):
        raise TypeError(not_a_class(kind))
    return found


def capabilities(kind: type[Agent[Any]], given: Iterable[str]) -> set[str]:
    """Those of a class and those that are given. Raises `BadMessage`."""
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise BadMessage(
            f"capabilities are a set of words, not {given!r:.100}: write {{{given!r:.100}}}"
        )
    return {*kind_of(kind).capabilities, *given}


def encode(agent_id: str, handler: str, arguments: Any) -> tuple[str, bytes]:
    """An agent's token, and the arguments as bytes: of a list in order, of a map by name, of
    anything else as the only one.

    Raises `InvalidName`, `BadMessage`.
    """
    token = ids.agent_token(*ids.parse_agent_id(agent_id))
    if isinstance(arguments, Mapping):
        plain: Any = dict(arguments)
    else:
        plain = list(arguments) if isinstance(arguments, (list, tuple)) else [arguments]
    return token, codec.encode(plain, f"{agent_id} {handler}")
