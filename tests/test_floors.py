"""What the import linter cannot say about the floors: where an import stands, and what it is for.

`.importlinter` holds the order of the floors. Here: no first-party import inside a function (it
hides a cycle), nobody imports the package root (it imports everything), and `core` knows `random`
only as the type of an argument.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import holdfast

SOURCE = Path(holdfast.__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))
ATTRIBUTES_MAX = 15
"""Of one class: one with more does several things."""

LARGE = {
    "Activation": 44,
    "Ownership": 33,
    "Runtime": 21,
    "Shard": 32,
    "Liveness": 25,
    "Membership": 25,
    "Host": 24,
    "Kind": 22,
    "Router": 22,
    "Committer": 20,
    "Method": 19,
    "Writer": 18,
    "Tail": 18,
    "Watch": 17,
    "Registry": 16,
    "Batch": 16,
    "Baseline": 16,
}
"""Classes that have more. A number here may only get smaller, and a class may only leave."""


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def name_of(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def first_party(node: ast.AST) -> bool:
    if isinstance(node, ast.Import):
        return any(alias.name.split(".")[0] == "holdfast" for alias in node.names)
    return isinstance(node, ast.ImportFrom) and (
        node.level > 0 or (node.module or "").split(".")[0] == "holdfast"
    )


def imports_in_functions(tree: ast.AST) -> Iterator[ast.AST]:
    for function in ast.walk(tree):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from (node for node in ast.walk(function) if first_party(node))


def root_imports(tree: ast.AST, submodules: set[str]) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and any(alias.name == "holdfast" for alias in node.names):
            yield node
        if isinstance(node, ast.ImportFrom) and (
            node.level > 0
            or (
                node.module == "holdfast"
                and any(alias.name not in submodules for alias in node.names)
            )
        ):
            yield node


def imports_of(tree: ast.Module, module: str, type_checking: bool) -> Iterator[ast.AST]:
    """Imports of a module, but for those under ``if TYPE_CHECKING`` where ``type_checking``."""
    skipped: set[ast.AST] = set()
    if type_checking:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) in (
                "TYPE_CHECKING",
                "typing.TYPE_CHECKING",
            ):
                skipped.update(inner for statement in node.body for inner in ast.walk(statement))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import) and any(
            alias.name.split(".")[0] == module for alias in node.names
        ):
            yield node
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == module:
            yield node


def test_the_source_was_found() -> None:
    assert len(MODULES) > 20


def test_first_party_imports_stand_at_the_top() -> None:
    found = [
        f"{name_of(path)}:{node.lineno}"  # type: ignore[attr-defined]
        for path in MODULES
        for node in imports_in_functions(parsed(path))
    ]
    assert found == []


def test_nobody_imports_the_package_root() -> None:
    submodules = {path.stem for path in SOURCE.glob("*.py")} | {
        path.name for path in SOURCE.iterdir() if path.is_dir()
    }
    found = [
        f"{name_of(path)}:{node.lineno}"  # type: ignore[attr-defined]
        for path in MODULES
        if path != SOURCE / "__init__.py"
        for node in root_imports(parsed(path), submodules)
    ]
    assert found == []


def test_core_knows_random_only_as_a_type() -> None:
    found = [
        f"{name_of(path)}:{node.lineno}"  # type: ignore[attr-defined]
        for path in sorted((SOURCE / "core").rglob("*.py"))
        for node in imports_of(parsed(path), "random", type_checking=True)
    ]
    assert found == []


def test_every_module_says_why_it_is_there() -> None:
    assert [name_of(path) for path in MODULES if not ast.get_docstring(parsed(path))] == []


def attributes(cls: ast.ClassDef) -> set[str]:
    """What instances are given in any method of their class."""
    targets: list[ast.expr] = []
    for node in ast.walk(cls):
        if isinstance(node, ast.Assign):
            targets += node.targets
        elif isinstance(node, (ast.AnnAssign, ast.AugAssign)):
            targets.append(node.target)
    inner = [node for target in targets for node in ast.walk(target)]
    return {
        node.attr
        for node in inner
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }


def test_no_class_has_more_attributes_than_it_had() -> None:
    found = {
        node.name: len(attributes(node))
        for path in MODULES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ClassDef) and len(attributes(node)) > ATTRIBUTES_MAX
    }
    assert found == LARGE


def test_nothing_is_pickled() -> None:
    found = [
        name_of(path)
        for path in MODULES
        for module in ("pickle", "cloudpickle", "dill", "marshal", "shelve")
        for _ in imports_of(parsed(path), module, type_checking=False)
    ]
    assert found == []


def test_the_tests_above_can_fail() -> None:
    tree = ast.parse(
        "def f():\n    from holdfast import codec\nfrom holdfast import Node\nfrom random import "
        "Random\n"
    )
    assert len(list(imports_in_functions(tree))) == 1
    assert len(list(root_imports(tree, {"codec"}))) == 1
    assert len(list(imports_of(tree, "random", type_checking=True))) == 1
    cls = ast.parse(
        "class A:\n def f(self):\n  self.a: int = 1\n  self.b, self.c = 1, 2\n  self.d.e = 3"
    ).body[0]
    assert isinstance(cls, ast.ClassDef) and attributes(cls) == {"a", "b", "c"}
    assert not list(
        imports_of(ast.parse("if TYPE_CHECKING:\n    import random"), "random", type_checking=True)
    )
