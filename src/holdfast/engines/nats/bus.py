"""The bus on the servers' own publish and subscribe."""

from __future__ import annotations

from collections.abc import Callable

from holdfast import limits
from holdfast.engines import checks
from holdfast.engines.base import Bus, Message, Subscription
from holdfast.engines.nats.connection import Connection, status
from holdfast.errors import Closed, NoQuorum, TooLarge, Unknown


class NatsBus(Bus):
    """See `holdfast.engines.base.Bus`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.published = 0
        self.dropped = 0

    def publish(self, subject: str, payload: bytes, reply: str = "") -> None:
        checks.check_subject(subject)
        if reply:
            checks.check_subject(reply)
        if len(payload) > limits.RECORD_BYTES_MAX:
            raise TooLarge(
                f"a message of {len(payload)} bytes on {subject}; {limits.RECORD_BYTES_MAX} are "
                "allowed"
            )
        data = b"PUB %s %s %d\r\n%s\r\n" % (subject.encode(), reply.encode(), len(payload), payload)
        if self._connection.send(data):
            self.published += 1
        else:
            self.dropped += 1

    async def subscribe(
        self, subject: str, callback: Callable[[Message], None], queue: str = ""
    ) -> Subscription:
        checks.check_filter(subject)

        def take(subject: str, reply: str, headers: bytes, payload: bytes) -> None:
            nobody = bool(headers) and status(headers) == 503 and not payload
            callback(Message(subject, reply, payload, nobody))

        return _Subscription(self._connection, await self._connection.listen(subject, take, queue))

    async def request(self, subject: str, payload: bytes, timeout_seconds: float) -> bytes:
        checks.check_subject(subject)
        if len(payload) > limits.RECORD_BYTES_MAX:
            raise TooLarge(
                f"a message of {len(payload)} bytes on {subject}; {limits.RECORD_BYTES_MAX} are "
                "allowed"
            )
        try:
            _, answer = await self._connection.ask(subject, payload, timeout_seconds)
        except Closed:
            raise
        except (NoQuorum, Unknown) as error:
            raise Unknown(f"{subject}: {error}") from None
        return answer


class _Subscription(Subscription):
    def __init__(self, connection: Connection, number: int) -> None:
        self._connection = connection
        self._number = number

    async def close(self) -> None:
        await self._connection.unlisten_in_order(self._number)
