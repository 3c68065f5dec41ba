"""The planner's promises: bounded load, few moves, and one answer for one view.

Bounded: with at least 8 shards per node, the fullest node holds at most 1.25 times the mean. Few: a
node that leaves moves only what it held, a node that joins takes about its share, and a view that
did not change moves nothing. Nobody owns what he does not serve; labels, cordons and newer states
are respected as long as there is a node that fits.
"""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.plan import Place, make, targets
from holdfast.core.pools import Pool, Space, Table, declare, empty

names = st.lists(
    st.text("abcdef0123456789-", min_size=1, max_size=14), min_size=1, max_size=24, unique=True
)


def loads(plan: dict[int, str], nodes: list[str]) -> list[int]:
    return [sum(1 for owner in plan.values() if owner == node) for node in nodes]


def moved(before: dict[int, str], after: dict[int, str]) -> set[int]:
    return {shard for shard in before if before[shard] != after[shard]}


@given(nodes=names, per_node=st.integers(8, 20), data=st.data())
def test_load_is_bounded_whoever_owned_what(
    nodes: list[str], per_node: int, data: st.DataObject
) -> None:
    shards = range(per_node * len(nodes) + data.draw(st.integers(0, 7)))
    former = [*nodes, "gone-1", "gone-2"]
    owners = {
        s: data.draw(st.sampled_from(former))
        for s in data.draw(st.lists(st.sampled_from(shards), unique=True))
    }
    plan = targets(shards, nodes, owners)
    assert set(plan) == set(shards)
    assert set(plan.values()) <= set(nodes)
    assert max(loads(plan, nodes)) <= 1.25 * len(shards) / len(nodes)


@given(nodes=names, shards=st.integers(0, 60))
def test_with_few_shards_nobody_has_more_than_his_share_rounded_up(
    nodes: list[str], shards: int
) -> None:
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
def test_a_node_that_leaves_moves_what_it_held_and_little_else(
    nodes: list[str], data: st.DataObject
) -> None:
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


def pairs(plan: dict[int, str], cells: int) -> int:
    return len({(node, shard % cells) for shard, node in plan.items()})


@given(nodes=names, cells=st.sampled_from([1, 3, 5]), per_node=st.integers(8, 40), data=st.data())
def test_with_cells_load_is_bounded_and_a_plan_is_at_rest(
    nodes: list[str], cells: int, per_node: int, data: st.DataObject
) -> None:
    shards = range(per_node * len(nodes) + data.draw(st.integers(0, 7)))
    owners = {
        s: data.draw(st.sampled_from([*nodes, "gone"]))
        for s in data.draw(st.lists(st.sampled_from(shards)))
    }
    plan = targets(shards, nodes, owners, cells=cells)
    assert set(plan) == set(shards)
    assert max(loads(plan, nodes)) <= 1.25 * len(shards) / len(nodes)
    assert targets(shards, nodes, plan, cells=cells) == plan


@given(count=st.integers(1, 12), cells=st.sampled_from([3, 5]), shards=st.sampled_from([128, 1024]))
def test_each_node_writes_to_few_cells(count: int, cells: int, shards: int) -> None:
    nodes = [f"n{number}" for number in range(count)]
    plan = targets(range(shards), nodes, {}, cells=cells)
    assert pairs(plan, cells) <= count + cells - 1
    # A node that is lost and comes back leaves it so.
    without = targets(range(shards), nodes[1:], plan, cells=cells)
    again = targets(range(shards), nodes, without or plan, cells=cells)
    assert pairs(again, cells) <= count + cells + 2


def test_a_joining_node_gets_a_cell_of_its_own() -> None:
    plan: dict[int, str] = {}
    for count in (1, 2, 3):
        plan = targets(range(128), [f"n{number}" for number in range(count)], plan, cells=3)
    assert pairs(plan, 3) == 3


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


# All pools at once --------------------------------------------------------------------------------


@st.composite
def clusters(draw: st.DrawFn) -> tuple[Table, list[Place]]:
    """Some pools with their kinds, and nodes that serve some of the kinds."""
    table = empty(draw(st.integers(1, 16)))
    kinds: dict[str, Pool | str] = {"A": "main", "B": "main"}
    for name in draw(st.lists(st.sampled_from(["gpu", "far", "solo"]), unique=True)):
        labels = draw(st.frozensets(st.sampled_from(["gpu", "eu"]), max_size=2))
        kinds[name.upper()] = Pool(
            name=name,
            shards=draw(st.integers(1, 9)),
            labels=labels,
            standbys=draw(st.integers(0, 2)),
        )
    table = declare(table, kinds)
    places = []
    for number in range(draw(st.integers(0, 7))):
        serves = {kind: draw(st.integers(1, 2)) for kind in kinds if draw(st.integers(0, 5))}
        labels = draw(st.sets(st.sampled_from(["gpu", "eu"])))
        capacity = draw(st.sampled_from([0.5, 1.0, 4.0]))
        host = f"h{draw(st.integers(1, 3))}"
        places.append(
            Place(f"n{number}", host, serves, tuple(labels), capacity, draw(st.integers(0, 3)) == 0)
        )
    return table, places


