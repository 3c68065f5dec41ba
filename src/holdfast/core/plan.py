"""Which node should own which shard, and which keep it warm: rendezvous hashing with bounded load,
and few cells a node.

No node has more than its share of the load (by its capacity) times 1.25. A node that joins or
leaves moves only the shards that it takes or held, and few others. Nodes that own a shard now keep
it where the bound allows, so that two plans from two views differ little; where an owner is gone, a
node that has the shard warm is preferred.

A node writes one batch at a time per cell, and a batch costs much more than a record in it. So a
node is given the shards of a cell of which it has most already: with as many nodes as cells each
writes to one cell, and its batches hold all that it has to write. The loss of a node, or of a
cell's leader, is then also felt by fewer agents. What is left open is decided by a hash of (cell,
node) and of (shard, node), as in rendezvous hashing.

Sources: Thaler and Ravishankar, "Using name-based mappings to increase hit rates"; Mirrokni, Thorup
and Zadimoghaddam, "Consistent Hashing with Bounded Loads".
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple
from zlib import crc32

from holdfast.core.pools import PoolRecord, Table

LOAD_MAX = 1.25
_NOBODY: frozenset[str] = frozenset()


class Place(NamedTuple):
    """A node, as the plan sees it. ``kinds``: what it serves, with the state version that it
    writes."""

    name: str
    host: str = ""
    kinds: Mapping[str, int] = {}
    labels: Collection[str] = ()
    capacity: float = 1.0
    cordoned: bool = False


class Plan(NamedTuple):
    """Per shard its wanted owner, and the nodes that should keep it warm. ``unfit``: pools whose
    labels no node has."""

    owners: dict[int, str]
    standbys: dict[int, list[str]]
    unfit: list[str]


def make(
    table: Table,
    places: Sequence[Place],
    owners: Mapping[int, str],
    warm: Mapping[int, Collection[str]],
    cells: int = 1,
) -> Plan:
    """The plan for all pools, from who is there, who owns what (also nodes that are gone), and who
    has what warm.

    ``cells``: how many there are; shard ``s`` is in cell ``s % cells``.
    """
    plan = Plan({}, {}, [])
    for pool in table.pools:
        nodes, fits = eligible(table, pool, places)
        if not fits:
            plan.unfit.append(pool.name)
        capacity = {node.name: node.capacity for node in nodes}
        wanted = targets(pool.numbers, capacity, owners, warm, older(table, pool, nodes), cells)
        plan.owners.update(wanted)
        if pool.standbys:
            plan.standbys.update(standbys(pool.numbers, pool.standbys, nodes, wanted, warm, cells))
    return plan


def eligible(table: Table, pool: PoolRecord, places: Sequence[Place]) -> tuple[list[Place], bool]:
    """The nodes that may own a pool's shards, and whether they have its labels.

    They serve every kind of the pool that anybody serves, or most of them. A label gives way where
    nobody has it who is not cordoned, and a cordon where nobody else is left; what a node serves
    never does.
    """
    kinds = _kinds(table, pool, places)
    able = [len(kinds & place.kinds.keys()) for place in places]
    most = max(able, default=0)
    serving = [
        place for place, count in zip(places, able, strict=True) if count == most and most > 0
    ]
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
    behind = {
        node.name
        for node in nodes
        if any(node.kinds.get(kind, newest[kind]) < newest[kind] for kind in kinds)
    }
    return behind if len(behind) < len(nodes) else set()


def targets(
    shards: Sequence[int],
    nodes: Mapping[str, float] | Iterable[str],
    owners: Mapping[int, str],
    warm: Mapping[int, Collection[str]] | None = None,
    keepers: Collection[str] = (),
    cells: int = 1,
) -> dict[int, str]:
    """The node wanted for each shard. ``nodes``: with their capacities. No nodes: no targets.

    ``keepers``: nodes that are given no shard that they do not own. ``cells``: shard ``s`` is in
    cell ``s % cells``.
    """
    capacity = dict(nodes) if isinstance(nodes, Mapping) else dict.fromkeys(nodes, 1.0)
    if not capacity:
        return {}
    allotment = _Allotment(shards, capacity, owners, keepers, cells)
    allotment.keep(owners)
    allotment.give(warm or {})
    allotment.level()
    allotment.gather()
    return allotment.owner


class _Allotment:
    """Who gets which shard, while it is worked out. ``here``: how many shards of a cell a node
    has."""

    def __init__(
        self,
        shards: Sequence[int],
        capacity: Mapping[str, float],
        owners: Mapping[int, str],
        keepers: Collection[str],
        cells: int,
    ) -> None:
        self.shards = shards
        self.cells = cells
        members = sorted(capacity)
        self.takers = [node for node in members if node not in keepers] or members
        total = sum(capacity.values())
        share = {node: len(shards) * capacity[node] / total for node in members}
        room = {
            node: max(math.floor(share[node] * LOAD_MAX), math.ceil(share[node]))
            for node in members
        }
        # What keepers hold is not there for the others, who have to take all the rest.
        kept = dict.fromkeys(members, 0)
        for shard in shards:
            if (owner := owners.get(shard)) in kept and owner not in self.takers:
                kept[owner] = min(kept[owner] + 1, room[owner])
        rest = (len(shards) - sum(kept.values())) / sum(capacity[node] for node in self.takers)
        for node in self.takers:
            room[node] = max(
                room[node],
                math.floor(rest * capacity[node] * LOAD_MAX),
                math.ceil(rest * capacity[node]),
            )
        self.share = share
        self.room = room
        self.least = {node: math.floor(share[node] / LOAD_MAX) for node in members}
        """The fewest that a node must have; what owners hold above it may be moved to those below
        it."""
        self.owner: dict[int, str] = {}
        self.load = dict.fromkeys(members, 0)
        self.here: Counter[tuple[str, int]] = Counter()

    def _put(self, shard: int, node: str) -> None:
        giver = self.owner.get(shard)
        if giver is not None:
            self.load[giver] -= 1
            self.here[giver, shard % self.cells] -= 1
        self.owner[shard] = node
        self.load[node] += 1
        self.here[node, shard % self.cells] += 1

    def _fullness(self, node: str) -> float:
        return self.load[node] / self.share[node]

    def keep(self, owners: Mapping[int, str]) -> None:
        """Leave shards where they are; who has too many keeps the cells of which he has most."""
        held = Counter((owners.get(shard), shard % self.cells) for shard in self.shards)

        def most_first(shard: int) -> tuple[int, int]:
            cell = shard % self.cells
            return -held[owners.get(shard), cell], cell

        for shard in sorted(self.shards, key=most_first):
            owner = owners.get(shard)
            if owner is not None and owner in self.load and self.load[owner] < self.room[owner]:
                self._put(shard, owner)

    def give(self, warm: Mapping[int, Collection[str]]) -> None:
        """Find an owner for every shard that has none."""
        for shard in self.shards:
            if shard in self.owner:
                continue
            open_to = [node for node in self.takers if self.load[node] < self.room[node]]
            ready = [node for node in open_to if node in warm.get(shard, _NOBODY)]
            if not ready:
                lightest = min(map(self._fullness, open_to))
                ready = [
                    n
                    for n in open_to
                    if self.load[n] < self.least[n] or self._fullness(n) <= lightest
                ]
            self._put(shard, max(ready, key=lambda node: self._suits(shard, node)))

    def _suits(self, shard: int, node: str) -> tuple[int, float, tuple[int, int]]:
        return (
            self.here[node, shard % self.cells],
            -self._fullness(node),
            _rank(shard, node, self.cells),
        )

    def level(self) -> None:
        """Give nodes below their least what the fullest ones have, of the cell that suits both
        best."""
        held = self._held()
        for node in self.takers:
            while self.load[node] < self.least[node]:
                giver = max(sorted(self.load), key=self._fullness)
                if self.load[giver] <= self.least[giver]:
                    return
                shard = max(held[giver], key=lambda shard: self._may_go(shard, giver, node))
                held[giver].remove(shard)
                held[node].append(shard)
                self._put(shard, node)

    def _held(self) -> dict[str, list[int]]:
        held: dict[str, list[int]] = {node: [] for node in self.load}
        for shard, owner in self.owner.items():
            held[owner].append(shard)
        return held

    def _may_go(self, shard: int, giver: str, taker: str) -> tuple[int, int, tuple[int, int]]:
        cell = shard % self.cells
        return self.here[taker, cell], -self.here[giver, cell], _rank(shard, taker, self.cells)

    def gather(self) -> None:
        """Move the little that a node has of a cell to the node that has most of it, where the
        bounds allow."""
        while any(
            self._move_few(giver, cell) for giver, cell in sorted(self.here, key=self._fewest_first)
        ):
            pass  # what was moved made room for more

    def _fewest_first(self, item: tuple[str, int]) -> tuple[int, str, int]:
        return self.here[item], *item

    def _move_few(self, giver: str, cell: int) -> bool:
        few = self.here[giver, cell]
        if not 0 < few <= self.share[giver] / 4 or self.load[giver] - few < self.least[giver]:
            return False
        able = [
            n
            for n in self.takers
            if self.here[n, cell] > few and self.load[n] + few <= self.room[n]
        ]
        if not able:
            return False
        taker = max(able, key=lambda node: (self.here[node, cell], node))
        for shard in [
            s for s, owner in self.owner.items() if owner == giver and s % self.cells == cell
        ]:
            self._put(shard, taker)
        return True


def _rank(shard: int, node: str, cells: int) -> tuple[int, int]:
    """The order of nodes for a shard where nothing else decides: alike for all shards of a cell."""
    return crc32(f"c{shard % cells}/{node}".encode()), crc32(f"{shard}/{node}".encode())


def standbys(
    shards: Sequence[int],
    count: int,
    nodes: Sequence[Place],
    owners: Mapping[int, str],
    warm: Mapping[int, Collection[str]],
    cells: int = 1,
) -> dict[int, list[str]]:
    """Per shard the nodes that should keep it warm: on other hosts than its owner, and than each
    other, where there are.

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
            chosen.append(max(kept or light, key=lambda node: _rank(shard, node, cells)))
            load[chosen[-1]] += 1
        found[shard] = chosen
    return found
