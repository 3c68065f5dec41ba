"""What one tick has for one node goes as few frames, none of which is too large for the bus."""

from __future__ import annotations

import asyncio

import msgspec

from holdfast import limits
from holdfast.calling.frames import Frames, reply_bytes, split
from holdfast.records.messages import Call, Frame, Reply


class _Bus:
    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes, str]] = []

    def publish(self, subject: str, payload: bytes, reply: str = "") -> None:
        self.sent.append((subject, payload, reply))


async def test_large_calls_of_one_tick_go_as_several_frames_in_order_and_cancels_behind_them() -> (
    None
):
    bus = _Bus()
    frames = Frames(bus, "hf.r.p")  # type: ignore[arg-type]  # publish is all that it uses
    calls = [
        Call("K/a", "h", b"x" * (limits.FRAME_BYTES_MAX // 3), number, "p") for number in range(10)
    ]
    for call in calls:
        frames.add("i-1", call)
    frames.cancel("i-1", calls[3])
    await asyncio.sleep(0)

    sent = [msgspec.msgpack.decode(payload, type=Frame) for _, payload, _ in bus.sent]
    assert {subject for subject, _, _ in bus.sent} == {"hf.n.i-1"}
    assert [call.reference for frame in sent for call in frame.calls] == list(range(10))
    assert (
        len(sent) == 5 and max(len(payload) for _, payload, _ in bus.sent) <= limits.FRAME_BYTES_MAX
    )
    assert [len(frame.cancelled) for frame in sent] == [0, 0, 0, 0, 1]
    unheard = [list(frames.unheard(reply)) for _, _, reply in bus.sent]
    assert unheard == [[1], [2, 3], [4, 5], [6, 7], [8, 9]]  # a reference of 0 wants no reply


def test_one_reply_that_is_too_large_goes_alone() -> None:
    sizes = [10, limits.FRAME_BYTES_MAX + 1, 10, 10]
    replies = [Reply(number, 0, b"x" * size) for number, size in enumerate(sizes)]
    parts = [[reply.reference for reply in part] for part in split(replies, reply_bytes)]
    assert parts == [[0], [1], [2, 3]]
