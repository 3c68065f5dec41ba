"""Kinds and messages by names alone, as a shell has them: no class is needed to send one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from holdfast import codec, ids
from holdfast.agents.agent import Agent


def kind_name(kind: type[Agent[Any]] | str) -> str:
    """The name of a kind that is given by its class, or by name."""
    return kind if isinstance(kind, str) else kind.__kind__.name


def encode(agent_id: str, handler: str, arguments: Any) -> tuple[str, bytes]:
    """An agent's token, and the arguments as bytes: of a list in order, of a map by name, of anything else as the only one.

    Raises `InvalidName`, `BadMessage`.
    """
    token = ids.agent_token(*ids.parse_agent_id(agent_id))
    if isinstance(arguments, Mapping):
        plain: Any = dict(arguments)
    else:
        plain = list(arguments) if isinstance(arguments, (list, tuple)) else [arguments]
    return token, codec.encode(plain, f"{agent_id} {handler}")
