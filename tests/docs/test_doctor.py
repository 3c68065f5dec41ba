"""The table of findings in docs/doctor.md is the doctor's own, and each finding is made for real by
some test."""

from __future__ import annotations

import re

from tests.docs.snippets import ROOT

from holdfast.admin.doctor.findings import KINDS, SEVERITIES


def test_the_table_is_the_doctors_own() -> None:
    rows = re.findall(
        r"^\| `([a-z-]+)` \| (\w+) \| (.+) \|$", (ROOT / "docs/doctor.md").read_text(), re.MULTILINE
    )
    assert rows == [(code, kind.severity, kind.meaning) for code, kind in KINDS.items()]
    assert {kind.severity for kind in KINDS.values()} == set(SEVERITIES)


def test_every_finding_is_made_for_real_by_a_test() -> None:
    paths = [*(ROOT / "tests/admin").glob("test_*.py"), *(ROOT / "tests/cluster").glob("test_*.py")]
    text = "\n".join(path.read_text() for path in paths)
    assert [code for code in KINDS if f'"{code}"' not in text] == []


def test_every_finding_is_found_by_the_source() -> None:
    text = "\n".join(
        path.read_text() for path in (ROOT / "src/holdfast/admin/doctor").glob("*doctor.py")
    )
    assert [code for code in KINDS if f'"{code}"' not in text] == []
