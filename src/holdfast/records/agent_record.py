"""An agent's record in the log: all of its durable self in one piece, so that a commit is one
record per agent.

The checksum behind it tells a damaged record; ``previous``, ``commit`` and the digest tell a
replica that lost some.
"""

from __future__ import annotations

from typing import Final

import msgspec

from holdfast import codec
from holdfast.core.delivery import Caller, Remembered
from holdfast.core.digest import before
from holdfast.errors import DataLoss
from holdfast.records.messages import Timer

RECORD_VERSION: Final = 3
"""The newest version of records that this code reads, and can write. Which one it writes is said by
the manifest: see `holdfast.cluster.facts.manifest`."""

RECORD_VERSION_MIN: Final = 1
"""The oldest version that it reads. Releases that follow each other have one in common, so that
they can run side by side."""


class AgentRecord(msgspec.Struct, array_like=True, gc=False):
    """See the fields. Sequences are the cell's; 0 stands for none."""

    record_version: int
    commit: int
    """The number of the shard's batch that wrote it."""
    previous: int
    """The sequence of the agent's record before this one."""
    digest: int
    """On the first record of a shard in a batch: the shard's digest before the batch, else 0."""
    count: int
    """… and the number of its agents."""
    version: int
    """Grows by one with every record of this agent."""
    state_version: int
    state: bytes
    blob: str
    """The key of the blob that holds the state, where it is too large for a record."""
    consumed: int
    """The sequence of the last inbox message consumed."""
    callers: dict[str, Caller]
    ids: dict[str, Remembered]
    senders: dict[str, tuple[int, float]]
    """Per sender outside a turn: the number of its last message consumed, and when."""
    timers: list[Timer]
    generation: int
    """The newest generation that a timer of this agent got."""
    attempts: dict[str, int] = {}
    """Messages in the hands of processes that died (``*``: any), about to run, and how many
    processes each ended."""
    at: float = 0.0
    """When it was written, in s since 1970 on its owner's clock. From record version 2 on."""


_decode = msgspec.msgpack.Decoder(AgentRecord).decode


def encode(record: AgentRecord) -> bytes:
    """The record's bytes, with a checksum."""
    return codec.seal(codec.encode_raw(record))


def decode(payload: bytes, what: str) -> AgentRecord:
    """The record. Raises `DataLoss` where the bytes are damaged or of an unknown version."""
    body = codec.unseal(payload, what)
    try:
        record = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DataLoss(f"{what}: not a record of an agent: {error}") from None
    if not RECORD_VERSION_MIN <= record.record_version <= RECORD_VERSION:
        raise DataLoss(
            f"{what}: a record of version {record.record_version}; this code reads "
            f"{RECORD_VERSION_MIN} to {RECORD_VERSION}: upgrade it"
        )
    return record


def check_digest(
    shard: str, digest: int, agents: int, newest: list[tuple[int, str, AgentRecord]]
) -> int:
    """Compare what a replica shows of a shard with what the shard's newest batch says; return that
    batch's number.

    ``digest`` and ``agents``: of the index that was read. ``newest``: the sequences, tokens and
    records of that batch. Raises `DataLoss` where they do not agree.
    """
    batch = ((token, sequence, record.previous) for sequence, token, record in newest)
    first = max(newest, key=lambda one: one[2].count)[2]
    if before(digest, agents, batch) != (first.digest, first.count):
        raise DataLoss(
            f"shard {shard}: the {agents} agents that this replica shows are not those of batch "
            f"{first.commit}, which counted {first.count} before it: the replica has diverged, "
            "read another"
        )
    return first.commit
