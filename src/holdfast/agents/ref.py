"""An agent's address: what its callers hold. Making one does no I/O, and the agent need not exist
before.

`ask` waits for the reply; `send` returns when the message is durable; `tell` may lose it. Which one
a method allows is in its type: a reader can be asked, and nothing else.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, Generic, ParamSpec, TypeVar, overload

from holdfast import codec, ids, limits
from holdfast.agents import guard
from holdfast.agents.calls import Calls, Options, Outcome, Turn
from holdfast.agents.handler import Handler, Method, Reader, check_reference
from holdfast.agents.kind import HasKind
from holdfast.errors import BadMessage, HoldfastError, TooLarge
from holdfast.records.messages import OK

AgentT_co = TypeVar("AgentT_co", bound=HasKind, covariant=True)
P = ParamSpec("P")
R = TypeVar("R")


_DEFAULT = Options()
_AT_ONCE_MAX: Final = 8
"""After so many asks that were answered at once, by this very process, the loop gets its turn."""


def not_a_class(kind: object) -> str:
    """What to say where the class of an agent is wanted."""
    return (
        f"{kind!r:.100} is not the class of an agent: give the class itself, such as Counter of "
        "Agent[Count]"
    )


class AgentRef(Generic[AgentT_co]):
    """The address of one agent. It stays valid wherever the agent lives, and whatever happens to
    that place."""

    __holdfast_hint__ = (
        "pass its agent_id or its name, and make the address where it is used, with self.agent(...)"
    )
    __slots__ = ("_context", "_kind", "_options", "_router", "_token")

    def __init__(
        self,
        router: Calls,
        kind: type[AgentT_co] | None,
        name: str,
        context: Turn | None = None,
        options: Options = _DEFAULT,
        kind_name: str = "",
    ) -> None:
        """``kind`` is None for an agent whose class this process does not have; ``kind_name`` names
        it then."""
        self._router = router
        self._kind = kind
        try:
            self._token = ids.agent_token(kind_name if kind is None else kind.__kind__.name, name)
        except AttributeError:
            raise TypeError(not_a_class(kind)) from None
        self._context = context
        self._options = options

    @property
    def agent_id(self) -> str:
        """``kind/name``."""
        return "/".join(ids.from_agent_token(self._token))

    @property
    def name(self) -> str:
        """The agent's name, without its kind."""
        return ids.from_agent_token(self._token)[1]

    def __repr__(self) -> str:
        return f"AgentRef({self.agent_id!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AgentRef) and other._token == self._token

    def __hash__(self) -> int:
        return hash(self._token)

    def options(
        self,
        *,
        timeout_seconds: float | None = None,
        message_id: str | None = None,
        fresh: bool | None = None,
    ) -> AgentRef[AgentT_co]:
        """The same address with other options for its messages.

        ``timeout_seconds``: when an ask or a send gives up. ``message_id``: the same id again,
        within the agent's ``dedup_seconds``, has no second effect and gets the first answer; use
        such an address for one message. ``fresh``: a reader sees everything that was acknowledged
        anywhere before it, at the price of a commit.
        """
        old = self._options
        if timeout_seconds is not None:
            if not isinstance(timeout_seconds, (int, float)):
                raise TypeError(f"timeout_seconds is a number of seconds, not {timeout_seconds!r}")
            if not 0 < timeout_seconds < 1e9:
                raise ValueError(f"timeout_seconds must be more than 0, not {timeout_seconds}")
        if message_id is not None and not isinstance(message_id, str):
            raise TypeError(f"a message_id is a str, not {message_id!r}: write {str(message_id)!r}")
        if (
            message_id is not None
            and not 0 < len(message_id.encode()) <= limits.MESSAGE_ID_BYTES_MAX
        ):
            raise ValueError(f"a message_id has 1 to {limits.MESSAGE_ID_BYTES_MAX} bytes in UTF-8")
        new = Options(
            old.timeout_seconds if timeout_seconds is None else timeout_seconds,
            old.message_id if message_id is None else message_id,
            old.fresh if fresh is None else fresh,
        )
        copy = AgentRef.__new__(AgentRef)
        copy._router, copy._kind, copy._token = self._router, self._kind, self._token
        copy._context, copy._options = self._context, new
        return copy

    def _encode(
        self,
        method: Method[Any, Any, Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        check: bool = False,
        one_way: str = "",
    ) -> bytes:
        if not isinstance(method, Method) or (one_way and method.reads_only):
            check_reference(method, one_way)
        if self._kind is not None and method.name not in self._kind.__kind__.methods:
            raise BadMessage(f"{method!r} is not a method of {self._kind.__name__}")
        data = method.encode_arguments(args, kwargs, check)
        if len(data) > limits.MESSAGE_BYTES_MAX:
            text = (
                f"the arguments of {method.name} have {len(data)} bytes; "
                f"{limits.MESSAGE_BYTES_MAX} are allowed"
            )
            raise TooLarge(text)
        return data

    async def outcome(self, message_id: str) -> Outcome:
        """What became of a message that was sent or asked with ``options(message_id=...)``, within
        ``dedup_seconds``.

        It is answered behind everything that the agent had in its hands. Raises what `ask` of a
        reader raises.
        """
        payload = codec.encode_raw([message_id])
        options = Options(self._options.timeout_seconds, fresh=True)
        reply = await self._router.ask(self._token, "outcome", payload, options, reads_only=True)
        outcome: Outcome = codec.decode(reply, Outcome, "an outcome")
        return outcome

    @overload
    async def ask(
        self, method: Handler[AgentT_co, P, R], *args: P.args, **kwargs: P.kwargs
    ) -> R: ...
    @overload
    async def ask(
        self, method: Reader[AgentT_co, P, R], *args: P.args, **kwargs: P.kwargs
    ) -> R: ...
    async def ask(self, method: Any, *args: Any, **kwargs: Any) -> Any:
        """Have the agent handle a message, and return its reply: then what the handler changed is
        durable.

        Raises:
            HandlerFailed: the handler raised; the state is as it was.
            BadMessage: the arguments or the reply do not fit the types.
            TooLarge: the arguments, the reply or the state are over their bound.
            Overloaded: the agent's mailbox is full.
            DeadlineExceeded: the time was over before it was started; nothing happened.
            OutcomeUnknown: the time was over, and it may have happened, once.
            WouldDeadlock: the agent is itself waiting for this very call.
            ReplayMismatch: the message id was used before, with another message.
            BadState: the agent's stored state cannot be read by this code.
            UnknownKind: the node that owns the agent does not serve its kind.
        """
        router, token, context = self._router, self._token, self._context
        data = self._encode(method, args, kwargs)
        if (shard := router.space.find(token)) < 0:
            shard = await router.locate(token)
        opened = router.begin(
            shard, token, method.name, data, self._options, method.reads_only, context
        )
        future = opened.future
        try:
            if future.done() and opened.number % _AT_ONCE_MAX == 0:
                await asyncio.sleep(0)  # as in `Router.ask`
            outcome, payload = await future
        except asyncio.CancelledError:
            router.give_up(opened, context)
            raise
        if outcome == OK:
            try:
                return method.decode_reply(payload)
            except HoldfastError:
                raise
            except Exception as error:  # code of the reply's type
                raise guard.named(
                    BadMessage, f"the reply of {method.__qualname__}", error
                ) from error
        raise router.error(opened, payload)

    async def send(
        self, method: Handler[AgentT_co, P, Any], *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Put a message into the agent's durable inbox; it is handled once, in order, whenever the
        agent can.

        Inside a turn the message is part of the turn: it is sent when the turn commits. Outside,
        when this returns, a quorum has it. What keeps failing goes to the dead letters.

        Raises:
            BadMessage: the arguments do not fit the types.
            TooLarge: the arguments are over their bound.
            Overloaded: too many sends of this process wait.
            NoQuorum: nothing was written for want of a majority, until the time was over.
            OutcomeUnknown: the time was over, and it may have been written, once.
            UnknownKind: its class is not here, and no node has ever served it.
        """
        data = self._encode(method, args, dict(kwargs), True, "sent")
        options = self._options
        await self._router.place(
            self._token, None if self._kind is None else self._kind.__kind__.pool
        )
        if self._context is not None:
            self._context.send(self._token, method.name, data, options.message_id)
        else:
            await self._router.send(
                self._token, method.name, data, options.timeout_seconds, options.message_id
            )

    def tell(self, method: Handler[AgentT_co, P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
        """Send without any promise: the message may be lost, and costs least. Raises `BadMessage`,
        `TooLarge`."""
        data = self._encode(method, args, dict(kwargs), one_way="told")
        self._router.tell(self._token, method.name, data)
