"""The bus within one process: every message goes over the event loop, never straight into its
receiver."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from holdfast import limits
from holdfast.engines import checks
from holdfast.engines.base import Bus, Message, Subscription, matches
from holdfast.errors import Closed, InvalidName, NoResponders, TooLarge, Unknown
from holdfast.ids import new_id

_logger = logging.getLogger(__name__)


class LocalBus(Bus):
    """See `holdfast.engines.base.Bus`. The messages of one tick are delivered in the next, in
    order."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._exact: dict[str, list[_Local]] = {}
        self._wild: list[_Local] = []
        self._waiting: list[Message] = []
        self._turn = 0
        self.closed = False
        self.published = 0

    def publish(self, subject: str, payload: bytes, reply: str = "") -> None:
        checks.check_subject(subject)
        if reply:
            checks.check_subject(reply)
        if len(payload) > limits.RECORD_BYTES_MAX:
            raise TooLarge(
                f"a message of {len(payload)} bytes on {subject}; {limits.RECORD_BYTES_MAX} are "
                "allowed"
            )
        if self.closed:
            return
        self.published += 1
        self._put(Message(subject, reply, payload))

    def _put(self, message: Message) -> None:
        if not self._waiting:
            self._loop.call_soon(self._deliver)
        self._waiting.append(message)

    def _deliver(self) -> None:
        waiting, self._waiting = self._waiting, []
        for message in waiting:
            served = self._receivers(message.subject)
            if not served and message.reply:
                self._put(Message(message.reply, "", b"", no_responders=True))
            for subscription in served:
                if subscription.open:
                    try:
                        subscription.callback(message)
                    except Exception:
                        _logger.exception("the callback of %s failed", message.subject)

    def _receivers(self, subject: str) -> list[_Local]:
        found = self._exact.get(subject, [])
        if self._wild:
            found = found + [one for one in self._wild if matches(one.subject, subject)]
        if len(found) < 2:
            return list(found)
        queues: dict[str, list[_Local]] = {}
        for one in found:
            queues.setdefault(one.queue, []).append(one)
        self._turn += 1
        alone = queues.pop("", [])
        return alone + [members[self._turn % len(members)] for members in queues.values()]

    async def subscribe(
        self, subject: str, callback: Callable[[Message], None], queue: str = ""
    ) -> Subscription:
        checks.check_filter(subject)
        if self.closed:
            raise Closed("the bus was closed")
        subscription = _Local(self, subject, callback, queue)
        if "*" in subject or ">" in subject:
            self._wild.append(subscription)
        else:
            self._exact.setdefault(subject, []).append(subscription)
        return subscription

    def remove(self, subscription: _Local) -> None:
        """End a subscription; see `Subscription.close`."""
        members = self._exact.get(subscription.subject, [])
        if subscription in members:
            members.remove(subscription)
            if not members:
                del self._exact[subscription.subject]
        elif subscription in self._wild:
            self._wild.remove(subscription)

    async def request(self, subject: str, payload: bytes, timeout_seconds: float) -> bytes:
        return await request(self, subject, payload, timeout_seconds)


async def request(bus: Bus, subject: str, payload: bytes, timeout_seconds: float) -> bytes:
    """See `Bus.request`."""
    answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
    inbox = new_id("hf.r")
    if "*" in subject or ">" in subject:
        raise InvalidName(f"{subject!r} is no subject to ask: it has a wildcard")

    def answered(message: Message) -> None:
        if not answer.done():
            answer.set_result(message)

    subscription = await bus.subscribe(inbox, answered)
    try:
        bus.publish(subject, payload, inbox)
        async with asyncio.timeout(timeout_seconds):
            message = await answer
    except TimeoutError:
        raise Unknown(f"{subject} did not answer within {timeout_seconds} s") from None
    finally:
        await subscription.close()
    if message.no_responders:
        raise NoResponders(f"nobody serves {subject}")
    return message.payload


class _Local(Subscription):
    __slots__ = ("_bus", "callback", "open", "queue", "subject")

    def __init__(
        self, bus: LocalBus, subject: str, callback: Callable[[Message], None], queue: str
    ) -> None:
        self._bus = bus
        self.subject = subject
        self.callback = callback
        self.queue = queue
        self.open = True

    async def close(self) -> None:
        self.open = False
        self._bus.remove(self)
