"""A shard's digest: does a replica show every agent's newest record, and no older one?

The engine does not notice a replica that lost records. So each batch carries, per shard, the digest
of the index that its owner held before the batch: the exclusive or of a 64-bit hash of each (agent,
sequence of its newest record), and the number of agents. A recovery rebuilds that index from what
it read and compares. Adding and removing an entry is the same operation, so keeping the digest
costs a hash or two a record. (The mixing steps are those of splitmix64.)
"""

from __future__ import annotations

from collections.abc import Iterable
from zlib import crc32

_MASK = (1 << 64) - 1


def entry(token: str, sequence: int) -> int:
    """The 64-bit hash of an agent and the sequence of its newest record; 0 for no record."""
    if not sequence:
        return 0
    mixed = (crc32(token.encode()) * 0x9E3779B97F4A7C15 + sequence * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0x94D049BB133111EB) & _MASK
    return mixed ^ (mixed >> 31)


def moved(token: str, before: int, after: int) -> int:
    """What a digest changes by when the sequence of an agent's newest record is another; 0 for no
    record."""
    return entry(token, before) ^ entry(token, after)


def before(digest: int, count: int, batch: Iterable[tuple[str, int, int]]) -> tuple[int, int]:
    """The digest and the number of agents before a batch of (agent, sequence, sequence of its
    record before)."""
    for token, sequence, previous in batch:
        digest ^= moved(token, previous, sequence)
        count -= previous == 0
    return digest, count
