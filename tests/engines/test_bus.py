"""The bus's promises, on every engine."""

from __future__ import annotations

import asyncio

import pytest
from tests.patience import until

from holdfast import limits
from holdfast.engines.base import Engine, Message
from holdfast.errors import InvalidName, NoResponders, TooLarge, Unknown
from holdfast.ids import new_id


@pytest.fixture
def base() -> str:
    return new_id("bus")


async def test_messages_arrive_in_order(engine: Engine, base: str) -> None:
    heard: list[Message] = []
    await engine.bus.subscribe(f"{base}.a", heard.append)
    for n in range(2000):
        engine.bus.publish(f"{base}.a", str(n).encode())
    await until(lambda: len(heard) == 2000)
    assert [int(message.payload) for message in heard] == list(range(2000))
    assert {(message.subject, message.reply, message.no_responders) for message in heard} == {
        (f"{base}.a", "", False)
    }


async def test_filters(engine: Engine, base: str) -> None:
    one: list[str] = []
    rest: list[str] = []
    await engine.bus.subscribe(f"{base}.*.x", lambda message: one.append(message.subject))
    await engine.bus.subscribe(f"{base}.a.>", lambda message: rest.append(message.subject))
    for subject in ("a.x", "b.x", "a.y", "a.x.z", "a"):
        engine.bus.publish(f"{base}.{subject}", b"")
    await until(lambda: len(one) == 2 and len(rest) == 3)
    assert one == [f"{base}.a.x", f"{base}.b.x"]
    assert rest == [f"{base}.a.x", f"{base}.a.y", f"{base}.a.x.z"]


async def test_one_of_a_queue_gets_each_message(engine: Engine, base: str) -> None:
    first: list[Message] = []
    second: list[Message] = []
    await engine.bus.subscribe(f"{base}.q", first.append, "workers")
    await engine.bus.subscribe(f"{base}.q", second.append, "workers")
    for n in range(200):
        engine.bus.publish(f"{base}.q", str(n).encode())
    await until(lambda: len(first) + len(second) == 200)
    assert sorted(int(message.payload) for message in first + second) == list(range(200))
    assert first and second


async def test_a_request_is_answered(engine: Engine, base: str) -> None:
    await engine.bus.subscribe(base, lambda m: engine.bus.publish(m.reply, m.payload * 2))
    assert await asyncio.gather(
        *(engine.bus.request(base, str(n).encode(), 240) for n in range(50))
    ) == [str(n).encode() * 2 for n in range(50)]


async def test_nobody_there_is_said_at_once(engine: Engine, base: str) -> None:
    loop = asyncio.get_running_loop()
    started = loop.time()
    with pytest.raises(NoResponders):
        await engine.bus.request(base, b"", 240)
    heard: list[Message] = []
    await engine.bus.subscribe(f"{base}.reply.*", heard.append)
    engine.bus.publish(f"{base}.nobody", b"x", f"{base}.reply.7")
    await until(lambda: bool(heard))
    assert heard == [Message(f"{base}.reply.7", "", b"", True)]
    assert loop.time() - started < 120


async def test_no_answer_is_unknown(engine: Engine, base: str) -> None:
    await engine.bus.subscribe(base, lambda _: None)
    with pytest.raises(Unknown):
        await engine.bus.request(base, b"", 0.2)


async def test_a_closed_subscription_hears_nothing(engine: Engine, base: str) -> None:
    heard: list[Message] = []
    subscription = await engine.bus.subscribe(base, heard.append)
    await subscription.close()
    await subscription.close()
    engine.bus.publish(base, b"")
    with pytest.raises(NoResponders):
        await engine.bus.request(base, b"", 240)
    assert heard == []


async def test_bad_messages_are_refused(engine: Engine, base: str) -> None:
    with pytest.raises(TooLarge):
        engine.bus.publish(base, b"x" * (limits.RECORD_BYTES_MAX + 1))
    for subject in ("", "a b", "a.*", "a.>", "x\r\nPUB y 0\r\n\r\n"):
        with pytest.raises(InvalidName):
            engine.bus.publish(subject, b"")
        with pytest.raises(InvalidName):
            engine.bus.publish(base, b"", subject or "a..b")
    with pytest.raises(InvalidName):
        await engine.bus.subscribe("a..b", lambda _: None)
    with pytest.raises(InvalidName):
        await engine.bus.request(f"{base}.*", b"", 1)


async def test_a_message_of_the_largest_size(engine: Engine, base: str) -> None:
    heard: list[Message] = []
    await engine.bus.subscribe(base, heard.append)
    engine.bus.publish(base, b"y" * limits.RECORD_BYTES_MAX)
    await until(lambda: bool(heard))
    assert heard[0].payload == b"y" * limits.RECORD_BYTES_MAX
