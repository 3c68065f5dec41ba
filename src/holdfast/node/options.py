"""What a node is told when it joins, next to where: one list for `Node.join` and `Node.open`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypedDict

from holdfast.agents.agent import Agent
from holdfast.clock import Clock
from holdfast.errors import ConfigError
from holdfast.security import Security


class JoinOptions(TypedDict, total=False):
    """The keyword arguments of `Node.join` and `Node.open`. Each may be left out."""

    serve: Iterable[type[Agent[Any]]]
    """The agent classes that may live here. A client has none."""

    name: str
    """The node's name, for people."""

    host: str
    """The host's name; `holdfast up` gives it to the nodes that it starts. By default the
    machine's."""

    incarnation: str
    """The name of this life of the node; `holdfast up` gives it to the nodes that it starts."""

    found: bool
    """Found a cluster where there is none yet. An embedded log needs no word for it."""

    replicas: int | None
    """How many copies of everything there are to be: 1, 3 or 5. A node refuses to serve where there
    are fewer."""

    wait: bool
    """Wait for a cluster that somebody else is to found."""

    timeout_seconds: float | None
    """How long joining may take; on a cluster 30 s by default."""

    labels: Iterable[str]
    """Words such as ``gpu`` that pools ask for."""

    capacity: float
    """How much the node can carry, compared with others: 1.0 by default."""

    clock: Clock
    """For tests that move the time."""

    security: Security
    """Certificates and a password, as one value."""

    tls_ca: str
    """A field of `Security`, as a shorthand; so are the next four."""

    tls_cert: str
    tls_key: str
    user: str
    password: str


def check(options: JoinOptions) -> None:
    """Raises `TypeError` for an option that there is not."""
    if unknown := sorted(options.keys() - JoinOptions.__optional_keys__):
        raise TypeError(
            f"a node has no option {unknown[0]!r}; it has "
            f"{', '.join(sorted(JoinOptions.__optional_keys__))}"
        )


def security_of(options: JoinOptions) -> Security:
    """The certificates and the password, given as one value or by the names of its fields.

    Raises `ConfigError` for both ways at once.
    """
    fields: dict[str, Any] = {
        name: options[name]  # type: ignore[literal-required]
        for name in Security.__struct_fields__
        if options.get(name)
    }
    security = options.get("security", Security())
    if not isinstance(security, Security):
        raise ConfigError(f"security is a holdfast.Security, not a {type(security).__name__}")
    if fields and security != Security():
        raise ConfigError(
            f"{', '.join(fields)}: give them in the Security, or as arguments without one"
        )
    return Security(**fields) if fields else security
