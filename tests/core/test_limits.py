"""The relations between bounds are asserted where the bounds are: a changed number cannot break
another in silence."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from holdfast import limits

SOURCE = Path(limits.__file__).read_text()
BOUNDS = {name: value for name, value in vars(limits).items() if name.isupper()}


def load(changed: str) -> None:
    exec(compile(changed, "limits.py", "exec"), {"__name__": "changed"})


def test_every_bound_is_a_positive_number() -> None:
    assert len(BOUNDS) > 25
    assert [
        name for name, value in BOUNDS.items() if not isinstance(value, (int, float)) or value <= 0
    ] == []


def test_every_relation_says_why() -> None:
    relations = [node for node in ast.parse(SOURCE).body if isinstance(node, ast.Assert)]
    assert len(relations) >= 8
    assert [node.lineno for node in relations if not isinstance(node.msg, ast.Constant)] == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BLOB_THRESHOLD_BYTES", "RECORD_BYTES_MAX"),
        ("MESSAGE_BYTES_MAX", "RECORD_BYTES_MAX + 1"),
        ("BATCH_BYTES_MAX", "RECORD_BYTES_MAX"),
        ("BATCH_RECORDS_MAX", "1001"),
        ("TURN_RECORDS_MAX", "BATCH_RECORDS_MAX"),
        ("STATE_BYTES_MAX", "BLOB_BYTES_MAX + 1"),
        ("SUSPECT_SECONDS", "BEAT_SECONDS * 2"),
        ("ISOLATE_SECONDS", "4.0"),
        ("TAKEOVER_SECONDS", "ISOLATE_SECONDS"),
        ("ATTEMPT_SECONDS", "ASK_TIMEOUT_SECONDS"),
    ],
)
def test_a_changed_number_is_noticed(name: str, value: str) -> None:
    changed, count = re.subn(rf"(?m)^{name}: Final = .*$", f"{name}: Final = {value}", SOURCE)
    assert count == 1
    with pytest.raises(AssertionError):
        load(changed)


def test_unchanged_they_hold() -> None:
    load(SOURCE)
