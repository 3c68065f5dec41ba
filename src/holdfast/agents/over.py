"""Which turn code belongs to, so that code that outlives its turn cannot write with another one.

A handler may leave a task, a callback or a thread behind. That code still holds ``self``, and there
is one instance for all turns of an activation, whose ``state`` and ``context`` would be those of
whatever turn runs by then. So:

* the state object of a turn is that turn's alone: the next one begins with what its bytes give
  back;
* between turns ``self.state`` is `PAST`, which refuses everything with `TurnOver`;
* a turn that waits shares its time with others' code. It is named by a context variable, which its
  own tasks inherit, and classes that have such handlers, or begin tasks or threads, look there for
  ``self.state``. Others pay nothing for it: nothing runs beside their turns.
* the context of a turn that is over still tells the agent's name and addresses other agents, and
  writes nothing more.
"""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from inspect import CO_COROUTINE
from types import CodeType, FunctionType
from typing import Any, Final, NoReturn

from holdfast.agents.context import Context, context_after, over_text
from holdfast.agents.handler import Method
from holdfast.errors import TurnOver

current: Final[ContextVar[Context | None]] = ContextVar("holdfast_turn", default=None)
"""The turn, or reader, that the running code belongs to; None where it does not wait."""


class _Past:
    """In the place of a state while no turn runs."""

    __slots__ = ()

    def _refuse(self, *_: Any) -> NoReturn:
        raise TurnOver(over_text("self.state is of no use"))

    __getattr__ = __setattr__ = __delattr__ = _refuse
    __getitem__ = __setitem__ = __delitem__ = __contains__ = __iter__ = __len__ = __bool__ = _refuse
    __add__ = __iadd__ = __or__ = __ior__ = __and__ = __iand__ = __sub__ = __isub__ = __xor__ = (
        __ixor__
    ) = _refuse

    def __repr__(self) -> str:
        return "<the state of a turn that is over>"


PAST: Final[Any] = _Past()


def hold(agent: Any, state: Any, context: Any) -> None:
    """Have an instance hold what belongs to a turn, without code of its author's that sets
    attributes."""
    object.__setattr__(agent, "_holdfast_state", state)
    object.__setattr__(agent, "_holdfast_context", context)


def held(agent: Any) -> tuple[Any, Any]:
    """What `hold` gave it, as far as it was not deleted or replaced."""
    try:
        state = object.__getattribute__(agent, "_holdfast_state")
    except AttributeError:
        state = PAST
    return state, object.__getattribute__(agent, "_holdfast_context")


def begin(agent: Any, state: Any) -> None:
    """Begin a turn that waits for nothing."""
    hold(agent, state, None)


def end(agent: Any) -> tuple[Any, Context | None]:
    """End it; return its state, and its context where that was asked for."""
    state, context = held(agent)
    hold(agent, PAST, PAST)
    if context is not None:
        context._over = True
    return state, context


def begin_waiting(agent: Any, context: Context, state: Any) -> None:
    """Begin a turn that waits, in whose own context (`contextvars`) this is called."""
    context._state = state
    context._waits = True
    context._task = asyncio.current_task()
    agent._holdfast_context = context
    current.set(context)


def end_waiting(agent: Any, context: Context) -> Any:
    """End it; return its state."""
    state, context._state, context._over = context._state, PAST, True
    if held(agent)[1] is context:
        object.__setattr__(agent, "_holdfast_context", PAST)
    return state


def _beside_the_loop(agent: Any) -> Context | None:
    """The turn that waits for a thread which knows none, as ``run_in_executor`` begins them."""
    context = getattr(agent, "_holdfast_context", None)
    if not isinstance(context, Context) or not context._waits:
        return None
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return context
    return None


def _turn_of(agent: Any) -> Context | None:
    context = current.get()
    return (
        context
        if context is not None and context._host is getattr(agent, "_holdfast_host", None)
        else None
    )


def _get_state(agent: Any) -> Any:
    context = _turn_of(agent)
    if context is None:
        state = agent._holdfast_state
        if state is not PAST or (context := _beside_the_loop(agent)) is None:
            return state
    return context._state


def _set_state(agent: Any, state: Any) -> None:
    context = _turn_of(agent)
    if context is None and getattr(agent, "_holdfast_state", None) is PAST:
        context = _beside_the_loop(agent)
        if context is None:
            raise TurnOver(over_text("self.state cannot be replaced"))
    if context is None:
        agent._holdfast_state = state
    elif context._over:
        raise TurnOver(over_text("self.state cannot be replaced"))
    else:
        context._state = state


def may_leave_code(cls: type) -> bool:
    """Whether some method of a class looks as if it began what may outlive a turn."""
    members = [one for base in cls.__mro__ for one in vars(base).values()]
    functions = [one.function if isinstance(one, Method) else one for one in members]
    codes = [function.__code__ for function in functions if isinstance(function, FunctionType)]
    while codes:
        code = codes.pop()
        if not _BEGIN.isdisjoint(code.co_names):
            return True
        inner = [one for one in code.co_consts if isinstance(one, CodeType)]
        if any(one.co_flags & CO_COROUTINE for one in inner):
            return True
        codes += inner
    return False


_BEGIN: Final = frozenset(
    {
        "create_task",
        "ensure_future",
        "gather",
        "TaskGroup",
        "call_soon",
        "call_soon_threadsafe",
        "call_later",
        "call_at",
        "run_in_executor",
        "to_thread",
        "Thread",
        "Timer",
        "submit",
        "add_done_callback",
        "run_coroutine_threadsafe",
    }
)

state_of_turn: Final = property(_get_state, _set_state)
"""``self.state`` of classes with handlers that wait, or with code that may outlive its turn."""


def context_for(agent: Any) -> Context:
    """``self.context`` for the code that asks. Raises `AttributeError` before the agent's first
    message."""
    context = _turn_of(agent)
    if context is not None:
        return context
    found: Any = agent._holdfast_context
    host = agent._holdfast_host if found is None or found is PAST or found._waits else None
    if host is None:
        return found  # type: ignore[no-any-return]
    if found is None:  # few handlers ask for it
        made: Context = host.new_context()
        agent._holdfast_context = made
        return made
    return _beside_the_loop(agent) or late(host)


def late(host: Any) -> Context:
    """The context of code that outlived its turn."""
    context = context_after(host)
    context._over = True
    return context
