"""Handlers: the methods of an agent that messages are for, and what their messages look like.

A decorated method, looked up on the class, is a typed *method reference*: `ref.ask(Reviewer.review,
diff)` is checked by mypy and pyright against the method's own signature. Looked up on an instance
it is the plain method.

Arguments travel as a msgpack array in the order of the signature, or as a map of names (what a
shell sends). Both are decoded into the annotated types; what does not fit is refused with the name
of the field.
"""

from __future__ import annotations

import dis
import inspect
import re
from collections.abc import Callable, Coroutine, Mapping
from typing import (
    Any,
    Concatenate,
    Generic,
    Literal,
    NamedTuple,
    ParamSpec,
    TypeVar,
    get_args,
    get_type_hints,
    overload,
)

import msgspec

from holdfast import codec, limits
from holdfast.agents import guard
from holdfast.codec import types
from holdfast.codec.canonical import canonical, has_one_form
from holdfast.codec.flooding import guarded
from holdfast.codec.kept import unsendable
from holdfast.errors import BadMessage, TooLarge

A_contra = TypeVar("A_contra", contravariant=True)
A = TypeVar("A")
P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")
Self = TypeVar("Self", bound="Method[Any, Any, Any]")
Place = Literal["loop", "thread", "process"]
"""Where a method runs: on its node's loop, beside it in a thread, or in a worker process."""

