"""What hosts answer to each other and to operators, over the bus.

Much of what an operator wants to know is known to one host alone: its disk, its processes, what its
server keeps. So each host answers on a subject of its own, ``hf.h.<host>``, and all answer on
``hf.h``. A request names an operation of one table; its arguments and its answer are declared
types.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, Generic, NamedTuple, TypeVar
from urllib.parse import quote

import msgspec

from holdfast import codec, ids, limits
from holdfast.cluster.door import Door, Long, Name, Text
from holdfast.engines.base import Bus, Message, Subscription
from holdfast.errors import (
    BadMessage,
    HoldfastError,
    InvalidName,
    NoResponders,
    Overloaded,
    Unknown,
    from_wire,
    to_wire,
)

T = TypeVar("T")

ALL_SUBJECT: Final = "hf.h"
ANSWER_SECONDS: Final = 3.0
_UNDER_WAY_MAX: Final = 64
"""Requests that one host works on at once."""


def subject_of(host: str) -> str:
    """Where a host answers."""
    token = quote(host, safe="").replace(".", "%2E").replace("~", "%7E")
    if not token:
        raise InvalidName("a host has a name")
    return f"{ALL_SUBJECT}.{token}"


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """The arguments of an operation that has none."""


class Operation(NamedTuple):
    """``takes`` is a struct, ``run`` is called with one; what it returns is the answer's value."""

    takes: type[Any]
    run: Callable[[Any], Awaitable[Any]]


class _Request(msgspec.Struct, array_like=True):
    operation: Text
    arguments: msgspec.Raw


class _Answer(msgspec.Struct, array_like=True):
    host: Name
    value: msgspec.Raw
    error: Text = ""
    """The error's class, empty for none."""
    text: Long = ""


_decode_request = msgspec.msgpack.Decoder(_Request).decode
_decode_answer = msgspec.msgpack.Decoder(_Answer).decode
_NONE: Final = msgspec.Raw(codec.encode_raw(None))


