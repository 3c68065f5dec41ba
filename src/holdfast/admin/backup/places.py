"""Which subjects a backup holds, and where they go in another cluster.

What is of the moment stays behind: who owns what, proofs of life, links of batches, marks.
Everything else is copied, also what this code does not know: a record of a shard into the cell that
has the shard there.
"""

from __future__ import annotations

from typing import Final

from holdfast.records import subjects

_PASSING: Final = frozenset(
    {
        subjects.LIFE,
        subjects.ALIVE,
        subjects.LINK,
        subjects.SWEEP,
        subjects.MANIFEST,
        subjects.MARK,
    }
)


def is_passing(subject: str) -> bool:
    """Whether it is of the moment: it belongs to no backup, and says nothing of what agents are."""
    kind = subjects.kind_of(subject)
    return subjects.word_of(subject) in _PASSING or kind in (subjects.EPOCH, subjects.SETTLED)


def changes_nothing(subject: str) -> bool:
    """Whether it may come between the two marks of a cut: what is of the moment, and notes of what
    happened."""
    return is_passing(subject) or subjects.word_of(subject) == subjects.EVENT


class Places:
    """Where the subjects of one cluster are in another, with the same shards and perhaps other
    cells."""

    def __init__(
        self, old: list[str], old_registry: str, new: list[str], new_registry: str
    ) -> None:
        self.cells = new
        self._index = {cell: place for place, cell in enumerate(old)}
        self._old_registry = old_registry
        self._registry = new_registry

    def cell_of(self, shard: int) -> str:
        """The cell that has a shard."""
        return self.cells[shard % len(self.cells)]

    def move(self, subject: str) -> tuple[str, str]:
        """The cell and the subject. It is also right for the key of a blob."""
        cell, _, rest = subject.partition(".")
        if cell == self._old_registry:
            return self._registry, f"{self._registry}.{rest}"
        shard = subjects.shard_of(subject)
        found = (
            self.cells[self._index[cell] % len(self.cells)] if shard < 0 else self.cell_of(shard)
        )
        return found, f"{found}.{rest}"
