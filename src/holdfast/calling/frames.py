"""Calls on their way out: all that one tick has for one node goes as one frame, as a frame costs
more than a call in it.

Replies go the same way back.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import TypeVar

import msgspec
from msgspec import structs

from holdfast import codec, limits
from holdfast.cluster.door import Door
from holdfast.engines.base import Bus
from holdfast.records.messages import Call, Frame, Probe, Replies, Reply

ItemT = TypeVar("ItemT")

_REMEMBERED_MAX = 8192
_is_reply = re.compile(r"hf\.r\.[A-Za-z0-9-]{1,64}\.[0-9]{1,20}", re.ASCII).fullmatch
decode_replies = msgspec.msgpack.Decoder(Replies).decode
_decode_calls = msgspec.msgpack.Decoder(Frame).decode


def calls_door() -> Door[Frame]:
    """Where frames of calls come in."""
    return Door("a frame of calls", _calls, answers=False)


def _calls(payload: bytes) -> Frame:
    frame = _decode_calls(payload)
    if not _is_reply(frame.reply):
        raise ValueError("its replies would go nowhere")
    return frame


_reference_of, _token_of = attrgetter("reference"), attrgetter("token")
_arguments_of, _payload_of = attrgetter("arguments"), attrgetter("payload")


class Frames:
    """See the module. ``reply``: the subject that answers come to, with the frame's number behind
    it."""

    def __init__(self, bus: Bus, reply: str) -> None:
        self.reply = reply
        self.count = 0
        self.door = Door("a frame of replies", decode_replies)
        self._bus = bus
        self._loop = asyncio.get_running_loop()
        self._outgoing: dict[str | int, Frame] = {}
        self._references: dict[int, list[int]] = {}

    def add(self, to: str | int, call: Call) -> None:
        """Send a call with this tick's frame. ``to``: an incarnation, or a shard whose owner is not
        known."""
        frame = self._outgoing.get(to) or self._begin(to)
        frame.calls.append(call)

    def cancel(self, to: str, call: Call) -> None:
        """Send word that its caller gave up a call."""
        frame = self._outgoing.get(to) or self._begin(to)
        frame.cancelled.append(structs.replace(call, arguments=b""))

    def probe(self, to: str | int, probe: Probe) -> None:
        """Send a probe after a call; see `circles`."""
        frame = self._outgoing.get(to) or self._begin(to)
        frame.probes.append(probe)

    def unheard(self, subject: str) -> Sequence[int]:
        """The references of a frame's calls, when nobody was there to hear it; ``subject``: its
        reply's."""
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
            *before, frame.calls = split(frame.calls, _call_bytes)
            for calls in before:
                self._publish(subject, Frame(frame.reply, calls))
            self._publish(subject, frame)

    def _publish(self, subject: str, frame: Frame) -> None:
        self.count += 1
        references = list(filter(None, map(_reference_of, frame.calls)))
        if references:
            self._references[self.count] = references
            if len(self._references) > _REMEMBERED_MAX:  # nobody-there comes at once or never
                del self._references[next(iter(self._references))]
        self._bus.publish(subject, codec.encode_raw(frame), f"{self.reply}.{self.count}")


def split(items: list[ItemT], measure: Callable[[list[ItemT]], int]) -> Iterable[list[ItemT]]:
    """The items in frames of at most `limits.FRAME_BYTES_MAX`, but for one that is larger alone.

    ``measure``: how many bytes some of them have.
    """
    if measure(items) <= limits.FRAME_BYTES_MAX:
        yield items
        return
    some: list[ItemT] = []
    size = 0
    for item in items:
        more = measure([item])
        if some and size + more > limits.FRAME_BYTES_MAX:
            yield some
            some, size = [], 0
        some.append(item)
        size += more
    yield some


def reply_bytes(replies: list[Reply]) -> int:
    """How many bytes replies have, about."""
    return sum(map(len, map(_payload_of, replies))) + 16 * len(replies)


def _call_bytes(calls: list[Call]) -> int:
    return (
        sum(map(len, map(_arguments_of, calls)))
        + sum(map(len, map(_token_of, calls)))
        + 96 * len(calls)
    )
