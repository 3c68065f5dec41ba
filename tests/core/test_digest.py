"""The digest tells an index that lost a record, or holds an older one, from the one that the owner
had."""

from __future__ import annotations

from functools import reduce
from operator import xor

from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.digest import entry

indexes = st.dictionaries(
    st.text(min_size=1, max_size=20), st.integers(1, 2**63), min_size=1, max_size=30
)


def digest_of(index: dict[str, int]) -> int:
    return reduce(xor, (entry(token, sequence) for token, sequence in index.items()), 0)


@given(indexes, st.integers(1, 2**63))
def test_kept_step_by_step_it_equals_the_whole(index: dict[str, int], newer: int) -> None:
    digest = digest_of(index)
    token = min(index)
    digest ^= entry(token, index[token]) ^ entry(token, newer)
    assert digest == digest_of({**index, token: newer})
    digest ^= entry("new", 0) ^ entry("another", 7)
    assert digest == digest_of({**index, token: newer}) ^ entry("another", 7)


@given(indexes, st.data())
def test_a_lost_or_older_record_shows(index: dict[str, int], data: st.DataObject) -> None:
    token = data.draw(st.sampled_from(sorted(index)))
    older = data.draw(st.integers(0, index[token] - 1))
    shown = {**index, token: older}
    assert digest_of(shown) != digest_of(index)


def test_two_swapped_sequences_show() -> None:
    assert digest_of({"Counter/a": 5, "Counter/b": 9}) != digest_of(
        {"Counter/a": 9, "Counter/b": 5}
    )


def test_known_values_never_change() -> None:
    # Batches in logs carry these: another function would report every replica as diverged.
    assert entry("Counter/a", 0) == 0
    assert entry("Counter/a", 1) == 17812625683341209592
    assert entry("Zähler/é", 2**40) == 9879117700238498181


@given(st.text(max_size=50), st.integers(0, 2**64))
def test_it_is_64_bits(token: str, sequence: int) -> None:
    assert 0 <= entry(token, sequence) < 2**64
