"""Backoff grows, stays inside its bounds whatever the attempt, and is a function of the generator
that it is given."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from holdfast import limits
from holdfast.core.backoff import delay_seconds


@given(attempt=st.integers(1, 10**9), seed=st.integers(), most=st.floats(0.0, 100.0))
def test_within_its_bounds(attempt: int, seed: int, most: float) -> None:
    delay = delay_seconds(attempt, Random(seed), most)
    assert limits.BACKOFF_SECONDS_MIN <= delay <= max(most, limits.BACKOFF_SECONDS_MIN)


@given(attempt=st.integers(1, 50), seed=st.integers())
def test_the_same_generator_gives_the_same_delay(attempt: int, seed: int) -> None:
    assert delay_seconds(attempt, Random(seed)) == delay_seconds(attempt, Random(seed))


def test_it_grows_and_is_spread() -> None:
    random = Random(1)
    means = [
        sum(delay_seconds(attempt, random) for _ in range(500)) / 500 for attempt in range(1, 8)
    ]
    assert means == sorted(means)
    assert means[-1] > means[0] * 10
    assert len({delay_seconds(5, random) for _ in range(100)}) > 90
