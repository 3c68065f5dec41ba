"""Pools: named sets of shards, each with its own demands on the nodes that may own it. A kind
belongs to one pool.

Shards are numbered through all pools, in the order in which the pools came, and a pool never
changes its size: so an agent's shard is a function of its kind and name for ever. Everything here
is a value; `cluster.placement` keeps it in the log.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from zlib import crc32

import msgspec

from holdfast import limits
from holdfast.errors import ConfigError

MAIN = "main"


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """A pool as an application declares it: ``class Trainer(Agent[Model], pool=Pool(name="gpu",
    labels={"gpu"}))``.

    ``shards``: how many parts its agents are spread over (1: they all live together, on one node);
    fixed once it exists. ``labels``: what a node must be labelled with to own them, as long as such
    a node lives. ``standbys``: how many other nodes keep the newest records of its agents in
    memory, to take over with nothing to read (0 to 2).
    """

    name: str
    shards: int = 32
    labels: frozenset[str] = frozenset()
    standbys: int = 0

    def __post_init__(self) -> None:
        if not self.name or not self.name.replace("-", "_").isidentifier() or len(self.name) > 64:
            raise ConfigError(f"{self.name!r} is no name of a pool: use letters, digits, - and _")
        if not 1 <= self.shards <= limits.POOL_SHARDS_MAX:
            raise ConfigError(
                f"pool {self.name}: 1 to {limits.POOL_SHARDS_MAX} shards, not {self.shards}"
            )
        if not 0 <= self.standbys <= limits.STANDBYS_MAX:
            raise ConfigError(
                f"pool {self.name}: 0 to {limits.STANDBYS_MAX} standbys, not {self.standbys}"
            )
        for label in self.labels:
            check_label(label)


def check_capacity(capacity: float) -> float:
    """The capacity of a node, if a plan can be made with it. Raises `ConfigError`."""
    if not limits.CAPACITY_MIN <= capacity <= limits.CAPACITY_MAX:
        raise ConfigError(
            f"a node's capacity is from {limits.CAPACITY_MIN} to {limits.CAPACITY_MAX:.0f}, not "
            f"{capacity}"
        )
    return capacity


def check_label(label: str) -> str:
    """The label, if it is a word such as ``gpu`` or ``zone=a``. Raises `ConfigError`."""
    if (
        not isinstance(label, str)
        or not label
        or len(label) > 64
        or not label.isprintable()
        or " " in label
    ):
        raise ConfigError(f"{label!r} is no label: write a word such as gpu or zone=a")
    return label


class PoolRecord(msgspec.Struct, frozen=True, array_like=True):
    """A pool as the log has it; its shards are ``first`` to ``first + shards - 1``."""

    name: str
    first: int
    shards: int
    labels: list[str] = []
    standbys: int = 0

    @property
    def numbers(self) -> range:
        """Its shards."""
        return range(self.first, self.first + self.shards)


class Table(msgspec.Struct, frozen=True, array_like=True):
    """All that decides where agents may live. ``kinds``: each kind's pool. ``cordoned``: hosts and
    nodes that are to own nothing."""

    pools: list[PoolRecord]
    kinds: dict[str, str] = {}
    cordoned: list[str] = []

    @property
    def shards(self) -> int:
        """How many there are in all pools."""
        return sum(pool.shards for pool in self.pools)

    @property
    def used(self) -> list[int]:
        """The shards of the pools that some kind lives in: those that need an owner."""
        return [
            number
            for pool in self.pools
            if pool.name in self.kinds.values()
            for number in pool.numbers
        ]

    def pool(self, name: str) -> PoolRecord | None:
        """A pool by its name."""
        return next((pool for pool in self.pools if pool.name == name), None)

    def kinds_of(self, pool: str) -> list[str]:
        """The kinds that live in a pool."""
        return [kind for kind, name in self.kinds.items() if name == pool]


def check_table(table: Table) -> None:
    """Whether it is a table that `declare` and `change_pool` can have made. Raises `ConfigError`
    that says what is not so."""
    if not table.pools or table.pools[0].name != MAIN:
        raise ConfigError(f"the first pool is not {MAIN!r}")
    first, names = 0, set[str]()
    for pool in table.pools:
        Pool(
            name=pool.name,
            shards=pool.shards,
            labels=frozenset(pool.labels),
            standbys=pool.standbys,
        )
        if pool.first != first or pool.name in names:
            raise ConfigError(
                f"pool {pool.name} begins at shard {pool.first}, not {first}, or is there twice"
            )
        first += pool.shards
        names.add(pool.name)
    for kind, name in table.kinds.items():
        if name not in names:
            raise ConfigError(f"kind {kind[:64]!r} lives in pool {name[:64]!r}, which is not there")


def empty(shards: int) -> Table:
    """A new cluster's: the main pool alone."""
    return Table([PoolRecord(MAIN, 0, shards)])


