"""The few requests of the JetStream API that we make, with their errors as ours."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from holdfast.engines.nats.connection import Connection, status
from holdfast.errors import (
    Closed,
    ConfigError,
    HoldfastError,
    InvalidName,
    Never,
    NoQuorum,
    NoResponders,
    TooLarge,
    Unknown,
)

WRONG_LAST_SEQUENCE: Final = 10071
IN_PROCESS: Final = 10164
"""Another write with an expectation on the same subject is under way; the expectation itself may
hold."""

STREAM_NOT_FOUND: Final = 10059
STREAM_EXISTS: Final = 10058
CONSUMER_NOT_FOUND: Final = 10014
_NO_REPLICAS: Final = 10074
"""A server that belongs to no cluster was asked for more than one copy."""

_TOO_LARGE: Final = frozenset({10054, 10199, 10097})
_STORE_FAILED: Final = 10077
"""The leader could not store it (its disk is full, for example); its followers may have."""

_INCOMPLETE: Final = frozenset({10176})
"""A batch of which a part did not arrive: the servers changed leaders in its middle. None of it is
written."""


class ApiError(msgspec.Struct):
    """What a server says when it refuses."""

    code: int = 0
    err_code: int = 0
    description: str = ""


class Response(msgspec.Struct):
    """The part that all answers have."""

    error: ApiError | None = None


def error_of(found: ApiError, what: str) -> HoldfastError:
    """The error that a refusal is: but for `Unknown`, nothing was written, now or later."""
    text = f"{what}: {found.description} ({found.err_code})"
    if found.err_code == STREAM_NOT_FOUND:
        return InvalidName(text)
    if found.err_code == _NO_REPLICAS:
        return ConfigError(
            f"{text}: the server is not part of a cluster of servers, so it keeps one copy"
        )
    if found.err_code in _TOO_LARGE:
        return TooLarge(text)
    if found.err_code == _STORE_FAILED:
        return Unknown(text)
    if found.code >= 500 or found.err_code in _INCOMPLETE or found.err_code == IN_PROCESS:
        return NoQuorum(text)
    return Never(text)


async def call(connection: Connection, subject: str, body: Any, timeout_seconds: float) -> bytes:
    """Ask ``$JS.API.<subject>``, and return the answer's JSON. Raises `NoQuorum`, `Unknown`, and
    what `error_of` gives."""
    payload = b"" if body is None else msgspec.json.encode(body)
    try:
        headers, answer = await connection.ask(f"$JS.API.{subject}", payload, timeout_seconds)
    except NoResponders:
        raise NoQuorum(f"{subject}: no server leads JetStream at this moment") from None
    except Closed:
        raise
    except Unknown as error:
        raise Unknown(f"{subject}: {error}") from None
    if not answer:
        raise NoQuorum(f"{subject}: status {status(headers)}, there is no leader at this moment")
    found = msgspec.json.decode(answer, type=Response).error
    if found is not None:
        raise error_of(found, subject)
    return answer


class _Place(msgspec.Struct, frozen=True):
    leader: str = ""


class _Delivered(msgspec.Struct, frozen=True):
    stream_seq: int = 0


class Consumer(msgspec.Struct, frozen=True):
    """A consumer that was made. Which replica it reads is drawn at random: that of the server in
    ``cluster.leader``, which is empty where there is only one. ``num_pending``: how many records
    wait for it."""

    name: str
    num_pending: int = 0
    delivered: _Delivered = _Delivered()
    cluster: _Place = _Place()


async def create_consumer(
    connection: Connection,
    stream: str,
    name: str,
    config: dict[str, object],
    timeout_seconds: float,
) -> Consumer:
    """Make a disposable consumer: on one replica, in memory, without acknowledgements. Raises as
    `call` does."""
    disposable = {
        "name": name,
        "ack_policy": "none",
        "max_deliver": 1,
        "replay_policy": "instant",
        "num_replicas": 1,
        "mem_storage": True,
    }
    body = {"stream_name": stream, "config": {**disposable, **config}, "action": "create"}
    answer = await call(connection, f"CONSUMER.CREATE.{stream}.{name}", body, timeout_seconds)
    return msgspec.json.decode(answer, type=Consumer)
