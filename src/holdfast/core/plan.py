"""Which node should own which shard, and which keep it warm: rendezvous hashing with bounded load.

Each shard ranks the nodes by a hash of (shard, node) and goes to the first that still has room; room is a node's share of
the load (by its capacity) times 1.25. A node that joins or leaves moves only the shards that it takes or held, and few
others. Nodes that own a shard now keep it where the bound allows, so that two plans from two views differ little; where
an owner is gone, a node that has the shard warm is preferred.

Sources: Thaler and Ravishankar, "Using name-based mappings to increase hit rates"; Mirrokni, Thorup and Zadimoghaddam,
"Consistent Hashing with Bounded Loads".
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple
from zlib import crc32

from holdfast.core.pools import PoolRecord, Table

LOAD_MAX = 1.25
_NOBODY: frozenset[str] = frozenset()


class Place(NamedTuple):
    """A node, as the plan sees it. ``kinds``: what it serves, with the state version that it writes."""

    name: str
    host: str = ""
    kinds: Mapping[str, int] = {}
    labels: Collection[str] = ()
    capacity: float = 1.0
    cordoned: bool = False


class Plan(NamedTuple):
    """Per shard its wanted owner, and the nodes that should keep it warm. ``unfit``: pools whose labels no node has."""

    owners: dict[int, str]
    standbys: dict[int, list[str]]
    unfit: list[str]


def make(table: Table, places: Sequence[Place], owners: Mapping[int, str], warm: Mapping[int, Collection[str]]) -> Plan:
    """The plan for all pools, from who is there, who owns what (also nodes that are gone), and who has what warm."""
    plan = Plan({}, {}, [])
    for pool in table.pools:
        nodes, fits = eligible(table, pool, places)
        if not fits:
            plan.unfit.append(pool.name)
        capacity = {node.name: node.capacity for node in nodes}
        wanted = targets(pool.numbers, capacity, owners, warm, older(table, pool, nodes))
        plan.owners.update(wanted)
        if pool.standbys:
            plan.standbys.update(standbys(pool.numbers, pool.standbys, nodes, wanted, warm))
    return plan


def eligible(table: Table, pool: PoolRecord, places: Sequence[Place]) -> tuple[list[Place], bool]:
    """The nodes that may own a pool's shards, and whether they have its labels.

    They serve every kind of the pool that anybody serves, or most of them. A label gives way where nobody has it who is
    not cordoned, and a cordon where nobody else is left; what a node serves never does.
    """
    kinds = _kinds(table, pool, places)
    able = [len(kinds & place.kinds.keys()) for place in places]
    most = max(able, default=0)
    serving = [place for place, count in zip(places, able, strict=True) if count == most and most > 0]
    labelled = [place for place in serving if set(pool.labels) <= set(place.labels)]
    for some in (labelled, serving):
        free = [place for place in some if not place.cordoned]
        if free:
            return free, some is labelled
    return labelled or serving, bool(labelled) or not serving


def _kinds(table: Table, pool: PoolRecord, places: Iterable[Place]) -> set[str]:
    return {kind for place in places for kind in place.kinds if table.kinds.get(kind) == pool.name}


def older(table: Table, pool: PoolRecord, nodes: Sequence[Place]) -> set[str]:
    """The nodes that write an older state than others do: they may keep shards, but are given none.

    Who owns a shard that a newer node has written could not read its agents.
    """
    kinds = _kinds(table, pool, nodes)
    newest = {kind: max(node.kinds.get(kind, 0) for node in nodes) for kind in kinds}
    behind = {node.name for node in nodes if any(node.kinds.get(kind, newest[kind]) < newest[kind] for kind in kinds)}
    return behind if len(behind) < len(nodes) else set()


def targets(
    shards: Sequence[int],
    nodes: Mapping[str, float] | Iterable[str],
    owners: Mapping[int, str],
    warm: Mapping[int, Collection[str]] | None = None,
    keepers: Collection[str] = (),
) -> dict[int, str]:
    """The node wanted for each shard. ``nodes``: with their capacities. No nodes: no targets.

    ``keepers``: nodes that are given no shard that they do not own.
    """
    capacity = dict(nodes) if isinstance(nodes, Mapping) else dict.fromkeys(nodes, 1.0)
    if not capacity:
        return {}
    members = sorted(capacity)
    takers = [node for node in members if node not in keepers] or members
    total = sum(capacity.values())
    share = {node: len(shards) * capacity[node] / total for node in members}
    room = {node: max(math.floor(share[node] * LOAD_MAX), math.ceil(share[node])) for node in members}
    # The fewest that a node must have; what owners hold above it may be moved to those below it.
    least = {node: math.floor(share[node] / LOAD_MAX) for node in members}
    # What keepers hold is not there for the others, who have to take all the rest.
    kept = dict.fromkeys(members, 0)
    for shard in shards:
        if (owner := owners.get(shard)) in kept and owner not in takers:
            kept[owner] = min(kept[owner] + 1, room[owner])
    rest = (len(shards) - sum(kept.values())) / sum(capacity[node] for node in takers)
    for node in takers:
        room[node] = max(room[node], math.floor(rest * capacity[node] * LOAD_MAX), math.ceil(rest * capacity[node]))
    found: dict[int, str] = {}
    load = dict.fromkeys(members, 0)

    def put(shard: int, node: str) -> None:
        found[shard] = node
        load[node] += 1

    for shard in shards:
        owner = owners.get(shard)
        if owner is not None and owner in load and load[owner] < room[owner]:
            put(shard, owner)
    for shard in shards:
        if shard in found:
            continue
        open_to = [node for node in takers if load[node] < room[node]]
        ready = [node for node in open_to if node in (warm or {}).get(shard, _NOBODY)]
        if not ready:
            lightest = min(load[node] / share[node] for node in open_to)
            ready = [n for n in open_to if load[n] < least[n] or load[n] / share[n] <= lightest]
        put(shard, max(ready, key=lambda node: _rank(shard, node)))
    _level(takers, found, load, least, share)
    return found


def _rank(shard: int, node: str) -> int:
    return crc32(f"{shard}/{node}".encode())


def _level(
    takers: Sequence[str],
    found: dict[int, str],
    load: dict[str, int],
    least: Mapping[str, int],
    share: Mapping[str, float],
) -> None:
    """Give nodes below their least what the fullest ones have."""
    held: dict[str, list[int]] = {node: [] for node in load}
    for shard, owner in found.items():
        held[owner].append(shard)
    for node in takers:
        while load[node] < least[node]:
            giver = max(sorted(load), key=lambda other: load[other] / share[other])
            if load[giver] <= least[giver]:
                return
            shard = max(held[giver], key=lambda s: _rank(s, node))
            held[giver].remove(shard)
            held[node].append(shard)
            found[shard] = node
            load[giver] -= 1
            load[node] += 1


def standbys(
    shards: Sequence[int],
    count: int,
    nodes: Sequence[Place],
    owners: Mapping[int, str],
    warm: Mapping[int, Collection[str]],
) -> dict[int, list[str]]:
    """Per shard the nodes that should keep it warm: on other hosts than its owner, and than each other, where there are.

    Who has it warm now goes on, where the bound allows.
    """
    host = {place.name: place.host for place in nodes}
    names = sorted(host)
    room = math.ceil(len(shards) * count / max(len(names), 1) * LOAD_MAX)
    load = dict.fromkeys(names, 0)
    found: dict[int, list[str]] = {}
    for shard in shards:
        owner = owners.get(shard, "")
        chosen: list[str] = []
        for _ in range(count):
            free = [node for node in names if node != owner and node not in chosen]
            taken = {host.get(owner, ""), *(host[node] for node in chosen)}
            apart = [node for node in free if host[node] not in taken] or free
            light = [node for node in apart if load[node] < room] or apart
            if not light:
                break
            kept = [node for node in light if node in warm.get(shard, _NOBODY)]
            chosen.append(max(kept or light, key=lambda node: _rank(shard, node)))
            load[chosen[-1]] += 1
        found[shard] = chosen
    return found