_PLACE = re.compile(r"\$\[(\d+)\]")
_COUNT = re.compile(r"Expected `array` of at (most|least) length \d+, got (\d+)")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`")
_WAITS = {"GET_AWAITABLE", "GET_ANEXT", "YIELD_VALUE", "SEND"}
_PLAIN = {type(None), bool, int, float, str, bytes}
_MAPS = {bytes([first]) for first in (*range(0x80, 0x90), 0xDE, 0xDF)}
"""What a map begins with in msgpack."""


def _is_async_def(function: Callable[..., Any]) -> bool:
    return bool(getattr(getattr(function, "__code__", None), "co_flags", 0) & inspect.CO_COROUTINE)


class _Shapes(NamedTuple):
    ordered: Any
    """The arguments as an array."""
    decode_named: Callable[[bytes], Any]
    """… and as a map, which is rare."""
    encode: Callable[[Any], bytes]
    encode_reply: Callable[[Any], bytes]
    decode_reply: Callable[[bytes], Any]
    one_form: bool
    """Whether the arguments mean the same only if they are the same bytes."""
    holds_any: bool
    """Whether some of them have no type."""


class Method(Generic[A_contra, P, R_co]):
    """What a handler and a reader have in common: a name, a signature and its codecs."""

    reads_only = False

    def __init__(
        self, function: Callable[..., Coroutine[Any, Any, Any]], runs_in: Place = "loop"
    ) -> None:
        if runs_in not in get_args(Place):
            raise TypeError(
                f"{function.__qualname__} runs in 'loop', 'thread' or 'process', not in {runs_in!r}"
            )
        if not inspect.iscoroutinefunction(function):
            raise TypeError(
                f"{function.__qualname__} must be an `async def` to be a handler or a reader"
            )
        parameters = list(inspect.signature(function).parameters.values())[1:]
        for parameter in parameters:
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise TypeError(
                    f"{function.__qualname__}: a message has no *{parameter.name}; name each "
                    "argument"
                )
        self.function = function
        self.name = function.__name__
        self.parameters = parameters
        self._keyword_only = [one.name for one in parameters if one.kind is one.KEYWORD_ONLY]
        self.runs_in = runs_in
        # A plain function that is marked as a coroutine function gives what somebody else wrote,
        # which may wait.
        self.waits = not _is_async_def(function) or any(
            step.opname in _WAITS for step in dis.get_instructions(function)
        )
        self.__doc__ = function.__doc__
        self.__name__ = function.__name__
        self.__qualname__ = function.__qualname__
        self._title = self._reply_title = ""
        self._shapes: _Shapes | None = None
        self.at_once = False
        """Whether the fast path may run it: on the loop, to its end without a wait, its arguments
        by their places."""
        self.reads_at_once = False
        """… as a reader."""
        self.decode_ordered: Callable[[bytes], Any] = msgspec.msgpack.decode
        """The arguments as a struct, once the shapes are known."""
        self.decode_at_once: Callable[[bytes], Any] = self.decode_ordered
        """… for who calls it outside of a context of its own (`guard`)."""
        self.plain = False
        """Whether they decode without code of users'."""
        self.plain_reply: Any = ()
        """The type of which each value, once it is encoded, is a reply that decodes, where there is
        one."""
        self._locals: Mapping[str, Any] = {}

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        self._title = f"{owner.__name__}.{name}"
        self._reply_title = f"the reply of {self._title}"

    @overload
    def __get__(self: Self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type) -> Callable[P, Coroutine[Any, Any, R_co]]: ...
    def __get__(self, instance: object | None, owner: type) -> Any:
        return self if instance is None else self.function.__get__(instance, owner)

    def __repr__(self) -> str:
        return f"<{'reader' if self.reads_only else 'handler'} {self.__qualname__}>"

    def resolve(self, names: Mapping[str, Any]) -> None:
        """Look up the annotations now, also among the names of the function that defines the
        class."""
        try:
            self._build(names)
        except NameError:
            self._locals = names

    def _build(self, names: Mapping[str, Any]) -> _Shapes:
        hints = get_type_hints(self.function, localns=dict(names), include_extras=True)
        fields: list[Any] = []
        for parameter in self.parameters:
            kind = hints.get(parameter.name, Any)
            if parameter.default is parameter.empty:
                fields.append((parameter.name, kind))
            elif parameter.default.__class__ in (list, dict, set, bytearray):
                fields.append(
                    (parameter.name, kind, msgspec.field(default_factory=parameter.default.copy))
                )
            else:
                fields.append((parameter.name, kind, parameter.default))
        try:
            ordered = msgspec.defstruct(
                self._title, fields, array_like=True, forbid_unknown_fields=True
            )
            named = msgspec.defstruct(self._title, fields, forbid_unknown_fields=True)
            returns = hints.get("return", Any)
            self.decode_ordered = guarded(ordered, codec.decoder(ordered).decode)
            decode_named = guarded(named, codec.decoder(named).decode)
            decode_reply = codec.decoder(returns).decode
            encode, encode_reply = codec.encoder(ordered), codec.encoder(returns)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{self._title} cannot be a message: {error}") from None
        self.plain_reply = returns if isinstance(returns, type) and returns in _PLAIN else ()
        self.plain = not any(types.runs_code(kind) for _, kind, *_ in fields)
        self.decode_at_once = self.decode_ordered if self.plain else self._decode_apart
        at_once = not (self.waits or self._keyword_only) and self.runs_in == "loop"
        self.at_once = at_once and not self.reads_only
        self.reads_at_once = at_once and self.reads_only and self.plain
        one_form = len(fields) < 16 and all(has_one_form(kind) for _, kind, *_ in fields)
        self._shapes = shapes = _Shapes(
            ordered,
            decode_named,
            encode,
            encode_reply,
            decode_reply,
            one_form,
            types.of(ordered).anything,
        )
        return shapes

    def _shape(self) -> _Shapes:
        return self._shapes or self._build(self._locals)

    def encode_arguments(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], check: bool = False
    ) -> bytes:
        """The arguments as bytes. ``check``: also prove that they decode. Raises `BadMessage`,
        naming the field."""
        if not args and not kwargs and not self.parameters:
            return b"\x90"
        shapes = self._shapes or self._shape()
        try:
            message = shapes.ordered(*args, **kwargs)
        except TypeError as error:
            raise BadMessage(f"{self._title}({self._signature()}): {error}") from None
        try:
            data = shapes.encode(message)
        except codec.UNSENDABLE as error:
            raise BadMessage(f"{self._title}: {unsendable(message)}: {error}") from None
        if check:
            self.decode_arguments(data)
        return data

    def decode_arguments(self, data: bytes) -> tuple[Any, ...]:
        """The arguments in the order of the signature. Raises `BadMessage`, naming the field."""
        if data == b"\x90" and not self.parameters:
            return ()
        shapes = self._shapes or self._shape()
        try:
            message = shapes.decode_named(data) if data[:1] in _MAPS else self.decode_ordered(data)
        except codec.ERRORS as error:
            raise BadMessage(f"{self._title}: {self._misfit(str(error))}") from None
        return msgspec.structs.astuple(message)

    def _decode_apart(self, data: bytes) -> Any:
        return guard.fresh().run(self.decode_ordered, data)

    def canonical(self, data: bytes) -> bytes:
        """What arguments mean, as bytes: the same for all that mean the same. Those that do not fit
        mean themselves."""
        shapes = self._shapes or self._shape()
        if shapes.one_form and data[:1] == bytes([0x90 + len(self.parameters)]):
            return data
        try:
            return canonical(self.decode_arguments(data), shapes.holds_any)
        except (BadMessage, *codec.UNSENDABLE):
            return data

    def _signature(self) -> str:
        return ", ".join(parameter.name for parameter in self.parameters)

    def _misfit(self, text: str) -> str:
        """An error of the decoder, in the words of who wrote the call."""
        takes = f"it takes ({self._signature()})" if self.parameters else "it takes no arguments"
        if found := _COUNT.fullmatch(text):
            many = "many" if found[1] == "most" else "few"
            return f"too {many} arguments ({found[2]}): {takes}"
        if found := _UNKNOWN.fullmatch(text):
            return f"there is no argument named `{found[1]}`: {takes}"
        if found := _MISSING.fullmatch(text):
            return f"the argument `{found[1]}` is missing: {takes}"
        return _PLACE.sub(self._name_of, text)

    def _name_of(self, place: re.Match[str]) -> str:
        """What stands for ``$[0]`` in an error: the parameter's name."""
        index = int(place[1])
        return f"$.{self.parameters[index].name}" if index < len(self.parameters) else place[0]

    def bind(self, agent: object, args: tuple[Any, ...]) -> Coroutine[Any, Any, Any]:
        """The coroutine of one run, with keyword-only arguments where the signature has them."""
        if not self._keyword_only:
            return self.function(agent, *args)
        by_place = len(args) - len(self._keyword_only)
        return self.function(
            agent, *args[:by_place], **dict(zip(self._keyword_only, args[by_place:], strict=True))
        )

    def encode_reply(self, value: Any) -> bytes:
        """The reply as bytes. Raises `BadMessage` for a value that cannot be sent or does not fit,
        and `TooLarge`."""
        try:
            data = (self._shapes or self._shape()).encode_reply(value)
        except codec.UNSENDABLE as error:
            raise BadMessage(f"{self._reply_title}: {unsendable(value)}: {error}") from None
        if type(value) is not self.plain_reply:
            self.decode_reply(data)
        bound = limits.MESSAGE_BYTES_MAX if self.reads_only else limits.REPLY_BYTES_MAX
        if len(data) > bound:
            raise TooLarge(f"{self._reply_title} has {len(data)} bytes; {bound} are allowed")
        return data

    def decode_reply(self, data: bytes) -> Any:
        """The reply in the annotated type. Raises `BadMessage`."""
        shapes = self._shapes or self._shape()
        try:
            return shapes.decode_reply(data)
        except codec.ERRORS as error:
            raise BadMessage(f"{self._reply_title}: {error}") from None


def check_reference(method: object, one_way: str = "") -> None:
    """Raise `BadMessage` for what names no handler or reader, or a reader where the verb
    ``one_way`` takes none."""
    if not isinstance(method, Method):
        if inspect.ismethod(method):
            cls = type(method.__self__).__name__
            raise BadMessage(
                f"{method.__name__} was taken from an agent itself: write {cls}.{method.__name__}"
            )
        raise BadMessage(
            f"{method!r:.100} names no handler: write the class and its method, such as Counter.add"
        )
    if one_way and method.reads_only:
        raise BadMessage(f"{method!r} is a reader: it can be asked, not {one_way}")


class Handler(Method[A_contra, P, R_co]):
    """A method reference to a handler: it may be asked, sent and told."""


class Reader(Method[A_contra, P, R_co]):
    """A method reference to a reader: it may only be asked, and cannot write."""

    reads_only = True


@overload
def handler(function: Callable[Concatenate[A, P], Coroutine[Any, Any, R]]) -> Handler[A, P, R]: ...
@overload
def handler(
    *, runs_in: Place
) -> Callable[[Callable[Concatenate[A, P], Coroutine[Any, Any, R]]], Handler[A, P, R]]: ...
def handler(function: Any = None, *, runs_in: Place = "loop") -> Any:
    """Make an ``async def`` of an `Agent` a handler: its changes of ``self.state`` are committed
    when it returns.

    ``runs_in``: ``"loop"``, where it shares one thread with all agents of its node and has to
    ``await`` what takes long; ``"thread"`` for one that blocks, and ``"process"`` for one that
    computes. There it may send and set timers, but it cannot wait for anything: ask no other agent.
    In a process it meets a new instance, so that ``__init__`` runs for each message, and its class
    has to be one that can be imported.
    """
    return Handler(function) if function is not None else lambda wrapped: Handler(wrapped, runs_in)


@overload
def reader(function: Callable[Concatenate[A, P], Coroutine[Any, Any, R]]) -> Reader[A, P, R]: ...
@overload
def reader(
    *, runs_in: Place
) -> Callable[[Callable[Concatenate[A, P], Coroutine[Any, Any, R]]], Reader[A, P, R]]: ...
def reader(function: Any = None, *, runs_in: Place = "loop") -> Any:
    """Make an ``async def`` of an `Agent` a reader: it sees committed state, which is frozen, and
    writes nothing.

    ``runs_in``: as for a `handler`.
    """
    return Reader(function) if function is not None else lambda wrapped: Reader(wrapped, runs_in)
