"""A node's chain in one cell: each of its batches expects the one before, so whoever breaks the
chain fences the node off.

The chain is the fence of all shards that the node claimed with it. Whoever claims a shard from a
node that did not let go of it breaks that node's chain in the same batch: a batch of the old owner
lies before the claim, or never happens. Where a node does not know what became of a batch, it
breaks its own chain in the same way, and claims its shards in the cell anew with another. The
chain's first link is written with the first claim, so no batch ever expects that there is none.
"""

from __future__ import annotations

from typing import Final

from holdfast.engines.base import Expect, Record, Stored
from holdfast.records import subjects

_BROKEN: Final = b"broken"


class Chain:
    """See the module. ``name``: of the chain now, a new one after each `end`. ``link``: the
    sequence of the newest link; 0 while there is none."""

    def __init__(self, cell: str, process: str) -> None:
        self.name = f"{process}-0"
        self.link = 0
        self._cell = cell
        self._process = process
        self._era = 0

    @property
    def subject(self) -> str:
        """Where its links are written."""
        return subjects.link(self._cell, self.name)

    def next_link(self, payload: bytes = b"") -> Record:
        """The record that makes a batch the next one of this chain, or the first."""
        return Record(self.subject, payload, Expect(self.subject, self.link))

    def end(self) -> None:
        """Nothing more is written with this chain: what becomes of a write with it is not known, or
        it was broken."""
        self._era += 1
        self.name = f"{self._process}-{self._era}"
        self.link = 0


def is_broken(stored: Stored | None) -> bool:
    """Whether a chain's newest link says that there is no other."""
    return stored is not None and stored.payload == _BROKEN


def breaking(cell: str, name: str, newest: Stored | None) -> Record:
    """The record that breaks a chain, if this is still its newest link."""
    where = subjects.link(cell, name)
    return Record(where, _BROKEN, Expect(where, 0 if newest is None else newest.sequence))
