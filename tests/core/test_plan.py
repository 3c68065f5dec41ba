"""The planner's promises: bounded load, few moves, and one answer for one view.

Bounded: with at least 8 shards per node, the fullest node holds at most 1.25 times the mean. Few: a node that leaves
moves only what it held, a node that joins takes about its share, and a view that did not change moves nothing.
"""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.plan import targets

names = st.lists(st.text("abcdef0123456789-", min_size=1, max_size=14), min_size=1, max_size=24, unique=True)


def loads(plan: dict[int, str], nodes: list[str]) -> list[int]:
    return [sum(1 for owner in plan.values() if owner == node) for node in nodes]


def moved(before: dict[int, str], after: dict[int, str]) -> set[int]:
    return {shard for shard in before if before[shard] != after[shard]}


@given(nodes=names, per_node=st.integers(8, 20), data=st.data())
def test_load_is_bounded_whoever_owned_what(nodes: list[str], per_node: int, data: st.DataObject) -> None:
    shards = range(per_node * len(nodes) + data.draw(st.integers(0, 7)))
    former = [*nodes, "gone-1", "gone-2"]
    owners = {s: data.draw(st.sampled_from(former)) for s in data.draw(st.lists(st.sampled_from(shards), unique=True))}
    plan = targets(shards, nodes, owners)
    assert set(plan) == set(shards)
    assert set(plan.values()) <= set(nodes)
    assert max(loads(plan, nodes)) <= 1.25 * len(shards) / len(nodes)


@given(nodes=names, shards=st.integers(0, 60))
def test_with_few_shards_nobody_has_more_than_his_share_rounded_up(nodes: list[str], shards: int) -> None:
    plan = targets(range(shards), nodes, {})
    share = shards / len(nodes)
    assert max(loads(plan, nodes)) <= max(int(1.25 * share), -(-shards // len(nodes)))


@given(nodes=names, seed=st.integers())
def test_one_view_one_plan(nodes: list[str], seed: int) -> None:
    shards = range(8 * len(nodes))
    shuffled = Random(seed).sample(nodes, len(nodes))
    assert targets(shards, nodes, {}) == targets(shards, shuffled + nodes[:1], {})


@given(nodes=names)
def test_a_plan_is_at_rest(nodes: list[str]) -> None:
    shards = range(8 * len(nodes))
    plan = targets(shards, nodes, {})
    assert targets(shards, nodes, plan) == plan


@given(nodes=names.filter(lambda found: len(found) > 1), data=st.data())
def test_a_node_that_leaves_moves_what_it_held_and_little_else(nodes: list[str], data: st.DataObject) -> None:
    shards = range(8 * len(nodes))
    before = targets(shards, nodes, {})
    leaver = data.draw(st.sampled_from(nodes))
    after = targets(shards, [node for node in nodes if node != leaver], before)
    held = {shard for shard in before if before[shard] == leaver}
    assert held <= moved(before, after)
    # What else moves only fills nodes that are below their least.
    assert len(moved(before, after) - held) <= len(shards) // len(nodes)


@given(nodes=names)
def test_a_node_that_joins_takes_at_most_its_share(nodes: list[str]) -> None:
    shards = range(8 * (len(nodes) + 1))
    before = targets(shards, nodes, {})
    after = targets(shards, [*nodes, "joiner"], before)
    share = len(shards) / (len(nodes) + 1)
    gained = [shard for shard in moved(before, after) if after[shard] == "joiner"]
    assert int(share / 1.25) <= len(gained) <= 1.25 * share
    # Everything that moved without going to the joiner had to leave a node over its bound.
    assert len(moved(before, after)) <= 1.25 * share + len(nodes)


def test_no_nodes_no_targets() -> None:
    assert targets(range(8), [], {0: "gone"}) == {}


def test_no_shards() -> None:
    assert targets([], ["a", "b"], {}) == {}


def test_five_nodes_of_ten_thousand_shards() -> None:
    nodes = [f"n{index}" for index in range(4)]
    before = targets(range(10_000), nodes, {})
    after = targets(range(10_000), [*nodes, "n4"], before)
    assert len(moved(before, after)) <= 2_500
    assert max(loads(after, [*nodes, "n4"])) <= 2_500
