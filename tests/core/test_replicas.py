"""A record is judged by the majority. Held here: who is called wrong differs from an intact
majority; where there is none, nobody is; and a replica is thrown away only where a majority of
verified good ones is left."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.replicas import Mark, Verdict, judge, majority, may_rebuild, spans

MARKS = st.one_of(st.none(), st.builds(Mark, st.integers(0, 2), st.booleans()))
COPIES = st.sampled_from([1, 3, 5])


@given(COPIES, st.data())
def test_a_verdict_names_those_that_differ_from_an_intact_majority(
    copies: int, data: st.DataObject
) -> None:
    shown = data.draw(st.lists(MARKS, min_size=1, max_size=copies))
    marks = {f"s{n}": mark for n, mark in enumerate(shown)}
    verdict = judge(marks, copies)
    most, count = Counter(shown).most_common(1)[0]
    wrong = {*verdict.missing, *verdict.altered, *verdict.surplus}
    if count >= majority(copies) and (most is None or most.intact):
        assert not verdict.undecided
        assert wrong == {server for server, mark in marks.items() if mark != most}
        assert all(marks[server] is None for server in verdict.missing)
        assert all(marks[server] is not None for server in (*verdict.altered, *verdict.surplus))
    else:
        assert verdict == Verdict(undecided=True)


def test_examples() -> None:
    good, other, broken = Mark(1, True), Mark(2, True), Mark(1, False)
    assert judge({"a": good, "b": good, "c": None}, 3) == Verdict(missing=("c",))
    assert judge({"a": good, "b": other, "c": good}, 3) == Verdict(altered=("b",))
    assert judge({"a": None, "b": None, "c": good}, 3) == Verdict(surplus=("c",))
    assert judge({"a": good, "b": other, "c": None}, 3).undecided
    assert judge({"a": broken, "b": broken, "c": broken}, 3).undecided
    assert judge({"a": good, "b": None}, 3).undecided  # one of three was not read


@given(COPIES, st.sets(st.integers(0, 4)), st.sets(st.integers(0, 4)), st.booleans())
def test_a_majority_of_verified_good_ones_is_left(
    copies: int, bad: set[int], unread: set[int], unsure: bool
) -> None:
    names = [f"s{n}" for n in range(copies)]
    diverged, missing = ({f"s{n}" for n in some if n < copies} for some in (bad, unread))
    for server in names:
        if may_rebuild(server, copies, diverged, missing, unsure):
            assert not unsure
            assert len(set(names) - diverged - missing - {server}) >= majority(copies)


def test_a_single_copy_is_never_thrown_away() -> None:
    assert not may_rebuild("s0", 1, ["s0"], [], False)
    assert may_rebuild("s0", 3, ["s0"], [], False)
    assert not may_rebuild("s0", 3, ["s0", "s1"], [], False)
    assert may_rebuild("s0", 5, ["s0", "s1"], [], False)


@given(st.sets(st.integers(1, 60)))
def test_spans_name_all_sequences(sequences: set[int]) -> None:
    found = [span.partition("-")[::2] for span in spans(sequences, 100)]
    assert {
        n for first, last in found for n in range(int(first), int(last or first) + 1)
    } == sequences
    assert len(spans(sequences, 3)) <= 4
