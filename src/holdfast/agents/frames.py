"""Calls on their way out: all that one tick has for one node goes as one frame, as a frame costs more than a call in it.

Replies go the same way back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from operator import attrgetter

from msgspec import structs

from holdfast import codec, limits
from holdfast.agents.messages import Call, Frame, Reply
from holdfast.engines.base import Bus

_REMEMBERED_MAX = 8192
_payload_of = attrgetter("payload")


class Frames:
    """See the module. ``reply``: the subject that answers come to, with the frame's number behind it."""

    def __init__(self, bus: Bus, reply: str) -> None:
        self.reply = reply
        self.count = 0
        self._bus = bus
        self._loop = asyncio.get_running_loop()
        self._outgoing: dict[str | int, Frame] = {}
        self._references: dict[int, list[int]] = {}

    def add(self, to: str | int, call: Call) -> None:
        """Send a call with this tick's frame. ``to``: an incarnation, or a shard whose owner is not known."""
        frame = self._outgoing.get(to) or self._begin(to)
        frame.calls.append(call)

    def cancel(self, to: str, call: Call) -> None:
        """Send word that its caller gave up a call."""
        frame = self._outgoing.get(to) or self._begin(to)
        frame.cancelled.append(structs.replace(call, arguments=b""))

    def unheard(self, subject: str) -> Sequence[int]:
        """The references of a frame's calls, when nobody was there to hear it; ``subject``: its reply's."""
        return self._references.pop(int(subject.rpartition(".")[2]), ())

    def _begin(self, to: str | int) -> Frame:
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        frame = self._outgoing[to] = Frame(f"{self.reply}.0", [])
        return frame

    def _flush(self) -> None:
        outgoing, self._outgoing = self._outgoing, {}
        for to, frame in outgoing.items():
            subject = f"hf.s.{to}" if isinstance(to, int) else f"hf.n.{to}"
            calls, size, start = frame.calls, 0, 0
            for index, call in enumerate(calls):
                size += len(call.arguments) + len(call.token) + 96
                if size > limits.FRAME_BYTES_MAX and index > start:
                    self._publish(subject, Frame(frame.reply, calls[start:index]))
                    start, size = index, len(call.arguments)
            frame.calls = calls[start:]
            self._publish(subject, frame)

    def _publish(self, subject: str, frame: Frame) -> None:
        self.count += 1
        references = [call.reference for call in frame.calls if call.reference]
        if references:
            self._references[self.count] = references
            if len(self._references) > _REMEMBERED_MAX:  # nobody-there comes at once or never
                del self._references[next(iter(self._references))]
        self._bus.publish(subject, codec.encode_raw(frame), f"{self.reply}.{self.count}")


def split(replies: list[Reply]) -> Iterable[list[Reply]]:
    """The replies in frames of at most `limits.FRAME_BYTES_MAX`, but for one that is larger alone."""
    size = sum(map(len, map(_payload_of, replies))) + 16 * len(replies)
    if size <= limits.FRAME_BYTES_MAX:
        yield list(replies)
        return
    some: list[Reply] = []
    size = 0
    for reply in replies:
        size += len(reply.payload) + 16
        if some and size > limits.FRAME_BYTES_MAX:
            yield some
            some, size = [], len(reply.payload) + 16
        some.append(reply)
    yield some
