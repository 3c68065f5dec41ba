"""A turn as the handler sees it: who sent the message, and what the turn will leave behind when it
commits.

Nothing that a turn does through its context happens before the commit, except asking and telling
other agents. Calls made inside a turn get ids that are a function of the turn's own message, so
that a turn that runs again makes the same calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Protocol, TypeVar

import msgspec

from holdfast import ids, limits
from holdfast.agents.calls import Calls, Outcome
from holdfast.agents.handler import Method, check_reference
from holdfast.agents.kind import HasKind
from holdfast.agents.ref import AgentRef
from holdfast.errors import NotDone, Overloaded, TooLarge, TurnOver
from holdfast.records.messages import InboxMessage, Outgoing, Timer

AgentT = TypeVar("AgentT", bound=HasKind)


class TurnHost(Protocol):
    """What a turn needs of the activation that runs it."""

    token: str
    timers: dict[str, Timer] | None

    @property
    def epoch(self) -> int: ...
    @property
    def router(self) -> Calls: ...
    def is_live(self) -> bool: ...
    def now(self) -> float: ...
    def next_generation(self) -> int: ...
    def outcome(self, message_id: str) -> Outcome: ...
    def new_context(self) -> Context: ...


class Context(msgspec.Struct, eq=False):
    """The message being handled. ``deadline`` is in seconds since 1970, 0 where there is none."""

    _host: TurnHost
    message_key: str
    deadline: float = 0.0
    keep_until: float = 0.0
    path: tuple[str, ...] = ()
    reads_only: bool = False
    outgoing: list[Outgoing] | None = None
    timers: dict[str, Timer | None] | None = None
    _calls: int = 0
    _sent_bytes: int = 0
    _waits: bool = False
    """Its turn waits, so that others' code runs beside it; ``_state`` is its state then. See
    `over`."""
    _over: bool = False
    """Its turn has ended, and writes nothing more."""
    _state: Any = None
    _task: Any = None
    """The task that runs a turn that waits."""
    _asks: Any = None
    """The call that this very task asked last."""

    @property
    def agent_id(self) -> str:
        """``kind/name`` of this agent."""
        return "/".join(ids.from_agent_token(self._host.token))

    @property
    def name(self) -> str:
        """The agent's name."""
        return ids.from_agent_token(self._host.token)[1]

    @property
    def fence(self) -> int:
        """The epoch of this activation. It only grows: an outside system that remembers the highest
        can refuse older ones."""
        return self._host.epoch

    @property
    def idempotency_key(self) -> str:
        """The same for every run of this message: give it to outside systems, whose effects are
        at-least-once."""
        return self._derived("effect")

    @property
    def is_live(self) -> bool:
        """Whether the agent is still this activation's. Where it is not, the turn is cancelled, and
        runs again elsewhere."""
        return self._host.is_live()

    @property
    def message_id(self) -> str:
        """The id of the message, as it came: the user's, or the caller's number."""
        return self.message_key

    def _derived(self, what: str) -> str:
        return blake2b(
            f"{self._host.token}\n{self.message_key}\n{what}".encode(), digest_size=16
        ).hexdigest()

    def next_call_id(self) -> str:
        """The id of the next call of this turn."""
        self._calls += 1
        return self._derived(str(self._calls))

    def outcome(self, message_id: str) -> Outcome:
        """What became of an earlier message to this agent; see `AgentRef.outcome`."""
        return self._host.outcome(message_id)

    def agent(self, kind: type[AgentT], name: str) -> AgentRef[AgentT]:
        """The address of another agent; what is asked and sent through it belongs to this turn."""
        return AgentRef(self._host.router, kind, name, self)

    def _check(self, what: str, undone: str) -> None:
        """Raise what says that this turn cannot do it."""
        if self._over:
            raise TurnOver(over_text(undone))
        if self.reads_only:
            raise NotDone(f"a reader writes nothing, so it cannot {what}: make it a handler")

    def send(self, token: str, handler: str, arguments: bytes, message_id: str) -> str:
        """Add a message to the turn's batch. Raises `Overloaded` over `limits.TURN_RECORDS_MAX`."""
        self._check("send", "nothing was sent")
        if self.outgoing is None:
            self.outgoing = []
        if len(self.outgoing) >= limits.TURN_RECORDS_MAX - 1:
            raise Overloaded(f"one turn may send {limits.TURN_RECORDS_MAX - 1} messages")
        self._sent_bytes += len(arguments)
        if self._sent_bytes > limits.TURN_BYTES_MAX:
            raise TooLarge(f"one turn may send {limits.TURN_BYTES_MAX} bytes")
        key = message_id or self.next_call_id()
        message = InboxMessage(handler, arguments, message_id=message_id, sent_at=self._host.now())
        self.outgoing.append(Outgoing(token, message))
        return key

    def set_timer(
        self,
        name: str,
        seconds: float,
        method: Method[Any, Any, Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        """See `Agent.set_timer`."""
        self._check("set a timer", "no timer was set")
        if not isinstance(name, str):
            raise TypeError(f"a timer's name is a str, not {name!r}")
        if not isinstance(seconds, (int, float)):
            raise TypeError(f"a timer is due in a number of seconds, not {seconds!r:.100}")
        if not seconds >= 0 or seconds == float("inf"):
            raise ValueError(f"a timer is due in 0 or more seconds, not {seconds}")
        check_reference(method, "set as a timer")
        arguments = method.encode_arguments(args, kwargs, check=True)
        if self.timers is None:
            self.timers = {}
        known = self._host.timers or {}
        names = {name, *known, *(new for new, timer in self.timers.items() if timer is not None)}
        if len(names) > limits.TIMERS_MAX:
            raise Overloaded(f"an agent may have {limits.TIMERS_MAX} timers")
        size = len(arguments) + sum(
            len(timer.arguments) for timer in (*known.values(), *self.timers.values()) if timer
        )
        if size > limits.TIMERS_BYTES_MAX:
            raise TooLarge(
                f"the arguments of an agent's timers may have {limits.TIMERS_BYTES_MAX} bytes: use "
                "its state"
            )
        due = self._host.now() + seconds
        self.timers[name] = Timer(name, self._host.next_generation(), due, method.name, arguments)

    def cancel_timer(self, name: str) -> bool:
        """See `Agent.cancel_timer`."""
        self._check("cancel a timer", "no timer was cancelled")
        known = self._host.timers or {}
        if self.timers is None:
            self.timers = {}
        there = self.timers[name] is not None if name in self.timers else name in known
        if name in known:
            self.timers[name] = None
        else:
            self.timers.pop(name, None)
        return there


def over_text(undone: str) -> str:
    """For code that outlived its turn."""
    return (
        f"this turn is over, and {undone}: a handler has to await what it starts before it "
        "returns. Code that is to go on after it sends its agent a message, through an address "
        "from node.agent(...)"
    )


def context_after(host: TurnHost) -> Context:
    """The context of code that goes on after its turn: it has a key of its own, so that its calls
    are nobody else's."""
    return Context(host, ids.new_id("after"), 0.0, 0.0, (host.token,))
