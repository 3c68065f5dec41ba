"""On a busy machine everything takes several times longer, and nothing is wrong: how long the tests
of this process wait where neither they nor what they are about says how long.

A test that is about a bound gives that bound itself.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from holdfast import AgentRef, LocalCluster, Node, limits
from holdfast.agents.calls import Options
from holdfast.serving import stalls

PATIENT_SECONDS: Final = 240.0


def wait_longer() -> None:
    """Have asks, starts and joins wait for `PATIENT_SECONDS` by default, in this process and in
    those that it starts."""
    limits.JOIN_SECONDS = PATIENT_SECONDS  # type: ignore[misc]
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
