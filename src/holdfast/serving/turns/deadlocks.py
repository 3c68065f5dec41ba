"""Turns that wait for one another: found where they are, before their deadlines end them.

A call carries the agents whose turns wait for it, so an agent that is asked by its own turn, in a
circle, is known at once. Crossed calls are not: A asks B while B asks A, in turns that began on
their own, and each call waits in the mailbox behind the turn that made the other one. So a call of
a turn that has to wait sets out a probe. Each owner that it comes to looks whether the call that it
names still waits there, behind a turn that itself awaits a call, and sends it on to the receiver of
that one. A probe that comes back to the call that it set out from has been round a circle: that
call is refused.

Only what a turn awaits itself counts. What a task of it awaits, the turn may not need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdfast import ids, limits
from holdfast.agents.context import Context
from holdfast.errors import WouldDeadlock
from holdfast.records.messages import WAITS, Probe
from holdfast.serving.delivery import Delivery, call_key

if TYPE_CHECKING:
    from holdfast.agents.calls import Open
    from holdfast.serving.intake import Intake
    from holdfast.serving.turns.activation import Activation


def look(activation: Activation, message: Delivery) -> None:
    """Find out whether a call of a turn, which may wait here, waits in a circle."""
    if message.call is not None and message.call.path and activation.running is not None:
        follow(
            activation.shard.runtime.intake,
            Probe(activation.token, message.key, activation.token, message.key),
        )


def follow(intake: Intake, probe: Probe) -> None:
    """Take a probe one step on, or refuse the call that it set out from."""
    activation = intake.at(probe.token)
    message = None if activation is None else (activation.in_hand or {}).get(probe.key)
    if activation is None or message is None or message not in (activation.mailbox or ()):
        return
    opened = _awaited(activation)
    if opened is None:
        return
    path = probe.path
    if path and (probe.token, probe.key) == (probe.origin, probe.origin_key):
        if opened.call.token == path[1]:  # else the turn that it waited behind has ended meanwhile
            _refuse(activation, message, path)
    elif len(path) < limits.CIRCLE_MAX and probe.token not in path:
        call = opened.call
        onward = Probe(
            call.token, call_key(call), probe.origin, probe.origin_key, (*path, probe.token)
        )
        if opened.shard in intake.shards:
            follow(intake, onward)
        else:
            activation.router.send_probe(opened, onward)


def _awaited(activation: Activation) -> Open | None:
    """The call that the running turn awaits."""
    context = getattr(activation.agent, "_holdfast_context", None)
    if activation.running is None or not isinstance(context, Context) or context._over:
        return None
    opened: Open | None = context._asks
    return None if opened is None or opened.future.done() else opened


def _refuse(activation: Activation, message: Delivery, path: tuple[str, ...]) -> None:
    names = " → ".join(_name(token) for token in (*path, path[0]))
    text = (
        f"turns that wait for one another: {names}, and none can end. Send, or ask in one "
        "direction only"
    )
    activation.refuse(message, WouldDeadlock(text))


def hint(activation: Activation, known: Delivery, again: Delivery) -> None:
    """Tell a caller that tries again what its call waits for: it shows that where its deadline
    passes."""
    running, call = activation.running, again.call
    if call is None or again.sink is None:
        return
    opened = _awaited(activation)
    awaited = (
        activation.shard.runtime.workers.awaited(activation.token, running.key)
        if running is not None
        else ""
    )
    if known is running:
        why = f"its handler {running.handler} " + (
            f"waits until a {awaited} is free" if awaited else "runs"
        )
    elif known in (activation.mailbox or ()) and running is not None:
        why = f"it waits behind a turn of {running.handler}" + (
            f", which waits until a {awaited} is free" if awaited else ""
        )
    elif known in activation.pending or known in activation.in_batch:
        why, opened = "its handler has ended, and what it did waits to be written", None
    else:
        return
    if opened is not None:
        why += f", which waits for {_name(opened.call.token)} ({opened.call.handler})"
    again.sink(call.reference, WAITS, why[: limits.ERROR_TEXT_MAX].encode())


def _name(token: str) -> str:
    return "/".join(ids.from_agent_token(token))
