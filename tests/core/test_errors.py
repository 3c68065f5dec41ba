"""Three families, and every error of the tree keeps its class and its text on the way to another
process."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast import errors
from holdfast.errors import (
    HandlerFailed,
    HoldfastError,
    Never,
    NotDone,
    Unknown,
    from_wire,
    to_wire,
)

FAMILIES = (NotDone, Unknown, Never)


def tree(root: type[HoldfastError]) -> list[type[HoldfastError]]:
    return [root] + [found for child in root.__subclasses__() for found in tree(child)]


ALL = [kind for kind in tree(HoldfastError) if kind.__module__ == errors.__name__]


@pytest.mark.parametrize("kind", ALL)
@given(text=st.text(max_size=50))
def test_class_and_text_survive_the_wire(kind: type[HoldfastError], text: str) -> None:
    back = from_wire(*to_wire(kind(text)))
    assert type(back) is kind
    assert str(back) == text


@given(st.text(), st.text(), st.text())
def test_a_failed_handler_keeps_what_it_raised(text: str, kind: str, details: str) -> None:
    back = from_wire(*to_wire(HandlerFailed(text, kind, details)))
    assert isinstance(back, HandlerFailed)
    assert (str(back), back.kind_of_error, back.details) == (text, kind, details)


@pytest.mark.parametrize(
    "name", ["KeyError", "", "HoldfastErrors", "NotAClassOfTheFuture", "object"]
)
def test_a_class_not_known_here_is_a_plain_error(name: str) -> None:
    back = from_wire(name, "text")
    assert type(back) is HoldfastError
    assert str(back) == "text"


def test_an_error_of_others_travels_as_a_plain_one() -> None:
    assert to_wire(KeyError("x")) == ("HoldfastError", "'x'", "", "")


@pytest.mark.parametrize("kind", ALL)
def test_each_is_in_one_family(kind: type[HoldfastError]) -> None:
    if kind is not HoldfastError:
        assert sum(issubclass(kind, family) for family in FAMILIES) == 1
    assert kind.__doc__


def test_the_drawn_tree_is_the_tree() -> None:
    drawn = re.findall(r"[├└]── (\w+)", errors.__doc__ or "")
    assert sorted(drawn) == sorted(kind.__name__ for kind in ALL if kind is not HoldfastError)
    depth: dict[str, int] = {
        match[2]: (len(match[1]) - 1) // 4
        for match in re.finditer(r"(?m)^    ([│ ]*[├└])── (\w+)", errors.__doc__ or "")
    }
    for kind in ALL[1:]:
        assert (
            depth[kind.__name__]
            == len([base for base in kind.__mro__ if issubclass(base, HoldfastError)]) - 2
        )
