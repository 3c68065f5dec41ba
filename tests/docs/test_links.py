"""The docs agree with the project: links lead somewhere, and every public name is written about."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.docs.snippets import ROOT, pages

import holdfast

_LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
_OTHERS = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]


@pytest.mark.parametrize("page", pages() + _OTHERS, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(page: Path) -> None:
    missing = [
        target
        for target in (
            match["target"].partition("#")[0] for match in _LINK.finditer(page.read_text())
        )
        if target
        and "://" not in target
        and not target.startswith("mailto:")
        and not (page.parent / target).exists()
    ]
    assert missing == []


def test_every_public_name_is_documented() -> None:
    text = "\n".join(page.read_text() for page in pages())
    words = set(
        re.findall(r"\w+", "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, flags=re.DOTALL)))
    )
    names = [name for name in getattr(holdfast, "__all__", ()) if not name.startswith("_")]
    assert [name for name in names if name not in words] == []
