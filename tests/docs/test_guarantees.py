"""The guarantees name tests that are there, and print the one table of what an engine cannot do."""

from __future__ import annotations

import re
from pathlib import Path

from holdfast.engines.base import GAPS, Gap

ROOT = Path(__file__).parents[2]


def test_each_test_that_is_named_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "guarantees.md").read_text()))
    there = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    assert len(named) > 10
    assert named <= there, named - there


def test_the_gaps_of_the_engines_are_printed() -> None:
    _, _, section = (
        (ROOT / "docs" / "guarantees.md").read_text().partition("## What an engine cannot do")
    )
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    assert [Gap(*row) for row in rows[1:]] == list(GAPS)
