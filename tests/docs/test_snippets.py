"""Every example of README.md and docs/ runs; and the runner itself notices one that does not."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.docs.snippets import ROOT, Block, blocks, commands, pages, run_page


@pytest.mark.timeout(2700)
@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
async def test_the_examples_of_a_page_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    await run_page(page.read_text(), str(page.relative_to(ROOT)), tmp_path)


PAGE = """
# A page

```python
import asyncio
value = 20
```

Text between.

```python
await asyncio.sleep(0)
value += 1
open("made.txt", "w").write(str(value))
```

<!-- skip: it needs a cluster -->
```python
raise SystemExit
```

<!-- run -->
```console
$ test "$(cat made.txt)" = 21
21 is what it says
$ echo a \\
  b > said.txt
```

```console
$ false
```
"""


async def test_blocks_share_a_namespace_and_may_await(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert await run_page(PAGE, "page.md", tmp_path) == 3
    assert (tmp_path / "made.txt").read_text() == "21"
    assert (tmp_path / "said.txt").read_text() == "a b\n"


async def test_a_broken_example_is_noticed_with_the_pages_line(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        await run_page("one\n\n```python\nx = 1\nx / 0\n```\n", "page.md", tmp_path)
    assert caught.traceback[-1].lineno == 4  # counted from 0
    with pytest.raises(AssertionError, match=r"page\.md:3: `exit 3` ended with 3"):
        await run_page("<!-- run -->\n```console\n$ exit 3\n```\n", "page.md", tmp_path)


def test_a_comment_counts_only_right_before_its_block() -> None:
    page = "<!-- run -->\n\n```console\n$ a\n```\n\n<!-- run -->\nwords\n```console\n$ b\n```\n"
    assert blocks(page) == [Block("console", "$ a", 4, "run"), Block("console", "$ b", 10, "")]


def test_indented_and_long_fences() -> None:
    page = "1. item\n\n   ```python\n   x = 1\n   ```\n\n````text\n```python\n1/0\n```\n````\n"
    assert [(block.language, block.text) for block in blocks(page)] == [
        ("python", "x = 1"),
        ("text", "```python\n1/0\n```"),
    ]


def test_an_open_block_and_a_skip_without_reason_are_errors() -> None:
    with pytest.raises(ValueError, match="never closed"):
        blocks("```python\nx = 1\n")
    with pytest.raises(ValueError, match="say why"):
        blocks("<!-- skip -->\n```python\n```\n")


def test_commands_of_a_block() -> None:
    assert commands(Block("console", "$ one\noutput\n$ two \\\n  three", 1, "run")) == [
        "one",
        "two    three",
    ]
