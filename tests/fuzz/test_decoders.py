"""Garbage into everything that decodes bytes from elsewhere: a typed error or nothing, never a
crash."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.agents.kinds import Counter, Receiver, serving

from holdfast import Node, codec
from holdfast.cluster.facts.manifest import Manifest
from holdfast.cluster.facts.manifest import decode as decode_manifest
from holdfast.cluster.members.beats import Beat, HostBeat
from holdfast.engines.base import Message, Record
from holdfast.engines.nats import connection
from holdfast.errors import BadMessage, DataLoss, HoldfastError, InvalidName
from holdfast.ids import from_agent_token, parse_agent_id
from holdfast.records import agent_record
from holdfast.records.messages import Call, DeadRecord, Frame, InboxMessage, Replies, Reply

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text()
    | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)
garbage = st.binary(max_size=200) | plain.map(lambda value: msgspec.msgpack.encode(value))


def damaged(values: list[bytes]) -> st.SearchStrategy[bytes]:
    """A good value with one byte changed, or its end cut off."""

    def change(value: bytes, place: int, byte: int, cut: bool) -> bytes:
        place %= len(value)
        return value[:place] if cut else value[:place] + bytes([byte]) + value[place + 1 :]

    return st.builds(
        change, st.sampled_from(values), st.integers(0, 10_000), st.integers(0, 255), st.booleans()
    )


@given(garbage)
def test_records(data: bytes) -> None:
    for payload in (data, codec.seal(data)):
        with pytest.raises(DataLoss):
            agent_record.decode(payload, "x")
        with pytest.raises(DataLoss):
            decode_manifest(payload)


@given(
    garbage,
    st.sampled_from(
        [int, str, list[int], dict[str, float], np.ndarray, Manifest, Any, set[int], bytes]
    ),
)
def test_values_of_a_type(data: bytes, kind: Any) -> None:
    with suppress(BadMessage):
        codec.decode(data, kind, "x")
    with suppress(BadMessage):
        codec.to_builtins(data)


array = codec.encode_raw(np.arange(12, dtype=np.float32).reshape(3, 4))


@given(
    damaged([array, codec.encode_raw(np.array(["a", "bc"])), codec.encode_raw([np.zeros(3), 1])])
)
def test_damaged_arrays(data: bytes) -> None:
    for kind in (np.ndarray, Any, list[Any]):
        with suppress(BadMessage):
            codec.decode(data, kind, "x")


@given(garbage)
def test_handler_arguments(data: bytes) -> None:
    for method in (Counter.add, Counter.note, Counter.value, Receiver.take):
        with suppress(BadMessage):
            method.decode_arguments(data)


@given(st.text(max_size=300))
def test_names(text: str) -> None:
    for function in (from_agent_token, parse_agent_id):
        try:
            kind, name = function(text)
        except InvalidName:
            continue
        assert kind and name


@given(st.binary(max_size=100), st.binary(max_size=20))
def test_server_headers(data: bytes, name: bytes) -> None:
    assert connection.status(data) >= 0
    with suppress(UnicodeDecodeError):
        connection.header(b"NATS/1.0\r\n" + data, name)


frames = [
    codec.encode_raw(Frame("hf.r.x.0", [Call("Counter/a", "add", b"\x91\x01", 7, "p-x", 1, 1)])),
    codec.encode_raw(Replies("n-x", [Reply(1, 0, b"\x01")])),
    codec.encode_raw(Beat("n-x", "h", "n", 0.0, ["A"], 1, 2, "0.1")),
    codec.encode_raw(HostBeat("h", ["n-x"])),
    codec.encode_raw(InboxMessage("add", b"\x91\x01", "p-x", 1)),
    codec.encode_raw(
        DeadRecord(InboxMessage("add", b"\x91\x01"), ("ValueError", "x", "", ""), 1, 0.0)
    ),
]


class Served:
    """A node with a loop of its own, for all examples."""

    def __init__(self, runner: asyncio.Runner, node: Node, failures: list[dict[str, Any]]) -> None:
        self.runner = runner
        self.node = node
        self.failures = failures
        self.count = 0


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    failures: list[dict[str, Any]] = []
    with asyncio.Runner() as runner:
        manager = serving(Path(tmp_path_factory.mktemp("fuzz")) / "log.db")
        node = runner.run(manager.__aenter__())
        runner.get_loop().set_exception_handler(lambda _, context: failures.append(context))
        yield Served(runner, node, failures)
        runner.run(manager.__aexit__(None, None, None))


@given(garbage | damaged(frames) | st.sampled_from(frames))
def test_garbage_on_the_bus_harms_no_node(served: Served, data: bytes) -> None:
    node = served.node

    async def throw() -> None:
        message = Message("hf.x", "hf.y", data)
        node._runtime.intake._on_frame(message)
        node._router._on_message(Message(f"{node._router._frames.reply}.0", "", data))
        node._membership._on_beat(message)
        node._membership._on_host(message)
        await asyncio.sleep(0)
        served.count += 1
        by = served.count % 2
        before = await node.agent(Counter, "well").ask(Counter.value)
        assert await node.agent(Counter, "well").ask(Counter.add, by) == before + by

    served.runner.run(throw())
    assert served.failures == []


@given(garbage | damaged(frames))
def test_garbage_in_an_inbox_becomes_a_dead_letter(served: Served, data: bytes) -> None:
    node = served.node

    async def put() -> None:
        served.count += 1
        info = node.describe("Counter/inbox")
        for number, payload in enumerate((data, codec.seal(data))):
            subject = f"{info.cell}.{info.shard}.in.Counter/inbox.x-{served.count}-{number}"
            await node.engine.log.append(info.cell, [Record(subject, payload)])
        await node.agent(Counter, "inbox").send(Counter.add, 1)
        before = await node.agent(Counter, "well").ask(Counter.value)
        assert await node.agent(Counter, "well").ask(Counter.add, 1) == before + 1

    served.runner.run(put())
    assert served.failures == []


def test_the_inbox_was_handled_to_its_end(served: Served) -> None:
    async def look() -> None:
        async with asyncio.timeout(240):
            while not await node.dead_letters.all("Counter/inbox"):
                await asyncio.sleep(0.05)
            sent = await node.agent(Counter, "inbox").ask(Counter.add, 0)
            while sent != await node.agent(Counter, "inbox").ask(Counter.add, 0):
                await asyncio.sleep(0.05)

    node = served.node
    served.runner.run(look())
    assert served.failures == []


@given(plain)
def test_arguments_by_names_alone(served: Served, value: Any) -> None:
    async def call() -> None:
        with suppress(HoldfastError):
            await served.node.ask_by_name("Counter/plain", "note", value)

    served.runner.run(call())
    assert served.failures == []


heads = st.tuples(
    st.sampled_from(
        [
            "<f8",
            "|b1",
            "<U3",
            "<U999999999",
            "<M8[ns]",
            "V3",
            "bfloat16",
            "finfo",
            "int4",
            "os",
            "<f8, <f8",
            "",
        ]
    ),
    st.lists(st.integers(-1, 3) | st.integers(0, 2**64 - 1), max_size=4),
).map(msgspec.msgpack.encode)
bodies = st.binary(max_size=64)
framed = st.builds(
    lambda head, body: len(head).to_bytes(4, "little") + head + body, heads | bodies, bodies
)


@given(st.integers(0, 4), framed | bodies | st.just(b"2026-01-01T10:00:00+02:00"))
def test_extension_values(code: int, data: bytes) -> None:
    """Arrays and moments as somebody else may have written them: exact, or a typed error."""
    value = msgspec.msgpack.encode([msgspec.msgpack.Ext(code, data)])
    for kind in (Any, list[np.ndarray], list[Any], set[Any]):
        with suppress(BadMessage):
            codec.decode(value, kind, "x")
        with suppress(BadMessage):
            codec.decode_by(codec.decoder(kind, borrowed=True).decode, value, "x")
    with suppress(BadMessage):
        codec.to_builtins(value)