@given(cluster=clusters(), seed=st.integers())
def test_a_plan_respects_what_nodes_are(cluster: tuple[Table, list[Place]], seed: int) -> None:
    random = Random(seed)
    table, places = cluster
    names = [place.name for place in places]
    numbers = range(table.shards)
    owners = {n: random.choice([*names, "gone", ""]) for n in numbers}
    warm = {n: random.choices([*names, "gone"], k=random.randrange(3)) for n in numbers}
    made = make(table, places, owners, warm)
    of = {place.name: place for place in places}
    for pool in table.pools:
        kinds = {kind for place in places for kind in place.kinds if table.kinds[kind] == pool.name}
        able = [
            place
            for place in places
            if kinds
            and len(kinds & place.kinds.keys()) == max(len(kinds & p.kinds.keys()) for p in places)
        ]
        found = {made.owners.get(number) for number in pool.numbers}
        if not able:
            assert found == {None}
            continue
        assert found <= {place.name for place in able}, "a node owns what it does not serve"
        free = [place for place in able if not place.cordoned]
        fitting = [place for place in free if set(pool.labels) <= set(place.labels)]
        labelled = [place for place in able if set(pool.labels) <= set(place.labels)]
        candidates = fitting or free or labelled or able
        if free:
            assert not any(of[name].cordoned for name in found if name), (
                "a cordoned node owns a shard"
            )
        if fitting:
            assert found <= {place.name for place in fitting}, "a label was not respected"
        assert (pool.name in made.unfit) == (
            (bool(free) and not fitting) or not any(set(pool.labels) <= set(p.labels) for p in able)
        )
        # Among those that may own it: who was cordoned gives its shards away to whoever is there.
        newest = {kind: max(place.kinds.get(kind, 0) for place in candidates) for kind in kinds}
        behind = {
            p.name for p in candidates if any(p.kinds.get(k, newest[k]) < newest[k] for k in kinds)
        }
        for number in pool.numbers:
            owner = of[made.owners[number]]
            if owner.name in behind and owner.name != owners[number]:
                assert len(behind) == len(candidates), (
                    "an older node was given a shard that a newer one may have written"
                )
            standbys_ = made.standbys.get(number, [])
            assert (
                owner.name not in standbys_
                and len(standbys_) == len(set(standbys_)) <= pool.standbys
            )
            others = {p.host for p in candidates} - {owner.host}
            if pool.standbys and others and len(candidates) > 1:
                assert standbys_ and of[standbys_[0]].host != owner.host, (
                    "a standby on its owner's own host"
                )


@given(names, st.data())
def test_capacity_decides_the_share(nodes: list[str], data: st.DataObject) -> None:
    capacity = {node: data.draw(st.sampled_from([0.5, 1.0, 2.0, 4.0])) for node in nodes}
    shards = range(40 * len(nodes))
    plan = targets(shards, capacity, {})
    for node, load in zip(nodes, loads(plan, nodes), strict=True):
        share = len(shards) * capacity[node] / sum(capacity.values())
        assert int(share / 1.25) <= load <= max(int(share * 1.25), int(share) + 1)


@given(nodes=names.filter(lambda found: len(found) > 1), data=st.data())
def test_a_shard_whose_owner_is_gone_goes_to_who_has_it_warm(
    nodes: list[str], data: st.DataObject
) -> None:
    shards = range(16 * len(nodes))
    before = targets(shards, nodes, {})
    leaver = data.draw(st.sampled_from(nodes))
    rest = [node for node in nodes if node != leaver]
    held = [shard for shard in shards if before[shard] == leaver]
    some = held[: len(held) // (4 * len(rest)) or 1]
    warm = {shard: [data.draw(st.sampled_from(rest))] for shard in some}
    after = targets(shards, rest, before, warm)
    kept = sum(after[shard] == warm[shard][0] for shard in some)
    assert kept == len(some) or max(loads(after, rest)) >= len(shards) / len(rest)


@given(cluster=clusters(), seed=st.integers())
def test_two_planners_do_not_duel(cluster: tuple[Table, list[Place]], seed: int) -> None:
    """Who follows a plan, and plans again, wants nothing else; whoever owned what before."""
    table, places = cluster
    random = Random(seed)
    names = [place.name for place in places]
    for owners in ({}, {n: random.choice([*names, "gone", ""]) for n in range(table.shards)}):
        first = make(table, places, owners, {})
        assert make(table, places, first.owners, first.standbys) == first


@given(st.text(min_size=1, max_size=20), st.integers(1, 300), st.integers(1, 20))
def test_an_agents_shard_never_changes_when_pools_come(name: str, shards: int, more: int) -> None:
    before = Space(declare(empty(shards), {"A": "main"}))
    after = Space(
        declare(before.table, {"B": Pool(name="b", shards=more), "C": Pool(name="c", shards=3)})
    )
    token = f"A/{name}"
    assert before.shard_of(token) == after.shard_of(token) < shards
    assert (
        shards
        <= after.shard_of(f"B/{name}")
        < shards + more
        <= after.shard_of(f"C/{name}")
        < after.shards
    )
