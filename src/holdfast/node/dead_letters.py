"""Messages that kept failing: seeing them, trying them again, giving them up.

They lie in the log beside their agent's records, so any node can show them. A replay is one atomic
batch, the message into the inbox and the dead letter marked as done, so that it happens once also
when two people try. The mark stays for a day: a backup that runs meanwhile reads it, and would not
see that a record is gone.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from holdfast import codec, ids, limits
from holdfast.clock import Clock
from holdfast.engines.base import Engine, Expect, Record, Stored
from holdfast.engines.gate import Gate
from holdfast.errors import (
    BadMessage,
    Conflict,
    HandlerFailed,
    HoldfastError,
    NoQuorum,
    NotFound,
    from_wire,
)
from holdfast.records import subjects
from holdfast.records.messages import DeadRecord, InboxMessage

_decode = msgspec.msgpack.Decoder(DeadRecord).decode


class DeadLetter(msgspec.Struct, frozen=True):
    """A message that an agent gave up. ``arguments`` are plain dicts and lists; ``at`` is in
    seconds since 1970."""

    id: str
    agent_id: str
    handler: str
    arguments: Any
    error: str
    kind_of_error: str
    details: str
    attempts: int
    at: float


class DeadLetters:
    """The dead letters of all agents, in all cells."""

    def __init__(self, engine: Engine, cells: list[str], gate: Gate, clock: Clock) -> None:
        self._engine = engine
        self._cells = cells
        self._gate = gate
        self._clock = clock

    async def all(self, agent_id: str = "") -> list[DeadLetter]:
        """Those that wait, oldest first; of one agent (``KIND/NAME``) or of all. Raises
        `InvalidName`, `NoQuorum`."""
        token = ids.agent_token(*ids.parse_agent_id(agent_id)) if agent_id else "*"
        try:
            async with asyncio.timeout(limits.QUORUM_WAIT_SECONDS):
                return await self._all(token)
        except TimeoutError:
            raise NoQuorum(
                "the dead letters cannot be read: no majority of the servers answers"
            ) from None

    async def _all(self, token: str) -> list[DeadLetter]:
        found: list[DeadLetter] = []
        for cell in self._cells:
            tail = self._engine.log.tail(
                cell,
                [subjects.dead_letter(subjects.shard(cell, subjects.ANY), token, subjects.ANY)],
            )
            try:
                async for chunk in tail:
                    for stored in chunk.records:
                        letter = _letter(stored)
                        if isinstance(letter, DeadLetter):
                            found.append(letter)
                        elif (
                            letter is not None
                            and letter.at < self._clock.now() - limits.DONE_LETTER_SECONDS
                        ):
                            await self._engine.log.purge(cell, stored.subject, stored.sequence + 1)
                    if chunk.caught_up:
                        break
            finally:
                await tail.aclose()  # type: ignore[attr-defined]  # tails are async generators
        return sorted(found, key=lambda letter: letter.at)

    async def replay(self, letter_id: str) -> None:
        """Put the message into its agent's inbox again. Raises `NotFound` where it was replayed or
        dropped before."""
        stored, dead = await self._read(letter_id)
        cell, shard = subjects.cell_of(stored.subject), subjects.shard_of(stored.subject)
        unique = f"dl-{subjects.end_of(stored.subject)}-{stored.sequence}"
        # A new message: neither its sender's number nor its id may make it one that was seen
        # before.
        message = msgspec.structs.replace(dead.message, sender="", number=0, message_id="", key="")
        inbox = subjects.inbox(cell, shard, subjects.agent_of(stored.subject), unique)
        payload = codec.seal(codec.encode_raw(message))
        await self._finish(letter_id, stored, [Record(inbox, payload, Expect(inbox, 0))])

    async def drop(self, letter_id: str) -> None:
        """Forget the message. Raises `NotFound` where it was replayed or dropped before."""
        stored, _ = await self._read(letter_id)
        await self._finish(letter_id, stored, [])

    async def _read(self, letter_id: str) -> tuple[Stored, DeadRecord]:
        parts = letter_id.split(".")
        if len(parts) != 5 or parts[2] != "dl" or parts[0] not in self._cells:
            raise NotFound(
                f"{letter_id!r} is the id of no dead letter: `holdfast dead-letters list` shows "
                "them"
            )
        stored = await self._engine.log.read(parts[0], letter_id)
        if stored is None:
            raise NotFound(
                f"there is no dead letter {letter_id}: it may have been replayed or dropped"
            )
        dead = _decode(codec.unseal(stored.payload, letter_id))
        if dead.done:
            raise NotFound(f"the dead letter {letter_id} was replayed or dropped before")
        return stored, dead

    async def _finish(self, letter_id: str, stored: Stored, records: list[Record]) -> None:
        cell = subjects.cell_of(stored.subject)
        done = DeadRecord(InboxMessage("", b""), ("", "", "", ""), 0, self._clock.now(), done=True)
        mark = Record(
            letter_id, codec.seal(codec.encode_raw(done)), Expect(letter_id, stored.sequence)
        )
        try:
            await self._gate.append(cell, [*records, mark])
        except Conflict:
            raise NotFound(
                f"the dead letter {letter_id} was replayed or dropped by somebody else"
            ) from None


def _letter(stored: Stored) -> DeadLetter | DeadRecord | None:
    """As people see it; the bare record where that only says that it is done; None where it cannot
    be read."""
    try:
        dead = _decode(codec.unseal(stored.payload, stored.subject))
    except (HoldfastError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    if dead.done:
        return dead
    try:
        arguments = codec.to_builtins(dead.message.arguments)
    except BadMessage:
        arguments = dead.message.arguments.hex()
    error = from_wire(*dead.error)
    details = error.details if isinstance(error, HandlerFailed) else ""
    kind = error.kind_of_error if isinstance(error, HandlerFailed) else type(error).__name__
    agent_id = "/".join(ids.from_agent_token(subjects.agent_of(stored.subject)))
    return DeadLetter(
        stored.subject,
        agent_id,
        dead.message.handler,
        arguments,
        str(error),
        kind,
        details,
        dead.attempts,
        dead.at,
    )
