"""Every command that has a place has a deadline and can wait; one deadline counts for all of its
phases."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from holdfast.cli import bounds
from holdfast.cli.main import app


def commands(group: typer.Typer, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for one in group.registered_commands:
        yield f"{prefix}{one.name}", one.callback
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        yield from commands(inner.typer_instance, f"{inner.name} ")


def test_every_command_with_a_place_has_a_timeout_and_can_wait() -> None:
    found = dict(commands(app))
    placed = {
        name for name, callback in found.items() if "at" in inspect.signature(callback).parameters
    }
    assert {
        "status",
        "hosts",
        "events",
        "call",
        "send",
        "agents list",
        "cohort set",
        "backup create",
        "restore",
    } <= placed
    for name in placed:
        parameters = inspect.signature(found[name]).parameters
        assert "wait" in parameters, name
        assert ("timeout" in parameters) is (name != "run"), name
    for name in (
        "status",
        "hosts",
        "agents show",
        "dead-letters drop",
        "cordon",
        "pools list",
        "cohort show",
        "doctor",
    ):
        assert (
            inspect.signature(found[name]).parameters["timeout"].default == bounds.COMMAND_SECONDS
        ), name


def test_what_is_left_of_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(bounds.time, "monotonic", lambda: now)
    one = bounds.Bounds(timeout=5.0, started=now)
    now = 103.0
    assert one.left() == 2.0 and one.left(1.0) == 1.0
    now = 200.0
    assert 0 < (one.left() or 0) < 0.1
    assert (
        bounds.Bounds(timeout=None).left() is None and bounds.Bounds(timeout=None).left(2.0) == 2.0
    )
