"""One grammar of subjects: what is built is read again, ARCHITECTURE shows all of it, and nobody
else spells one."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import holdfast
from holdfast.engines.checks import check_subject
from holdfast.records import subjects

ROOT = Path(__file__).parents[2]
SOURCE = Path(holdfast.__file__).parent
PARTS: dict[str, Any] = {
    "cell": "g1c0",
    "registry": "g1reg",
    "prefix": "g1c0.17",
    "number": 17,
    "agent": "Counter/a",
    "unique": "17-3-1",
    "target": "g1c1",
    "source": "g1c0",
    "end": "42",
    "chain": "n-1-0",
    "slot": 5,
    "incarnation": "n-1",
    "what": "node-joined",
    "key": "n-2",
}
NAMES = {**PARTS, "shard": 17}


def built(name: str) -> str:
    """A subject, built by the function of this name."""
    function = getattr(subjects, name)
    given = {parameter: PARTS[parameter] for parameter in inspect.signature(function).parameters}
    found: str = function(**given)
    return found


def expected(name: str) -> str:
    """The same subject, by its pattern alone."""
    pattern = subjects.PATTERNS[name]
    if name == "relay":
        pattern = pattern.replace("<cell>", "<target>")
    return re.sub(r"<(\w+)>", lambda found: str(NAMES[found.group(1)]), pattern)


@pytest.mark.parametrize("name", subjects.PATTERNS)
def test_a_subject_is_built_as_its_pattern_says(name: str) -> None:
    assert built(name) == expected(name)
    check_subject(built(name))
    assert subjects.cell_of(built(name)) == built(name).partition(".")[0]


@pytest.mark.parametrize("name", subjects.PATTERNS)
def test_what_was_built_is_read_again(name: str) -> None:
    subject, pattern = built(name), subjects.PATTERNS[name].split(".")
    of_shard = pattern[1] == "<shard>"
    assert subjects.shard_of(subject) == (17 if of_shard else -1)
    assert subjects.kind_of(subject) == (pattern[2] if of_shard else "")
    assert subjects.word_of(subject) == ("17" if of_shard else pattern[1])
    assert subjects.is_record(subject) == (name == "record")
    assert subjects.is_pack(subject) == (name == "pack")
    assert subjects.is_ownership(subject) == (name in ("epoch", "settled"))
    if of_shard and "<agent>" in pattern:
        assert subjects.agent_of(subject) == "Counter/a"
    if name == "outbox":
        assert subjects.target_of(subject) == "g1c1"
    if name == "dead_letter":
        assert subjects.end_of(subject) == "42"
    if name in ("pack", "link"):
        assert subjects.chain_of(subject) == "n-1-0"


@pytest.mark.parametrize(
    "subject", ["g1c0.st.x", "g1c0.17", "g1c0.pk", "g1c0.17.in.Counter/a.st.1", "g1c0.17.pk.x"]
)
def test_what_only_looks_like_it_is_no_record_and_no_pack(subject: str) -> None:
    assert not subjects.is_record(subject) and not subjects.is_pack(subject)


def test_architecture_shows_every_subject() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    table = text[text.index("| subject | holds |") : text.index("On the bus:")]
    shown = re.findall(r"^\| `([^`]+)` \|", table, flags=re.MULTILINE)
    assert sorted(shown) == sorted(subjects.PATTERNS.values())


WORDS = {pattern.split(".")[2] for pattern in subjects.PATTERNS.values() if pattern.count(".") > 1}
WORDS |= {pattern.split(".")[1] for pattern in subjects.PATTERNS.values()}
WORDS = {word for word in WORDS if not word.startswith("<")}
OWN_GRAMMAR = ("testing", "bench")
"""Checkers know the log by themselves, so that one mistake does not hide another."""


def spelled(tree: ast.AST) -> list[str]:
    """The texts of f-strings, and constants, that hold a token of a subject between dots."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    pattern = re.compile(rf"\.({'|'.join(sorted(WORDS))})(\.|$)")
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in docstrings
        and " " not in node.value
        and pattern.search(node.value)
    ]


def test_nobody_else_spells_a_subject() -> None:
    found = {
        str(path.relative_to(SOURCE)): words
        for path in sorted(SOURCE.rglob("*.py"))
        if path.relative_to(SOURCE).parts[0] not in OWN_GRAMMAR and path.stem != "subjects"
        if (words := spelled(ast.parse(path.read_text())))
    }
    assert found == {}


def test_the_test_above_can_fail() -> None:
    tree = ast.parse('x = f"{cell}.{n}.st.{token}"\ny = "a.epoch"\nz = "st"')
    assert sorted(spelled(tree)) == [".st.", "a.epoch"]
