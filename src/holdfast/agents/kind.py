"""What the runtime knows of an agent class: its name, its handlers, and the codecs of its state."""

from __future__ import annotations

import logging
from typing import Any, ClassVar, Protocol, get_origin

import msgspec

from holdfast import codec, errors, ids, limits
from holdfast.agents import guard, places
from holdfast.agents.handler import Method
from holdfast.codec import types
from holdfast.codec.kept import NOTHING, Losses, unknown_at_top, unknown_fields, unsendable
from holdfast.core.pools import Pool
from holdfast.errors import BadState, UnknownKind

_logger = logging.getLogger(__name__)


class KindOptions(msgspec.Struct, frozen=True):
    """What the author of an agent class said of it; see `Agent`."""

    capabilities: frozenset[str]
    state_version: int
    idle_seconds: float
    mailbox_max: int
    dedup_seconds: float
    pool: Pool | str


class Kind:
    """See the module."""

    def __init__(self, cls: type[Any], name: str, state: Any, options: KindOptions) -> None:
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
        self.methods: dict[str, Method[Any, Any, Any]] = {}
        for base in reversed(cls.__mro__):
            self.methods.update({k: v for k, v in vars(base).items() if isinstance(v, Method)})
        try:
            first = self._construct()
        except TypeError as error:
            raise TypeError(
                f"the state of {name} must be constructible without arguments: {error}"
            ) from None
        try:
            self.decode_state = codec.decoder(state).decode
            self.encode_bytes = codec.encoder(state)
            self.losses = Losses(state)
            self.decode_state(self.encode_bytes(first))
        except codec.ERRORS as error:
            raise TypeError(f"the state of {name} cannot be stored: {error}") from None
        self.exact = self.losses.exact if not self.losses.always else None
        """The type of a state that loses nothing once it decodes, None where each has to be looked
        at: see `keep`."""
        self.plain = () if types.runs_code(state) else self.losses.exact
        """… and of one that is encoded and decoded without code of users'."""
        own: tuple[Any, ...] = (cls.__setattr__, cls.__getattribute__)
        self.has_plain_attributes = own == (object.__setattr__, object.__getattribute__)
        """Whether an instance's attributes are set and read without code of users'."""
        self.frozen = isinstance(state, type) and issubclass(state, msgspec.Struct)
        self.view_type = _frozen(state) if self.frozen else state
        self._decode_view = codec.decoder(self.view_type, borrowed=self.frozen).decode
        self.shares_view = self.frozen and codec.is_immutable(self.view_type)
        """Whether readers may share one view; else each gets its own, so that what one does to it
        stays with it."""
        self._said: set[str] = set()

    def lacks(self, handler: str) -> UnknownKind:
        """The error for a message to a handler that there is none of."""
        names = ", ".join(sorted(self.methods))
        return UnknownKind(
            f"{self.name} has no handler or reader {handler[:100]!r}: it has {names}"[:1000]
        )

    def _construct(self) -> Any:
        origin = get_origin(self.state_type) or self.state_type
        return None if origin in (None, type(None)) else origin()

    def new_state(self) -> tuple[bytes, Any]:
        """The state of an agent that never had a message, as `keep` gives it: it shares nothing
        with another's.

        Raises `BadState`.
        """
        return guard.call(
            BadState,
            f"a new state of {self.name} cannot be made",
            lambda: self.keep(self._construct()),
        )

    def new_agent(self) -> Any:
        """An instance for one activation. Raises `BadState` where its ``__init__`` raises."""
        return guard.call(BadState, f"{self.name}.__init__ failed", self.cls)

    def keep(self, state: Any) -> tuple[bytes, Any]:
        """The state as bytes, and as these give it back: with that the agent goes on, so that a
        reload changes nothing.

        Raises `BadState`, naming the field that does not fit, or that would be lost.
        """
        try:
            data = self.encode_bytes(state)
        except Exception as error:  # also a state's own code
            where = unsendable(state)
            raise BadState(
                f"the state of {self.name} cannot be stored: {where}: {_said(error)}"
            ) from None
        if len(data) > limits.STATE_BYTES_MAX:
            raise BadState(
                f"the state of {self.name} has {len(data)} bytes; {limits.STATE_BYTES_MAX} are "
                "allowed"
            )
        try:
            kept = self.decode_state(data)
            lost = "" if type(state) is self.exact else self.losses.find(state, data, kept)
        except Exception as error:  # also a state's own code
            raise BadState(
                f"the state of {self.name} does not fit its type: {_said(error)}"
            ) from None
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
        """Say once, when an agent was loaded, which stored values this code's state type has no
        field for.

        A type without fields below its own is not encoded for that: its bytes may differ for ever,
        as those of sets do.
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
        fields = [field for field in found if field not in self._said][
            : min(most, limits.UNKNOWN_FIELDS_OF_LOAD)
        ]
        self._said.update(fields)
        if len(self._said) >= limits.UNKNOWN_FIELDS_MAX:
            _logger.warning(
                "the log names no more than %d such fields of %s",
                limits.UNKNOWN_FIELDS_MAX,
                self.name,
            )
        for field in fields:
            _logger.warning(
                "%s holds a value of %s, which the state of %s does not have: it stays in the log "
                "until the agent's next turn that writes, and is gone then. Renamed? Give the "
                "field its old name with msgspec.field(name=...), or raise state_version and "
                "define upgrade_state",
                token,
                field,
                self.name,
            )

    def load_state(self, data: bytes, version: int) -> Any:
        """The state from a record, upgraded where its schema is older. Raises `BadState`."""
        self.check_version(version)
        if version == self.state_version:
            try:
                return self.decode_state(data)
            except codec.ERRORS as error:
                raise BadState(
                    f"the stored state of {self.name} does not fit its type: {error}. If the type "
                    "changed, raise state_version and define upgrade_state"
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
                f"the state of {self.name} has schema version {version}, this code knows "
                f"{self.state_version}: upgrade this node's code"
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
            """Let the author's ``__post_init__`` assign, which it cannot here, to an instance that
            is not frozen."""
            open_one = state(**{name: getattr(self, name) for name in state.__struct_fields__})
            for name in state.__struct_fields__:
                msgspec.structs.force_setattr(self, name, getattr(open_one, name))

        names["__post_init__"] = derive
    return type(state.__name__, (state,), names, frozen=True)


class HasKind(Protocol):
    """An agent, as far as an address needs its class."""

    __kind__: ClassVar[Kind]
