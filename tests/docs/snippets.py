"""Finds and runs the examples in the docs, so that no page shows code that does not work.

Every ``python`` block of a page runs, in order, in one namespace, with top-level ``await`` allowed,
in an empty directory. ``<!-- skip: why -->`` on the line before a block leaves it out. A
``console`` block runs only behind ``<!-- run -->``: its lines that begin with ``$ `` are given to
the shell and must end with 0.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from tests.patience import PATIENT_SECONDS, children_wait

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^(?P<indent> *)(?P<marks>`{3,})(?P<language>[\w+-]*)[^`\n]*$")
_COMMENT = re.compile(r"^\s*<!--\s*(?P<word>run|skip)(?::\s*(?P<why>.+?))?\s*-->\s*$")
COMMAND_SECONDS = 250


class Block(NamedTuple):
    """A fenced block: its language, its text, the line it begins on, and the word of the comment
    before it."""

    language: str
    text: str
    line: int
    word: str


def pages() -> list[Path]:
    """README.md and every page of docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page. Raises ValueError for one that is not closed, or a skip without
    a reason."""
    found: list[Block] = []
    word, opened, body, start = "", None, [], 0
    for number, line in enumerate(text.splitlines(), 1):
        if opened is not None:
            if line.strip() == opened["marks"]:
                indent = len(opened["indent"])
                found.append(
                    Block(
                        opened["language"], "\n".join(part[indent:] for part in body), start, word
                    )
                )
                opened, body, word = None, [], ""
            else:
                body.append(line)
        elif fence := _FENCE.match(line):
            opened, start = fence, number + 1
        elif comment := _COMMENT.match(line):
            word = comment["word"]
            if word == "skip" and not comment["why"]:
                raise ValueError(f"line {number}: say why the block is skipped: <!-- skip: why -->")
        elif line.strip():
            word = ""
    if opened is not None:
        raise ValueError(f"line {start - 1}: a block that is never closed")
    return found


def commands(block: Block) -> list[str]:
    """The commands of a console block; a line that ends with a backslash goes on in the next."""
    joined = block.text.replace("\\\n", " ")
    return [line[2:] for line in joined.splitlines() if line.startswith("$ ")]


def environment(directory: Path) -> dict[str, str]:
    """This process's environment, with this Python's scripts first on PATH, a home of its own, and
    time for each command."""
    scripts = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "PATH": scripts + os.pathsep + os.environ.get("PATH", ""),
        "HOME": str(directory),
        **children_wait("holdfast.cli.bounds:COMMAND_SECONDS", PATIENT_SECONDS),
    }


async def run_page(text: str, name: str, directory: Path) -> int:
    """Run all blocks of a page that are to run, in order; returns how many did. Errors name the
    page's own lines."""
    namespace: dict[str, Any] = {"__name__": "__main__", "__file__": str(directory / "page.py")}
    done = 0
    for block in blocks(text):
        if block.language == "python" and block.word != "skip":
            # Line numbers are the page's own.
            source = "\n" * (block.line - 1) + block.text
            code = compile(
                source, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True
            )
            result = eval(code, namespace)
            if inspect.isawaitable(result):
                await result
            done += 1
        elif block.language == "console" and block.word == "run":
            for command in commands(block):
                await asyncio.to_thread(_shell, command, directory, f"{name}:{block.line}")
            done += 1
    return done


def _shell(command: str, directory: Path, where: str) -> None:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=directory,
        env=environment(directory),
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )
    assert done.returncode == 0, (
        f"{where}: `{command}` ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    )
