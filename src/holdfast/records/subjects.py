"""The subjects of the log: how each is built, and how one is read.

The first token of a subject is its cell. A number behind it is a shard of that cell; a word names
what the cell has as a whole. ``PATTERNS`` shows all of them, and so does ARCHITECTURE.md.
"""

from __future__ import annotations

from typing import Final

PATTERNS: Final = {
    "epoch": "<cell>.<shard>.epoch",
    "record": "<cell>.<shard>.st.<agent>",
    "pack": "<cell>.pk.<chain>.<slot>",
    "settled": "<cell>.<shard>.settled",
    "inbox": "<cell>.<shard>.in.<agent>.<unique>",
    "outbox": "<cell>.<shard>.out.<target>.<unique>",
    "dead_letter": "<cell>.<shard>.dl.<agent>.<end>",
    "relay": "<cell>.rl.<source>-<shard>",
    "link": "<cell>.ch.<chain>",
    "life": "<cell>.life.<incarnation>",
    "sweep": "<cell>.sweep.<shard>",
    "mark": "<cell>.mark",
    "alive": "<cell>.alive",
    "manifest": "<registry>.manifest",
    "placement": "<registry>.placement",
    "cohort": "<registry>.cohort",
    "entry": "<registry>.ag.<agent>",
    "event": "<registry>.ev.<what>.<key>",
}
"""Every subject, by the name of the function that builds it."""

RECORD: Final = "st"
INBOX: Final = "in"
OUTBOX: Final = "out"
DEAD_LETTER: Final = "dl"
EPOCH: Final = "epoch"
SETTLED: Final = "settled"
PACK: Final = "pk"
RELAY: Final = "rl"
LINK: Final = "ch"
LIFE: Final = "life"
SWEEP: Final = "sweep"
MARK: Final = "mark"
ALIVE: Final = "alive"
MANIFEST: Final = "manifest"
PLACEMENT: Final = "placement"
COHORT: Final = "cohort"
ENTRY: Final = "ag"
EVENT: Final = "ev"

ANY: Final = "*"
"""In the place of a token: any."""

_OWNERSHIP: Final = (f".{EPOCH}", f".{SETTLED}")


# A shard's ----------------------------------------------------------------------------------------


def shard(cell: str, number: int | str) -> str:
    """What all subjects of a shard begin with."""
    return f"{cell}.{number}"


def all_of(prefix: str, kind: str = "") -> str:
    """A filter for all subjects that begin so, or for those of one kind."""
    return f"{prefix}.{kind}.>" if kind else f"{prefix}.>"


def epoch(cell: str, number: int | str) -> str:
    """Who owns a shard."""
    return f"{cell}.{number}.epoch"


def settled(cell: str, number: int | str) -> str:
    """The epoch since which a shard needs no pack of an owner before."""
    return f"{cell}.{number}.settled"


def record(prefix: str, agent: str) -> str:
    """An agent's record. ``prefix``: see `shard`."""
    return f"{prefix}.st.{agent}"


def inbox(cell: str, number: int | str, agent: str, unique: str) -> str:
    """A message in an agent's inbox."""
    return f"{cell}.{number}.in.{agent}.{unique}"


def outbox(prefix: str, target: str, unique: str) -> str:
    """A message for another cell, until it is carried over. ``prefix``: see `shard`."""
    return f"{prefix}.out.{target}.{unique}"


def dead_letter(prefix: str, agent: str, end: str) -> str:
    """A dead letter. ``prefix``: see `shard`."""
    return f"{prefix}.dl.{agent}.{end}"


# A cell's -----------------------------------------------------------------------------------------


def pack(cell: str, chain: str, slot: int | str) -> str:
    """Records of many agents, each as if it stood alone."""
    return f"{cell}.pk.{chain}.{slot}"


def relay(target: str, source: str, number: int | str) -> str:
    """How far the relay of another cell's shard has come, in the target's cell."""
    return f"{target}.rl.{source}-{number}"


def link(cell: str, chain: str) -> str:
    """The newest link of a chain."""
    return f"{cell}.ch.{chain}"


def life(cell: str, incarnation: str) -> str:
    """A node's newest proof of life, or its sentence."""
    return f"{cell}.life.{incarnation}"


def sweep(cell: str, number: int | str) -> str:
    """What a sweep of old packs wrote last for a shard."""
    return f"{cell}.sweep.{number}"


def mark(cell: str) -> str:
    """What a backup wrote last to find a cut."""
    return f"{cell}.mark"


def alive(cell: str) -> str:
    """A sign that a majority takes writes."""
    return f"{cell}.alive"


# The registry's -----------------------------------------------------------------------------------


def manifest(registry: str) -> str:
    """The cluster's facts."""
    return f"{registry}.manifest"


def placement(registry: str) -> str:
    """The table of pools and cordons."""
    return f"{registry}.placement"


def cohort(registry: str) -> str:
    """Which hosts vote."""
    return f"{registry}.cohort"


def entry(registry: str, agent: str) -> str:
    """What is registered of an agent."""
    return f"{registry}.ag.{agent}"


def event(registry: str, what: str, key: str) -> str:
    """Something that happened."""
    return f"{registry}.ev.{what}.{key}"


# Reading ------------------------------------------------------------------------------------------


def cell_of(subject: str) -> str:
    """The cell of a subject."""
    return subject.partition(".")[0]


def word_of(subject: str) -> str:
    """The token behind the cell: a shard's number, or the word for what the cell has."""
    return subject.split(".", 2)[1]


def shard_of(subject: str) -> int:
    """The shard that a subject is of; -1 for one that is of none."""
    word = subject.split(".", 2)[1]
    return int(word) if word.isdecimal() else -1


def kind_of(subject: str) -> str:
    """What a shard has under a subject: `RECORD`, `INBOX` and so on; empty for one of no shard."""
    tokens = subject.split(".", 3)
    return tokens[2] if len(tokens) > 2 and tokens[1].isdecimal() else ""


def agent_of(subject: str) -> str:
    """The agent's token in the subject of a record, an inbox message or a dead letter."""
    return subject.split(".", 4)[3]


def target_of(subject: str) -> str:
    """The cell that a message of an outbox is for."""
    return subject.split(".", 4)[3]


def chain_of(subject: str) -> str:
    """The chain in the subject of a pack or a link."""
    return subject.split(".", 3)[2]


def end_of(subject: str) -> str:
    """What tells apart the messages, or dead letters, of one agent."""
    return subject.split(".", 4)[4]


def is_record(subject: str) -> bool:
    """Whether it is an agent's record, as it is or unfolded from a pack."""
    return ".st." in subject and kind_of(subject) == RECORD


def is_pack(subject: str) -> bool:
    """Whether it is a pack."""
    return ".pk." in subject and word_of(subject) == PACK


def is_ownership(subject: str) -> bool:
    """Whether it says who owns a shard, and not what is in it."""
    return subject.endswith(_OWNERSHIP)
