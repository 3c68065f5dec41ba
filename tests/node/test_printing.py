"""Users' text is data in every terminal: no markup, no control characters, no folded ids; `--json`
is JSON for every value."""

from __future__ import annotations

import ast
import datetime
import decimal
import io
import json
import math
import os
import pty
import subprocess
import sys
import uuid
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as some

import holdfast
from holdfast.cli import printing
from holdfast.cli.printing import (
    Styled,
    Table,
    bold,
    cut,
    json_text,
    plain,
    shown,
    visible,
    width_of,
)

CLI = Path(holdfast.__file__).parent / "cli"
PRINTS = {
    "print",
    "echo",
    "secho",
    "Console",
    "pprint",
    "write",
    "writelines",
    "rprint",
    "progressbar",
}

NASTY = [
    "[/x]",
    "[bold red]x[/]",
    "[link=http://evil.example]x[/link]",
    "[/INST] please",
    "\x1b[2J\x1b]52;c;ZXZpbA==\x07",
    "\x9b31m",
    "one\rtwo",
    "one\nholdfast: all is well",
    "a\u202egpj.exe",
    "zero\u200bwidth\ufeff",
    "tab\tbell\x07del\x7f",
    "line\u2028separator\x85next",
    ":smile: https://x.example 12 None",
    "%s {0} \\x1b \\n",
    "x" * 3000,
    "日本語 é",
]


def seen(*parts: Any, **more: Any) -> str:
    """What is printed, where nobody's terminal is."""
    kept, sys.stdout = sys.stdout, io.StringIO()
    try:
        printing.out.print(*parts, **more)
        return sys.stdout.getvalue()
    finally:
        sys.stdout = kept


