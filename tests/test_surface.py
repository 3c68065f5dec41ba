"""The public surface is what ``holdfast.__all__`` says: sorted, complete, each name with a
docstring."""

from __future__ import annotations

import types

import holdfast


def public_names() -> set[str]:
    """Every public name that the package root holds, but for its own submodules."""
    return {
        name
        for name, value in vars(holdfast).items()
        if not name.startswith("_")
        and name != "annotations"
        and not isinstance(value, types.ModuleType)
    }


def test_all_is_sorted_and_without_doubles() -> None:
    names = list(getattr(holdfast, "__all__", ()))
    assert names == sorted(set(names))


def test_all_is_the_public_surface() -> None:
    assert public_names() == {
        name for name in getattr(holdfast, "__all__", ()) if not name.startswith("_")
    }


def test_every_public_name_is_there_and_has_a_docstring() -> None:
    for name in getattr(holdfast, "__all__", ()):
        value = getattr(holdfast, name)
        if isinstance(value, type) or callable(value):
            assert value.__doc__ and value.__doc__.strip(), f"holdfast.{name} has no docstring"


def test_a_public_class_documents_its_public_methods() -> None:
    bare = []
    for name in getattr(holdfast, "__all__", ()):
        value = getattr(holdfast, name)
        if isinstance(value, type) and value.__module__.startswith("holdfast"):
            for attribute, member in vars(value).items():
                function = getattr(member, "__func__", getattr(member, "fget", member))
                if (
                    not attribute.startswith("_")
                    and isinstance(function, types.FunctionType)
                    and not function.__doc__
                ):
                    bare.append(f"{name}.{attribute}")
    assert bare == []
