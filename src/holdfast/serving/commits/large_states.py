"""States that are too large for a record: each is put into a blob first, and removed when no record
names it any more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdfast import limits
from holdfast.errors import Closed, HoldfastError, NoQuorum, Unknown

if TYPE_CHECKING:
    from holdfast.serving.runtime import Runtime
    from holdfast.serving.shards.shard import Shard
    from holdfast.serving.turns.activation import Activation


def needed(activation: Activation) -> bool:
    """Whether an agent's state is too large for its record, and not yet in a blob."""
    size = len(activation.state_bytes) + activation.seen.bytes_kept
    return (
        size >= limits.BLOB_THRESHOLD_BYTES
        and activation.state_in_blob is not activation.state_bytes
    )


async def put(activation: Activation) -> None:
    """Put an agent's state into a blob, for its next record to name; no turn runs until that is
    written."""
    shard = activation.shard
    key = f"{shard.prefix}.{activation.token}.{shard.next_unique()}"
    activation.held, activation.at_rest = True, False
    state = activation.state_bytes
    try:
        await shard.runtime.engine.blobs.put(key, state)
    except Closed:
        raise
    except HoldfastError as error:
        if shard.active:
            shard.drop(
                activation,
                error if isinstance(error, NoQuorum) else NoQuorum(f"the state's blob: {error}"),
            )
        return
    if activation.blob:
        activation.old_blobs = [*(activation.old_blobs or ()), activation.blob]
    activation.blob, activation.state_in_blob = key, state


async def delete(runtime: Runtime, keys: list[str]) -> None:
    """Remove blobs that no record names any more. What fails is swept when the shard is next
    recovered."""
    await runtime.gate.may_delete()
    for key in keys:
        try:
            await runtime.engine.blobs.delete(key)
        except (NoQuorum, Unknown):
            return


async def sweep(runtime: Runtime, shards: list[Shard]) -> None:
    """Remove the blobs that owners who ended uncleanly left behind without a record that names
    them."""
    for shard in shards:
        try:
            keys = await runtime.engine.blobs.keys(shard.prefix)
        except HoldfastError:
            return  # the next takeover sweeps again
        # The keys of this owner's own blobs end in its epoch.
        old = [
            key
            for key in keys
            if key not in shard.blobs and f"-{shard.epoch}-" not in key.rpartition(".")[2]
        ]
        shard.blobs.clear()
        if shard.active and old:
            await delete(runtime, old)