def calls(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Of each call: what it is called on, and its name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                yield "", node.func.id
            elif isinstance(node.func, ast.Attribute):
                yield ast.unparse(node.func.value), node.func.attr


def test_nothing_else_in_the_cli_prints() -> None:
    for path in sorted(CLI.rglob("*.py")):
        if path.name == "printing.py":
            continue
        tree = ast.parse(path.read_text())
        found = [
            f"{on}.{name}"
            for on, name in calls(tree)
            if name in PRINTS and on not in ("out", "problems")
        ]
        assert found == [], path.name
        names = {
            alias.name.split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        froms = {
            str(node.module).split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
        }
        assert not {"rich", "click"} & (names | froms), path.name
        assert "sys.stdout" not in ast.unparse(tree) and "sys.stderr" not in ast.unparse(tree), (
            path.name
        )
    assert list(calls(ast.parse("typer.echo(1); print(2)"))) == [("typer", "echo"), ("", "print")]


@pytest.mark.parametrize("text", NASTY)
def test_a_line_is_one_line_and_has_nothing_that_cannot_be_seen(text: str) -> None:
    for line in (seen(text), seen(bold(text)), seen("name ", Styled(text, "red"), "")):
        assert line.count("\n") == 1 and line[:-1].isprintable()
    if text.isprintable():
        assert seen(text) == text + "\n"
    table = Table("NAME", "#N", "~TEXT")
    table.add_row(text, "1", text)
    table.add_row("short", "22", "x")
    lines = seen(table).splitlines()
    assert len(lines) == 3 and all(line.isprintable() for line in lines)
    assert visible(text) in lines[1]


@given(some.text())
def test_whatever_the_text_it_is_seen_and_whole(text: str) -> None:
    assert visible(text).isprintable()
    assert visible(visible(text)) == visible(text)
    assert cut(visible(text), 10_000) == visible(text)
    assert width_of(cut(visible(text), 5)) <= 5


def test_lines_after_the_first_of_a_block_are_indented(capsys: pytest.CaptureFixture[str]) -> None:
    printing.problems.block("first\nNotFound: of somebody else\r\n\x1b[A", "BadState", ": ")
    assert capsys.readouterr().err == "BadState: first\n  NotFound: of somebody else\n  \\x1b[A\n"


def test_free_text_is_cut_and_ids_are_not() -> None:
    table = Table("ID", "~TEXT", "#N")
    table.add_row("i" * 300, "t" * 1000, "7")
    (_, row) = [
        "".join(part if isinstance(part, str) else part.text for part in line)
        for line in table.lines(80)
    ]
    assert "i" * 300 in row and row.count("t") == 11 and "…" in row and row.endswith("7")
    assert seen(table).count("t") == 199


class Colour(Enum):
    RED = "red"


VALUES: list[tuple[Any, Any]] = [
    (math.nan, "NaN"),
    (-math.inf, "-Infinity"),
    ([math.inf, 1.5], ["Infinity", 1.5]),
    ({2: "a", None: "b", True: "c"}, {"2": "a", "null": "b", "true": "c"}),
    ({(1, "a"): 2}, {'[1, "a"]': 2}),
    ({1: "int", "1": "text"}, [[1, "int"], ["1", "text"]]),
    ({b"k": b"\xff\x00"}, {"aw==": "/wA="}),
    ({3, 1}, [1, 3]),
    (frozenset({"b", 1}), ["b", 1]),
    ((1, (2,)), [1, [2]]),
    (Colour.RED, "red"),
    (10**5000, hex(10**5000)),
    (2**70, 2**70),
    (decimal.Decimal("1.50"), "1.50"),
    (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    (datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), "2026-01-02T00:00:00Z"),
    (numpy.array([[1.0, numpy.nan]]), [[1.0, "NaN"]]),
    (numpy.float32(numpy.inf), "Infinity"),
    (numpy.array([1 + 2j]), ["(1+2j)"]),
    (numpy.array([b"\xff"]), ["/w=="]),
    ("\ud800 lone", "\\ud800 lone"),
    (3 + 4j, "(3+4j)"),
    (object, "<class 'object'>"),
]


@pytest.mark.parametrize("value, wanted", VALUES, ids=range(len(VALUES)))
def test_every_value_is_json(value: Any, wanted: Any) -> None:
    def refuse(text: str) -> None:
        raise AssertionError(text)

    if isinstance(wanted, list):
        assert sorted(map(str, plain(value))) == sorted(map(str, wanted))
    else:
        assert plain(value) == wanted
    json.loads(json_text({"value": value}), parse_constant=refuse)
    assert shown(value).isprintable() or isinstance(value, str)


@pytest.mark.parametrize("text", NASTY)
def test_json_shows_nothing_that_cannot_be_seen_and_loses_nothing(text: str) -> None:
    written = json_text({text: [text]})
    assert written.replace("\n", "").isprintable()
    assert json.loads(written) == {text: [text]}


def test_a_value_that_is_nested_too_deeply_is_still_json() -> None:
    value: Any = 1
    for _ in range(5000):
        value = [value]
    assert "too deeply" in json_text(value)


def test_an_output_without_these_characters_is_no_error() -> None:
    program = "from holdfast.cli.printing import out; out.print('é … \\U0001f600'); out.json('é')"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "\\xe9 \\u2026 \\U0001f600\n" + '"\\xe9"\n'


def test_on_a_terminal_there_are_colours_but_none_of_the_users() -> None:
    program = (
        "from holdfast.cli.printing import Table, bold, out; out.print(bold('name'), ' \\x1b[31m');"
        "t = Table('ID', '~T'); t.add_row('i' * 200, 'x' * 500); out.print(t)"
    )
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    environment.pop("NO_COLOR", None)
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, stdout=theirs, timeout=400
    )
    os.close(theirs)
    text = b""
    while chunk := _read(ours):
        text += chunk
    os.close(ours)
    assert done.returncode == 0
    assert text.startswith(b"\x1b[1mname\x1b[0m \\x1b[31m\r\n")
    assert b"i" * 200 in text and b"x" * 11 + "…".encode() in text and text.count(b"\r\n") == 3


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # the other side is closed
        return b""


@pytest.mark.parametrize(
    "seconds", [0.0, 1.8e9, -1.0, math.nan, math.inf, -math.inf, 1e300, 2.0**63]
)
def test_a_moment_that_no_calendar_has_is_printed_as_well(seconds: float) -> None:
    assert printing.moment(seconds).isprintable() and printing.moment(seconds)
