"""The state and the agent of what the log has, made by code of users: it may raise, at any message.

An agent whose code raises there is *broken*. Its record is whole, and stays as it is; each message
tries again, and fails with what the code raised, as if its handler had. So callers get the error,
durable messages become dead letters, nobody else notices, and with mended code the agent goes on.

A new agent whose state cannot be made is broken in the same way. Its state is no bytes, also in its
record, where a dead letter or a refusal needs one: with mended code it begins as a new agent does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdfast.agents import guard, over
from holdfast.errors import BadState, HoldfastError

if TYPE_CHECKING:
    from holdfast.serving.turns.activation import Activation


def revive(activation: Activation) -> HoldfastError | None:
    """Make the state and the agent of an activation of what the log has; return what the code for
    that raised."""
    kind, new = activation.kind, not activation.state_bytes
    old = not new and activation.state_version != kind.state_version
    if old and (activation.in_batch or activation.pending):
        return activation.broken  # what is on its way to the log is of the old schema
    restore(activation)
    if activation.broken is None and (old or activation.agent is None):
        try:
            guard.call(BadState, f"{kind.name} cannot be made", _make, activation, old, new)
        except HoldfastError as error:
            activation.broken = error
    return activation.broken


def _make(activation: Activation, old: bool, new: bool) -> None:
    kind, agent = activation.kind, activation.agent
    if agent is None:
        agent = kind.new_agent()
        agent._holdfast_host = activation
        agent._holdfast_state = agent._holdfast_context = over.PAST
    if old:  # the upgraded state is written with the next turn
        activation.state_bytes, activation.state = kind.keep(activation.state)
        activation.committed_bytes, activation.state_version = (
            activation.state_bytes,
            kind.state_version,
        )
    elif not new:
        kind.note_unknown(activation.token, activation.state_bytes, activation.state)
    activation.agent = agent


def restore(activation: Activation) -> None:
    """Go back to the state of the last finished turn; before the first one, to a new state."""
    activation.broken = None
    kind = activation.kind
    try:
        if not activation.state_bytes:
            activation.state_bytes, activation.state = kind.new_state()
            activation.committed_bytes, activation.state_version = (
                activation.state_bytes,
                kind.state_version,
            )
            return
        what = f"the stored state of {kind.name} cannot be loaded"
        activation.state = guard.call(
            BadState, what, kind.load_state, activation.state_bytes, activation.state_version
        )
    except HoldfastError as error:
        activation.broken, activation.at_rest = error, False
