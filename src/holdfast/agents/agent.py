"""Agents as their authors see them: a class, its typed state, and what a turn may do.

The author's class is read once, when it is defined: what cannot work (a state that needs arguments, a handler that is
not a coroutine, an unknown option) is refused there, not at the first message.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, TypeVar, get_args, get_origin

import msgspec

from holdfast import codec, errors, ids, limits
from holdfast.agents import guard, over, places
from holdfast.agents.context import Context, Outcome, TurnHost
from holdfast.agents.handler import Handler, P, _Method, check_reference, reader
from holdfast.codec import types
from holdfast.codec.kept import NOTHING, Losses, unknown_at_top, unknown_fields, unsendable
from holdfast.core.pools import MAIN, Pool
from holdfast.errors import BadMessage, BadState, UnknownKind

if TYPE_CHECKING:
    from holdfast.agents.ref import AgentRef

_logger = logging.getLogger(__name__)

S = TypeVar("S")
AgentT = TypeVar("AgentT", bound="Agent[Any]")


class State(msgspec.Struct, kw_only=True):
    """A convenient base for an agent's state: typed fields, each with a default."""


class Kind:
    """What the runtime knows of an agent class: its name, its handlers, and the codecs of its state."""

    def __init__(self, cls: type[Agent[Any]], name: str, state: Any, options: _Options) -> None:
        self.cls = cls
        self.name = ids.check_kind(name)
        self.unreadable = f"the state of {name} cannot be read"
        self.capabilities = options.capabilities
        self.state_version = options.state_version
        self.idle_seconds = options.idle_seconds
        self.mailbox_max = options.mailbox_max
        self.dedup_seconds = options.dedup_seconds
        self.pool = options.pool
        self.state_type = state
        self.methods: dict[str, _Method[Any, Any, Any]] = {}
        for base in reversed(cls.__mro__):
            self.methods.update({k: v for k, v in vars(base).items() if isinstance(v, _Method)})
        try:
            first = self._construct()
        except TypeError as error:
            raise TypeError(f"the state of {name} must be constructible without arguments: {error}") from None
        try:
            self.decode_state = codec.decoder(state).decode
            self.encode_bytes = codec.encoder(state)
            self.losses = Losses(state)
            self.decode_state(self.encode_bytes(first))
        except codec.ERRORS as error:
            raise TypeError(f"the state of {name} cannot be stored: {error}") from None
        self.exact = self.losses.exact if not self.losses.always else None
        """The type of a state that loses nothing once it decodes, None where each has to be looked at: see `keep`."""
        self.plain = () if types.runs_code(state) else self.losses.exact
        """… and of one that is encoded and decoded without code of users'."""
        own = (cls.__setattr__, cls.__getattribute__)
        self.has_plain_attributes = own == (object.__setattr__, object.__getattribute__)
        """Whether an instance's attributes are set and read without code of users'."""
        self.frozen = isinstance(state, type) and issubclass(state, msgspec.Struct)
        self.view_type = _frozen(state) if self.frozen else state
        self._decode_view = codec.decoder(self.view_type, borrowed=self.frozen).decode
        self.shares_view = self.frozen and codec.is_immutable(self.view_type)
        """Whether readers may share one view; else each gets its own, so that what one does to it stays with it."""
        self._said: set[str] = set()

    def lacks(self, handler: str) -> UnknownKind:
        """The error for a message to a handler that there is none of."""
        names = ", ".join(sorted(self.methods))
        return UnknownKind(f"{self.name} has no handler or reader {handler[:100]!r}: it has {names}"[:1000])

    def _construct(self) -> Any:
        origin = get_origin(self.state_type) or self.state_type
        return None if origin in (None, type(None)) else origin()

    def new_state(self) -> tuple[bytes, Any]:
        """The state of an agent that never had a message, as `keep` gives it: it shares nothing with another's.

        Raises `BadState`.
        """
        return guard.call(BadState, f"a new state of {self.name} cannot be made", lambda: self.keep(self._construct()))

    def new_agent(self) -> Any:
        """An instance for one activation. Raises `BadState` where its ``__init__`` raises."""
        return guard.call(BadState, f"{self.name}.__init__ failed", self.cls)

    def keep(self, state: Any) -> tuple[bytes, Any]:
        """The state as bytes, and as these give it back: with that the agent goes on, so that a reload changes nothing.

        Raises `BadState`, naming the field that does not fit, or that would be lost.
        """
        try:
            data = self.encode_bytes(state)
        except Exception as error:  # also a state's own code
            where = unsendable(state)
            raise BadState(f"the state of {self.name} cannot be stored: {where}: {_said(error)}") from None
        if len(data) > limits.STATE_BYTES_MAX:
            raise BadState(f"the state of {self.name} has {len(data)} bytes; {limits.STATE_BYTES_MAX} are allowed")
        try:
            kept = self.decode_state(data)
            lost = "" if type(state) is self.exact else self.losses.find(state, data, kept)
        except Exception as error:  # also a state's own code
            raise BadState(f"the state of {self.name} does not fit its type: {_said(error)}") from None
        if lost:
            raise BadState(f"the state of {self.name} would lose {lost}")
        return data, kept

    def view(self, data: bytes) -> Any:
        """The state as readers see it, frozen where its type can be. Raises `BadState`."""
        try:
            return self._decode_view(data)
        except Exception as error:  # also a state's own code
            raise BadState(f"the state of {self.name} cannot be shown: {_said(error)}") from error

    def note_unknown(self, token: str, data: bytes, state: Any) -> None:
        """Say once, when an agent was loaded, which stored values this code's state type has no field for.

        A type without fields below its own is not encoded for that: its bytes may differ for ever, as those of sets do.
        """
        most = limits.UNKNOWN_FIELDS_MAX - len(self._said)
        if most <= 0:
            return
        try:
            if self.losses.exact is not NOTHING:
                found = unknown_at_top(self.losses.exact, data)
            elif self.encode_bytes(state) == data:
                return
            else:
                found = unknown_fields(self.state_type, data)
        except Exception:  # a state's own code: its next turn says more
            return
        fields = [field for field in found if field not in self._said][: min(most, limits.UNKNOWN_FIELDS_OF_LOAD)]
        self._said.update(fields)
        if len(self._said) >= limits.UNKNOWN_FIELDS_MAX:
            _logger.warning("the log names no more than %d such fields of %s", limits.UNKNOWN_FIELDS_MAX, self.name)
        for field in fields:
            _logger.warning(
                "%s holds a value of %s, which the state of %s does not have: it stays in the log until the agent's next "
                "turn that writes, and is gone then. Renamed? Give the field its old name with msgspec.field(name=...), "
                "or raise state_version and define upgrade_state", token, field, self.name,
            )  # fmt: skip

    def load_state(self, data: bytes, version: int) -> Any:
        """The state from a record, upgraded where its schema is older. Raises `BadState`."""
        self.check_version(version)
        if version == self.state_version:
            try:
                return self.decode_state(data)
            except codec.ERRORS as error:
                raise BadState(
                    f"the stored state of {self.name} does not fit its type: {error}. If the type changed, raise "
                    "state_version and define upgrade_state"
                ) from None
        what = f"{self.name}.upgrade_state from version {version} to {self.state_version} failed"
        return guard.call(BadState, what, self._upgrade, data, version)

    def _upgrade(self, data: bytes, version: int) -> Any:
        old = msgspec.msgpack.decode(data, ext_hook=codec.own_extension)
        return self.decode_state(self.encode_bytes(self.cls.upgrade_state(version, old)))

    def check_version(self, version: int) -> None:
        """Raise `BadState` for a state of a schema that this code does not know yet."""
        if version > self.state_version:
            raise BadState(
                f"the state of {self.name} has schema version {version}, this code knows {self.state_version}: "
                "upgrade this node's code"
            )