class HostService:
    """The answering side, on one host."""

    def __init__(self, bus: Bus, host: str, operations: Mapping[str, Operation]) -> None:
        self._bus = bus
        self._host = host
        self._operations = operations
        self._subscriptions: list[Subscription] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._door = Door(f"a request to host {host}", bytes)

    async def start(self) -> None:
        """Begin to answer. Raises `NoQuorum`, `Closed`."""
        for subject in (ALL_SUBJECT, subject_of(self._host)):
            self._subscriptions.append(await self._bus.subscribe(subject, self._take))

    async def close(self) -> None:
        """End; what is under way is cancelled."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for subscription in self._subscriptions:
            await subscription.close()

    def _take(self, message: Message) -> None:
        if not message.reply or self._door.read(message) is None:
            return
        if len(self._tasks) >= _UNDER_WAY_MAX:
            refused = Overloaded(f"host {self._host} works on {_UNDER_WAY_MAX} requests")
            self._answer(message.reply, _refusal(self._host, refused))
            return
        task = asyncio.get_running_loop().create_task(self._work(message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work(self, message: Message) -> None:
        try:
            answer = _Answer(
                self._host, msgspec.Raw(codec.encode_raw(await self._run(message.payload)))
            )
        except HoldfastError as error:
            answer = _refusal(self._host, error)
        except Exception as error:
            answer = _refusal(
                self._host, HoldfastError(f"host {self._host}: {type(error).__name__}: {error}")
            )
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a host's operation failed", "exception": error}
            )
        self._answer(message.reply, answer)

    def _answer(self, reply: str, answer: _Answer) -> None:
        self._bus.publish(reply, codec.encode_raw(answer))

    async def _run(self, payload: bytes) -> Any:
        try:
            request = _decode_request(payload)
        except codec.ERRORS as error:
            raise BadMessage(f"a request to host {self._host}: {error}") from None
        operation = self._operations.get(request.operation)
        if operation is None:
            known = ", ".join(sorted(self._operations))
            raise BadMessage(
                f"host {self._host} has no operation {request.operation!r}: it has {known}"
            )
        arguments = codec.decode(
            request.arguments, operation.takes, f"{request.operation} of host {self._host}"
        )
        return await operation.run(arguments)


def _refusal(host: str, error: HoldfastError) -> _Answer:
    name, text, _, _ = to_wire(error)
    return _Answer(host, _NONE, name, text)


# Asking -------------------------------------------------------------------------------------------


def _encode(operation: str, arguments: Any) -> bytes:
    return codec.encode_raw(
        _Request(operation, msgspec.Raw(codec.encode_raw(arguments or Nothing())))
    )


def _read(payload: bytes, kind: Any) -> tuple[str, Any]:
    """The host that answers, and what: a value, or an error. Raises `ValueError` for what does not
    fit."""
    try:
        answer = _decode_answer(payload)
        if answer.error:
            return answer.host, from_wire(answer.error, answer.text)
        value = codec.decoder(kind).decode(answer.value)
    except codec.ERRORS as error:
        raise ValueError(str(error)) from None
    if (own := getattr(value, "host", answer.host)) != answer.host:
        raise ValueError(f"it says that it is of {own[:60]!r}")
    return answer.host, value


@lru_cache(maxsize=64)
def answers_door(operation: str, kind: Any) -> Door[tuple[str, Any]]:
    """For what hosts answer, one in a process: watchers ask again and again, and it is said once
    all the same."""
    return Door(f"an answer ({operation})", lambda payload: _read(payload, kind), answers=False)


async def ask_host(
    bus: Bus,
    host: str,
    operation: str,
    kind: type[T],
    arguments: Any = None,
    timeout_seconds: float = ANSWER_SECONDS,
) -> T:
    """What one host answers, as a ``kind``.

    Raises `NoResponders` where that host is not there, `Unknown` after the timeout and for an
    answer that does not fit or is of another host, and whatever error it answers.
    """
    try:
        payload = await bus.request(
            subject_of(host), _encode(operation, arguments), timeout_seconds
        )
    except NoResponders:
        raise NoResponders(f"host {host} is not there") from None
    try:
        who, value = _read(payload, kind)
    except ValueError as error:
        raise Unknown(f"the answer of host {host} cannot be read: {error}") from None
    if isinstance(value, HoldfastError):
        raise value
    if who != host:
        raise Unknown(f"{who[:60]!r} answered in the place of host {host}")
    answer: T = value
    return answer


async def ask_hosts(
    bus: Bus,
    operation: str,
    kind: type[T],
    arguments: Any = None,
    *,
    expected: Sequence[str] = (),
    wait_seconds: float = 1.0,
) -> dict[str, T | HoldfastError]:
    """What all hosts answer, by host; an error in place of a value where a host answers with one.

    It takes ``wait_seconds``, as nobody knows who else is there; less where all of ``expected``
    have answered.
    """
    heard = await hear_hosts(
        bus, operation, kind, arguments, expected=expected, wait_seconds=wait_seconds
    )
    return {one.host: one.value for one in heard}


class Heard(NamedTuple, Generic[T]):
    """One answer. ``seconds``: how long after the question it came."""

    host: str
    value: T | HoldfastError
    seconds: float


async def hear_hosts(
    bus: Bus,
    operation: str,
    kind: type[T],
    arguments: Any = None,
    *,
    expected: Sequence[str] = (),
    wait_seconds: float = 1.0,
    enough: Callable[[str, T | HoldfastError], bool] | None = None,
) -> list[Heard[T]]:
    """As `ask_hosts`, with every answer there is: two hosts may have the same name, by mistake.
    What does not fit is dropped, and who sent it has not answered.

    ``enough`` is called with each answer, and says whether it was the last one that is waited for.
    """
    found: list[Heard[T]] = []
    loop = asyncio.get_running_loop()
    asked_at = loop.time()
    complete = asyncio.Event()

    wanted: Any = kind
    door = answers_door(operation, wanted)

    def take(message: Message) -> None:
        if message.no_responders and not message.payload:
            complete.set()
            return
        if len(found) >= limits.HOSTS_HEARD_MAX or (read := door.read(message)) is None:
            return
        host, value = read
        found.append(Heard(host, value, loop.time() - asked_at))
        if enough is not None and enough(host, value):
            complete.set()
        if expected and {one.host for one in found} >= set(expected):
            complete.set()

    reply = f"hf.hr.{ids.new_id('q')}"
    subscription = await bus.subscribe(reply, take)
    try:
        bus.publish(ALL_SUBJECT, _encode(operation, arguments), reply)
        async with asyncio.timeout(wait_seconds):
            await complete.wait()
    except TimeoutError:
        pass
    finally:
        await subscription.close()
    return found
