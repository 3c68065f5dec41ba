"""On a busy machine everything takes several times longer, and nothing is wrong: how long the tests
of this process wait where neither they nor what they are about says how long.

A test that is about a bound gives that bound itself. What one try may miss for want of time is
tried again (`again`).
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
from holdfast.errors import NoQuorum, NoResponders, Unknown
from holdfast.serving import stalls

T = TypeVar("T")

PATIENT_SECONDS: Final = 240.0
_CONNECT_SECONDS: Final = 60.0
"""A test that looks for a server in vain takes so long, or says `connect_within`."""

_PAUSE_SECONDS: Final = 0.2

WAITING: Final = ("--wait", "--timeout", "240")
"""Options for a command that a test runs once on a cluster. Without them the command looks for a
server for 2 s, and has 30 s in all."""

PASSING: Final[tuple[type[Exception], ...]] = (NoQuorum, NoResponders, Unknown)
"""Errors of a single question to a cluster in which nothing is wrong: an election runs, or the
answer is late."""

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
        Node.ask_by_name,
        Node.send_by_name,
    ):
        _by_default(function, "timeout_seconds", PATIENT_SECONDS)
    _by_default(AgentRef.__init__, "options", Options(timeout_seconds=PATIENT_SECONDS))
    _by_default(NatsEngine.__init__, "connect_seconds", _CONNECT_SECONDS)


def connect_within(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Have the engines of one test look for a server for so long, as none answers in it."""
    defaults = NatsEngine.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "connect_seconds", seconds)


async def again(
    work: Callable[[], Awaitable[T]],
    *errors: type[Exception],
    seconds: float = PATIENT_SECONDS,
) -> T:
    """Do ``work`` again as long as it raises one of ``errors``; by default these are `PASSING`.

    After ``seconds`` what it raises is raised here. A check is repeated with `AssertionError`.
    """
    until, passing = time.monotonic() + seconds, errors or PASSING
    while True:
        try:
            return await work()
        except passing:
            if time.monotonic() > until:
                raise
        await asyncio.sleep(_PAUSE_SECONDS)


def again_blocking(
    work: Callable[[], T], *errors: type[Exception], seconds: float = PATIENT_SECONDS
) -> T:
    """As `again`, for a test without a loop."""
    until, passing = time.monotonic() + seconds, errors or PASSING
    while True:
        try:
            return work()
        except passing:
            if time.monotonic() > until:
                raise
        time.sleep(_PAUSE_SECONDS)


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
