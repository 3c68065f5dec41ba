"""On a busy machine everything takes several times longer, and nothing is wrong: how long the tests
of this process wait where neither they nor what they are about says how long.

A test that is about a bound gives that bound itself.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest

from holdfast import AgentRef, LocalCluster, Node, limits
from holdfast.agents.calls import Options
from holdfast.engines.nats import blobs, log, replica, streams, tail
from holdfast.engines.nats import engine as nats_engine
from holdfast.engines.nats.engine import NatsEngine
from holdfast.serving import stalls

T = TypeVar("T")

PATIENT_SECONDS: Final = 240.0
ANSWER_SECONDS: Final = PATIENT_SECONDS / 4
"""For one question to a server. An election may lose the question: the rest of `PATIENT_SECONDS` is
for asking again."""

_PINGS_MAX: Final = 1000
"""A connection sends a ping each second, so no test lasts until this many have no answer."""


def wait_longer() -> None:
    """Have asks, connections, starts and joins wait for `PATIENT_SECONDS` by default, in this
    process and in those that it starts."""
    limits.CONNECT_SECONDS = PATIENT_SECONDS  # type: ignore[misc]
    limits.JOIN_SECONDS = PATIENT_SECONDS  # type: ignore[misc]
    nats_engine._ENSURE_SECONDS = PATIENT_SECONDS  # type: ignore[misc]
    children = str(Path(__file__).parent / "children")
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [children, os.environ.get("PYTHONPATH")])
    )
    for function in (
        LocalCluster.start,
        LocalCluster.add_host,
        LocalCluster.start_host,
        Node.ready,
        Node.call,
        Node.send,
    ):
        _by_default(function, "timeout_seconds", PATIENT_SECONDS)
    _by_default(AgentRef.__init__, "options", Options(timeout_seconds=PATIENT_SECONDS))
    _by_default(NatsEngine.__init__, "connect_seconds", PATIENT_SECONDS)


def connect_within(patch: pytest.MonkeyPatch, seconds: float) -> None:
    """Have each new engine look for a server only this long, if nobody gives it another bound."""
    defaults = NatsEngine.__init__.__kwdefaults__
    assert defaults is not None
    patch.setitem(defaults, "connect_seconds", seconds)


def children_wait(bound: str, seconds: float) -> dict[str, str]:
    """The variable that gives a child process another bound than `tests/children` does.

    ``bound``: MODULE:NAME.
    """
    return {"HOLDFAST_TESTS_BOUNDS": f"{bound}={seconds}"}


def wait_for_answers(patch: pytest.MonkeyPatch) -> None:
    """Have engines wait longer for what they ask their servers."""
    for module, name in (
        (log, "_READ_SECONDS"),
        (log, "_API_SECONDS"),
        (blobs, "_API_SECONDS"),
        (replica, "_API_SECONDS"),
        (streams, "_API_SECONDS"),
        (tail, "_API_SECONDS"),
    ):
        patch.setattr(module, name, ANSWER_SECONDS)
    patch.setattr(limits, "APPEND_TIMEOUT_SECONDS", PATIENT_SECONDS)


def keep_connections(engine: NatsEngine) -> None:
    """Have an open engine keep its connections while their server is silent."""
    for connection in (engine._connection, engine._reading):
        assert connection is not None
        connection.options["max_outstanding_pings"] = _PINGS_MAX


async def until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds, for `PATIENT_SECONDS` at most."""
    async with asyncio.timeout(PATIENT_SECONDS):
        while not condition():
            await asyncio.sleep(0.005)


async def again(ask: Callable[[], Awaitable[T]], *errors: type[Exception]) -> T:
    """Return what ``ask`` gives, and call it again while it raises one of these errors.

    Raises the last error once `PATIENT_SECONDS` are over.
    """
    end = time.monotonic() + PATIENT_SECONDS
    while True:
        try:
            return await ask()
        except errors:
            if time.monotonic() > end:
                raise
        await asyncio.sleep(0.02)


def logged(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What was logged, but for what a machine without time is told of."""
    return [record for record in caplog.records if record.name != stalls.__name__]


def _by_default(function: Callable[..., Any], name: str, value: object) -> None:
    parameter = inspect.signature(function).parameters[name]
    assert parameter.default is not parameter.empty
    if parameter.kind is parameter.KEYWORD_ONLY:
        assert function.__kwdefaults__ is not None
        function.__kwdefaults__[name] = value
        return
    parameters = inspect.signature(function).parameters.values()
    names = [
        one.name
        for one in parameters
        if one.default is not one.empty and one.kind is not one.KEYWORD_ONLY
    ]
    defaults = list(function.__defaults__ or ())
    defaults[names.index(name)] = value
    function.__defaults__ = tuple(defaults)
