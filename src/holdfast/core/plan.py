"""Which node should own which shard: rendezvous hashing with bounded load.

Each shard ranks the nodes by a hash of (shard, node) and goes to the first that still has room; room is the mean load
times 1.25, rounded up. A node that joins or leaves moves only the shards that it takes or held, and few others. Nodes
that own a shard now keep it where the bound allows, so that two plans from two views differ little.

Sources: Thaler and Ravishankar, "Using name-based mappings to increase hit rates"; Mirrokni, Thorup and Zadimoghaddam,
"Consistent Hashing with Bounded Loads".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from zlib import crc32

LOAD_MAX = 1.25


def targets(shards: Sequence[int], nodes: Sequence[str], owners: Mapping[int, str]) -> dict[int, str]:
    """The node wanted for each shard. No nodes: no targets. ``owners`` may name nodes that are gone."""
    if not nodes:
        return {}
    members = sorted(set(nodes))
    share = len(shards) / len(members)
    room = dict.fromkeys(members, max(math.floor(share * LOAD_MAX), math.ceil(share)))
    # The fewest that a node must have; what owners hold above it may be moved to those below it.
    least = math.floor(share / LOAD_MAX)
    found: dict[int, str] = {}
    load = dict.fromkeys(members, 0)
    for shard in shards:
        owner = owners.get(shard)
        if owner in load and load[owner] < room[owner]:
            found[shard] = owner
            load[owner] += 1
    for shard in shards:
        if shard not in found:
            open_to = [node for node in members if load[node] < room[node]]
            lightest = min(load[node] for node in open_to)
            short = [node for node in open_to if load[node] <= max(lightest, least - 1)]
            chosen = max(short, key=lambda node: crc32(f"{shard}/{node}".encode()))
            found[shard] = chosen
            load[chosen] += 1
    _level(found, load, least)
    return found


def _level(found: dict[int, str], load: dict[str, int], least: int) -> None:
    """Give nodes below their least what the fullest ones have."""
    for node in sorted(load):
        while load[node] < least:
            giver = max(sorted(load), key=lambda other: load[other])
            if load[giver] <= least:
                return
            shard = max((s for s, n in found.items() if n == giver), key=lambda s: crc32(f"{s}/{node}".encode()))
            found[shard] = node
            load[giver] -= 1
            load[node] += 1
