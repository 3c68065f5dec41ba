"""Agents as their authors see them: a class, its typed state, and what a turn may do.

The author's class is read once, when it is defined: what cannot work (a state that needs arguments,
a handler that is not a coroutine, an unknown option) is refused there, not at the first message.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Final, Generic, TypeVar, get_args, get_origin

import msgspec

from holdfast import ids, limits
from holdfast.agents import over
from holdfast.agents.calls import Outcome
from holdfast.agents.context import Context, TurnHost
from holdfast.agents.handler import Handler, Method, P, check_reference, reader
from holdfast.agents.kind import Kind, KindOptions
from holdfast.agents.ref import AgentRef
from holdfast.core.pools import MAIN, Pool
from holdfast.errors import BadMessage

_logger = logging.getLogger(__name__)

S = TypeVar("S")
AgentT = TypeVar("AgentT", bound="Agent[Any]")


class State(msgspec.Struct, kw_only=True):
    """A convenient base for an agent's state: typed fields, each with a default."""


class Agent(Generic[S]):
    """A durable agent: subclass it as ``class Reviewer(Agent[Reviews])`` and decorate its methods.

    Options of the class, as keywords: ``kind`` (default: the class's name), ``capabilities``,
    ``state_version`` (raise it when the state's type changes, and define `upgrade_state`),
    ``idle_seconds`` (an idle agent leaves memory after this), ``mailbox_max`` (messages that may
    wait), ``dedup_seconds`` (how long a message id is remembered), ``pool`` (the `Pool` in which
    its agents live, or the name of one that another class declares; default: the main pool).

    One turn at a time handles a message. ``__init__``, if there is one, takes no arguments;
    attributes other than ``state`` live only as long as this activation.
    """

    __slots__ = ("__dict__", "_holdfast_context", "_holdfast_host", "_holdfast_state")

    state: S
    """The agent's durable state. In a reader it is frozen."""

    _holdfast_context: Context | None
    """Of the message being handled, once it was asked for; see `over`."""
    _holdfast_host: TurnHost
    _holdfast_state: S

    __kind__: ClassVar[Kind]

    def __init_subclass__(
        cls,
        *,
        kind: str | None = None,
        capabilities: Iterable[str] = (),
        state_version: int = 1,
        idle_seconds: float = limits.IDLE_SECONDS,
        mailbox_max: int = limits.MAILBOX_MESSAGES_MAX,
        dedup_seconds: float = limits.DEDUP_SECONDS,
        pool: Pool | str = MAIN,
    ) -> None:
        super().__init_subclass__()
        if isinstance(capabilities, str):
            raise TypeError(
                f"capabilities of {cls.__name__} is a set of names, not one str: "
                f"{{{capabilities!r}}}"
            )
        if state_version < 1 or idle_seconds <= 0 or mailbox_max < 1 or dedup_seconds <= 0:
            raise TypeError(f"the options of {cls.__name__} must be positive")
        if not isinstance(pool, (Pool, str)) or not pool:
            raise TypeError(
                f"the pool of {cls.__name__} is a Pool or the name of one, not {pool!r}"
            )
        for taken in vars(cls).keys() & _TAKEN:
            raise TypeError(
                f"{cls.__name__}.{taken} would hide what every agent has under that name: name it "
                "otherwise"
            )
        state = _state_type(cls)
        if state is None:
            return
        names = _names_around(sys._getframe(1))
        for method in vars(cls).values():
            if isinstance(method, Method):
                method.resolve(names)
                if method.runs_in == "process" and "<locals>" in cls.__qualname__:
                    raise TypeError(
                        f"{method!r} runs in a worker process, which cannot import "
                        f"{cls.__qualname__}"
                    )
        found = frozenset(ids.check_capability(capability) for capability in capabilities)
        options = KindOptions(found, state_version, idle_seconds, mailbox_max, dedup_seconds, pool)
        cls.__kind__ = found_kind = Kind(cls, kind or cls.__name__, state, options)
        if any(method.waits for method in found_kind.methods.values()) or over.may_leave_code(cls):
            cls.state = over.state_of_turn  # type: ignore[assignment]

    @property
    def context(self) -> Context:
        """The message being handled, and what a turn may do."""
        try:
            return over.context_for(self)
        except AttributeError:
            text = (
                f"{type(self).__name__} has no context before its first message, so neither in "
                "__init__"
            )
            raise AttributeError(text) from None

    @property
    def name(self) -> str:
        """The agent's name, without its kind."""
        return self.context.name

    @reader
    async def outcome(self, message_id: str) -> Outcome:
        """What became of a message that was given this id: every agent can be asked. See
        `AgentRef.outcome`."""
        return self.context.outcome(message_id)

    @classmethod
    def upgrade_state(cls, version: int, state: Any) -> Any:
        """Turn a state of an older schema version, as dicts and lists, into one of the present
        version.

        Called when an older record is loaded; the result is committed with the agent's next turn.
        """
        raise NotImplementedError(f"define upgrade_state to read version {version}")

    def agent(self, kind: type[AgentT], name: str) -> AgentRef[AgentT]:
        """The address of another agent; what is asked and sent through it belongs to this turn."""
        return self.context.agent(kind, name)

    def set_timer(
        self,
        name: str,
        seconds: float,
        method: Handler[Any, P, Any],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None:
        """Have a handler of this agent run in so many seconds. It survives any failure, and
        replaces a timer so named.

        It is set when the turn commits. Raises `BadMessage`, `Overloaded` over `limits.TIMERS_MAX`
        timers.
        """
        check_reference(method, "set as a timer")
        if method.name not in type(self).__kind__.methods:
            raise BadMessage(
                f"{method!r} is not a handler of {type(self).__name__}: a timer is for its own "
                "agent"
            )
        self.context.set_timer(name, seconds, method, args, kwargs)

    def cancel_timer(self, name: str) -> bool:
        """Drop a timer when the turn commits; whether there was one."""
        return self.context.cancel_timer(name)


# classes with handlers that wait have another: see `over`
Agent.state = Agent.__dict__["_holdfast_state"]  # type: ignore[misc]

_TAKEN: Final = {name for name in vars(Agent) if not name.startswith("_")} - {"upgrade_state"}
"""What a class may not define anew."""


def _state_type(cls: type) -> Any:
    for base in cls.__mro__:
        for generic in getattr(base, "__orig_bases__", ()):
            origin = get_origin(generic)
            if isinstance(origin, type) and issubclass(origin, Agent):
                (state,) = get_args(generic)[:1]
                return None if isinstance(state, TypeVar) else state
    raise TypeError(f"name the type of the state: class {cls.__name__}(Agent[MyState])")


def _names_around(frame: Any) -> Mapping[str, Any]:
    names: dict[str, Any] = {}
    while frame is not None and frame.f_locals is not frame.f_globals:
        names = {**frame.f_locals, **names}
        frame = frame.f_back
    return names
