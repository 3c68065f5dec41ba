"""Each story is run, and has to be what its file says. HOLDFAST_REWRITE=1 writes the files anew:
read the difference."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from holdfast.errors import ConfigError
from holdfast.testing.simulation import story

STORIES = sorted((Path(__file__).parent / "transcripts").glob("*.txt"))


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
def test_the_story_is_as_told(path: Path) -> None:
    told = path.read_text()
    found = story.execute(told)
    if os.environ.get("HOLDFAST_REWRITE"):
        path.write_text(found)
    else:
        assert found == told


def test_a_command_that_is_none_is_named() -> None:
    with pytest.raises(ConfigError, match="no command 'launch'"):
        story.execute("launch missiles\n----\n")