def declare(table: Table, kinds: Mapping[str, Pool | str]) -> Table:
    """The table with what an application declares. Raises `ConfigError` where that contradicts what
    is there."""
    for declared in {pool.name: pool for pool in kinds.values() if isinstance(pool, Pool)}.values():
        table = _with_pool(table, declared)
    known = dict(table.kinds)
    for kind, wanted in kinds.items():
        name = wanted if isinstance(wanted, str) else wanted.name
        if table.pool(name) is None:
            raise ConfigError(
                f"{kind} names the pool {name!r}, which nobody has declared: write "
                f"pool=Pool(name={name!r})"
            )
        if known.setdefault(kind, name) != name:
            raise ConfigError(
                f"agents of kind {kind} live in pool {known[kind]!r}, and cannot move to "
                f"{name!r}: give the class another kind"
            )
    return table if known == table.kinds else msgspec.structs.replace(table, kinds=known)


def _with_pool(table: Table, pool: Pool) -> Table:
    there = table.pool(pool.name)
    if there is None:
        record = PoolRecord(
            pool.name, table.shards, pool.shards, sorted(pool.labels), pool.standbys
        )
        return msgspec.structs.replace(table, pools=[*table.pools, record])
    if there.shards != pool.shards and pool.name != MAIN:
        raise ConfigError(
            f"pool {pool.name} has {there.shards} shards, which never changes; the application "
            f"declares {pool.shards}"
        )
    return change_pool(table, pool.name, labels=pool.labels, standbys=pool.standbys)


def change_pool(
    table: Table, name: str, *, labels: Iterable[str] | None = None, standbys: int | None = None
) -> Table:
    """The table with other demands of a pool. Raises `ConfigError`."""
    there = table.pool(name)
    if there is None:
        raise ConfigError(
            f"there is no pool {name!r}; there are {', '.join(pool.name for pool in table.pools)}"
        )
    wanted = Pool(
        name=name,
        shards=there.shards,
        labels=frozenset(there.labels if labels is None else labels),
        standbys=there.standbys if standbys is None else standbys,
    )
    record = PoolRecord(name, there.first, there.shards, sorted(wanted.labels), wanted.standbys)
    if record == there:
        return table
    return msgspec.structs.replace(
        table, pools=[record if pool is there else pool for pool in table.pools]
    )


def forget(table: Table, kinds: Iterable[str]) -> Table:
    """The table without these kinds: for those that nothing serves any more, and that left
    nothing."""
    gone = set(kinds)
    return msgspec.structs.replace(
        table, kinds={kind: pool for kind, pool in table.kinds.items() if kind not in gone}
    )


def cordon(table: Table, name: str, cordoned: bool) -> Table:
    """The table with a host or node cordoned, or not."""
    names = sorted({*table.cordoned, name} if cordoned else {*table.cordoned} - {name})
    return table if names == table.cordoned else msgspec.structs.replace(table, cordoned=names)


class Space:
    """Which shard an agent is in: the table's answer, made fast for callers."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.take(table)

    def take(self, table: Table) -> None:
        """Go on with another table."""
        self.table = table
        self.shards = table.shards
        pools = {pool.name: (pool.first, pool.shards) for pool in table.pools}
        self._main = pools[table.pools[0].name]
        self._places = {kind: pools[name] for kind, name in table.kinds.items() if name in pools}

    def find(self, token: str) -> int:
        """The shard of an agent's token; -1 where it is not known yet in which pool its kind
        lives."""
        place = self._places.get(token[: token.find("/")])
        return -1 if place is None else place[0] + crc32(token.encode()) % place[1]

    def shard_of(self, token: str) -> int:
        """The shard of an agent's token; of a kind that nobody has served, it is one of the main
        pool's."""
        first, shards = self._places.get(token[: token.find("/")], self._main)
        return first + crc32(token.encode()) % shards