def _said(error: Exception) -> str:
    """What an error says; of one that no codec raises also its class."""
    if isinstance(error, codec.ERRORS) and str(error):
        return str(error)
    return f"{errors.class_of(error)}: {errors.text_of(error)} ({places.of(error)})"


def _frozen(state: Any) -> Any:
    if state.__struct_config__.frozen:
        return state
    names: dict[str, Any] = {"__module__": state.__module__}
    if hasattr(state, "__post_init__"):

        def derive(self: Any) -> None:
            """Let the author's ``__post_init__`` assign, which it cannot here, to an instance that is not frozen."""
            open_one = state(**{name: getattr(self, name) for name in state.__struct_fields__})
            for name in state.__struct_fields__:
                msgspec.structs.force_setattr(self, name, getattr(open_one, name))

        names["__post_init__"] = derive
    return type(state.__name__, (state,), names, frozen=True)


class _Options(msgspec.Struct, frozen=True):
    capabilities: frozenset[str]
    state_version: int
    idle_seconds: float
    mailbox_max: int
    dedup_seconds: float
    pool: Pool | str


class Agent(Generic[S]):
    """A durable agent: subclass it as ``class Reviewer(Agent[Reviews])`` and decorate its methods.

    Options of the class, as keywords: ``kind`` (default: the class's name), ``capabilities``, ``state_version`` (raise it
    when the state's type changes, and define `upgrade_state`), ``idle_seconds`` (an idle agent leaves memory after
    this), ``mailbox_max`` (messages that may wait), ``dedup_seconds`` (how long a message id is remembered), ``pool`` (the
    `Pool` in which its agents live, or the name of one that another class declares; default: the main pool).

    One turn at a time handles a message. ``__init__``, if there is one, takes no arguments; attributes other than
    ``state`` live only as long as this activation.
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
            raise TypeError(f"capabilities of {cls.__name__} is a set of names, not one str: {{{capabilities!r}}}")
        if state_version < 1 or idle_seconds <= 0 or mailbox_max < 1 or dedup_seconds <= 0:
            raise TypeError(f"the options of {cls.__name__} must be positive")
        if not isinstance(pool, (Pool, str)) or not pool:
            raise TypeError(f"the pool of {cls.__name__} is a Pool or the name of one, not {pool!r}")
        for taken in vars(cls).keys() & _TAKEN:
            raise TypeError(
                f"{cls.__name__}.{taken} would hide what every agent has under that name: name it otherwise"
            )
        state = _state_type(cls)
        if state is None:
            return
        names = _names_around(sys._getframe(1))
        for method in vars(cls).values():
            if isinstance(method, _Method):
                method.resolve(names)
                if method.runs_in == "process" and "<locals>" in cls.__qualname__:
                    raise TypeError(f"{method!r} runs in a worker process, which cannot import {cls.__qualname__}")
        found = frozenset(ids.check_capability(capability) for capability in capabilities)
        options = _Options(found, state_version, idle_seconds, mailbox_max, dedup_seconds, pool)
        cls.__kind__ = found_kind = Kind(cls, kind or cls.__name__, state, options)
        if any(method.waits for method in found_kind.methods.values()) or over.may_leave_code(cls):
            cls.state = over.state_of_turn  # type: ignore[assignment]

    @property
    def context(self) -> Context:
        """The message being handled, and what a turn may do."""
        try:
            return over.context_for(self)
        except AttributeError:
            text = f"{type(self).__name__} has no context before its first message, so neither in __init__"
            raise AttributeError(text) from None

    @property
    def name(self) -> str:
        """The agent's name, without its kind."""
        return self.context.name

    @reader
    async def outcome(self, message_id: str) -> Outcome:
        """What became of a message that was given this id: every agent can be asked. See `AgentRef.outcome`."""
        return self.context.outcome(message_id)

    @classmethod
    def upgrade_state(cls, version: int, state: Any) -> Any:
        """Turn a state of an older schema version, as dicts and lists, into one of the present version.

        Called when an older record is loaded; the result is committed with the agent's next turn.
        """
        raise NotImplementedError(f"define upgrade_state to read version {version}")

    def agent(self, kind: type[AgentT], name: str) -> AgentRef[AgentT]:
        """The address of another agent; what is asked and sent through it belongs to this turn."""
        return self.context.agent(kind, name)

    def set_timer(
        self, name: str, seconds: float, method: Handler[Any, P, Any], *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Have a handler of this agent run in so many seconds. It survives any failure, and replaces a timer so named.

        It is set when the turn commits. Raises `BadMessage`, `Overloaded` over `limits.TIMERS_MAX` timers.
        """
        check_reference(method, "set as a timer")
        if method.name not in type(self).__kind__.methods:
            raise BadMessage(f"{method!r} is not a handler of {type(self).__name__}: a timer is for its own agent")
        self.context.set_timer(name, seconds, method, args, kwargs)

    def cancel_timer(self, name: str) -> bool:
        """Drop a timer when the turn commits; whether there was one."""
        return self.context.cancel_timer(name)


Agent.state = Agent.__dict__["_holdfast_state"]  # type: ignore[misc]  # classes with handlers that wait have another: see `over`

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
