"""What is heard on the bus is a hint: false words, said once or again and again, and nonsense on
every control subject."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from tests.cluster.app import Account

from holdfast import LocalCluster, Node, codec, limits
from holdfast.cluster.members.beats import BEAT_SUBJECT, HOST_SUBJECT, Beat, HostBeat
from holdfast.cluster.members.liveness import base
from holdfast.engines.nats.engine import NatsEngine
from holdfast.records.messages import Call, Frame, Replies, Reply

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(900),
]
APP = str(Path(__file__).parent / "app.py")
MUCH = 1 << 40
_lives = itertools.count(9)


class Scene:
    """A cluster of three, a client of it, and what its hosts said of processes that ended."""

    def __init__(self, cluster: LocalCluster, node: Node, ended: list[dict[str, Any]]) -> None:
        self.cluster = cluster
        self.node = node
        self.ended = ended
        self.random = random.Random(1)
        self.deaths: list[str] = []
        """Incarnations that the client took for dead, whatever made it."""
        took = node._membership._on_death

        def died(incarnation: str) -> None:
            self.deaths.append(incarnation)
            took(incarnation)

        node._membership._on_death = died

    def beats(self) -> dict[str, Beat]:
        """The newest beat of each node that serves, as the client has heard it."""
        live = self.node._membership.live()
        return {beat.name: msgspec.structs.replace(beat) for beat in live if beat.kinds}

    def say(self, subject: str, payload: bytes, reply: bytes = b"") -> None:
        """Say something on the bus, whatever it is."""
        engine = self.node.engine
        assert isinstance(engine, NatsEngine)
        head = b"PUB %s %s %d\r\n" % (subject.encode(), reply, len(payload))
        engine.connection.send(head + payload + b"\r\n")

    async def all_is_well(self) -> None:
        """Every agent answers, each shard keeps its owner, and no process ended."""
        async with asyncio.timeout(200):
            while len(self.beats()) < 3:
                await asyncio.sleep(0.05)
            await self.node.ready(180)
            await asyncio.gather(
                *(self.node.agent(Account, f"a{n}").ask(Account.add) for n in range(60))
            )
            before = None
            while before != (now := dict(self.node._ownership.epochs.newest)):
                before = now
                await self.beats_pass(8)
        assert self.ended == []

    async def beats_pass(self, count: int) -> None:
        """Wait until each node that serves was heard so often."""
        heard: Counter[str] = Counter()
        last: dict[str, float] = {}
        while len(self.beats()) < 3 or any(heard[name] < count for name in self.beats()):
            for member in self.node._membership._members.values():
                name = member.beat.name
                heard[name] += member.beat.kinds != [] and last.get(name) != member.heard_at
                last[name] = member.heard_at
            await asyncio.sleep(limits.BEAT_SECONDS / 8)

    async def believe(self, lie: Any, beat: Beat, number: int) -> None:
        """Say a lie of a node until the client takes that node for dead: a true beat with its
        number may come before."""
        subject = HOST_SUBJECT if lie is word else BEAT_SUBJECT
        self.deaths.clear()
        async with asyncio.timeout(240):
            # one that was starved goes on as another
            while base(beat.incarnation) not in map(base, self.deaths):
                newest = self.beats().get(beat.name, beat)
                self.say(subject, lie(newest, number if number == MUCH else newest.number + 1))
                await asyncio.sleep(limits.BEAT_SECONDS / 4)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    ended: list[dict[str, Any]] = []

    def report(event: str, facts: dict[str, Any]) -> None:
        if event in ("node-ended", "server-ended", "failed"):
            ended.append({"event": event, **facts})

    directory = tmp_path_factory.mktemp("cluster")
    async with (
        LocalCluster(directory, [APP], report=report) as cluster,
        Node.join(cluster.urls) as node,
    ):
        made = Scene(cluster, node, ended)
        await made.all_is_well()
        yield made


def goodbye(beat: Beat, number: int) -> bytes:
    return codec.encode_raw(msgspec.structs.replace(beat, leaving=True, number=number))


def word(beat: Beat, _number: int) -> bytes:
    return codec.encode_raw(HostBeat(beat.host, [], [beat.incarnation.partition("~")[0]]))


def another(beat: Beat, number: int) -> bytes:
    name = f"{beat.incarnation.partition('~')[0]}~{next(_lives)}"
    return codec.encode_raw(msgspec.structs.replace(beat, incarnation=name, number=number))


# A host's word comes first: it counts for less of a node that has outlived one.
LIES = [(word, 1), (goodbye, 1), (another, 1), (goodbye, MUCH), (another, MUCH)]


@pytest.mark.parametrize(("lie", "number"), LIES)
async def test_a_lie_is_lived_down(scene: Scene, lie: Any, number: int) -> None:
    for beat in list(scene.beats().values())[:2]:
        await scene.believe(lie, beat, number)
    await scene.all_is_well()
    async with asyncio.timeout(240):
        while "" in (owners := set(scene.node.owners().values())) or len(owners) != 3:
            await asyncio.sleep(0.05)


async def test_lies_without_end_do_not_fill_the_log(scene: Scene) -> None:
    engine = scene.node.engine
    counted = 0

    async def count(cell: str) -> None:
        nonlocal counted
        start = await engine.log.last_sequence(cell) + 1
        async for chunk in engine.log.tail(cell, [f"{cell}.*.epoch"], start):
            counted += len(chunk.records)

    tasks = [asyncio.create_task(count(cell)) for cell in scene.node.manifest.cells]
    for round_ in range(40):
        for beat in scene.beats().values():
            lie = scene.random.choice([goodbye, word, another])
            scene.say(
                HOST_SUBJECT if lie is word else BEAT_SUBJECT, lie(beat, beat.number + round_ % 3)
            )
        await asyncio.sleep(0.2)
    await scene.all_is_well()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    # Without bounds it was some 1,500 a second, and it did not end.
    assert counted < 128 * 30, counted


def nonsense(values: list[bytes], source: random.Random) -> bytes:
    """Random bytes, a good message with some bytes changed or its end cut off, or one with a field
    of another kind."""
    kind = source.randrange(4)
    if kind == 0:
        return source.randbytes(source.randrange(200))
    value = source.choice(values)
    if kind == 1:
        return value[: source.randrange(len(value))]
    if kind == 2:
        place = source.randrange(len(value))
        return value[:place] + source.randbytes(1) + value[place + 1 :]
    fields = msgspec.msgpack.decode(value)
    strange: list[Any] = [
        math.nan,
        math.inf,
        -1,
        2**63,
        -1e300,
        None,
        "",
        "x" * 5000,
        "n-x~" + "9" * 5000,
        [],
        {},
    ]
    strange += [
        [[[[]]]],
        ["y"] * 300_000,
        b"\xff",
        "\x1b[2J",
        "a b",
        "*",
        ">",
        True,
        [math.nan] * 3,
    ]
    if isinstance(fields, list) and fields:
        fields[source.randrange(len(fields))] = source.choice(strange)
    return msgspec.msgpack.encode(fields)


async def test_nonsense_on_every_control_subject_ends_nothing(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    beats, source = scene.beats(), scene.random
    beat = next(iter(beats.values()))
    reconnections = scene.node.engine.statistics()["reconnections"]
    pids = {name: scene.cluster.node_pid(name) for name in beats}
    call = Call("Account/nobody", "value", b"\x90", 1 << 16, "p-x", 1, 1)
    good = {
        BEAT_SUBJECT: [codec.encode_raw(one) for one in beats.values()],
        HOST_SUBJECT: [codec.encode_raw(HostBeat("h9", ["n-x"], ["n-y"], "h-x", True, 3))],
        "hf.hold": [codec.encode_raw((0.0, 1.0, ""))],
        "hf.d": [b"", b"x"],
        "hf.h": [codec.encode_raw(("facts", {}))],
        "hf.h.h1": [codec.encode_raw(("facts", {}))],
        f"hf.n.{beat.incarnation}": [codec.encode_raw(Frame("hf.r.p-x.0", [call, call], [call]))],
        "hf.s.3": [codec.encode_raw(Frame("hf.r.p-x.0", [call]))],
        f"{scene.node._router._frames.reply}.1": [
            codec.encode_raw(Replies(beat.incarnation, [Reply(65537, 1, b"x")]))
        ],
    }
    replies = [
        b"",
        b"hf.x",
        b"a..b",
        b">",
        b"*.x",
        b".",
        b"x" * 3000,
        b"\xff\xfe",
        "\u00e9.\u2028".encode(),
    ]
    for _ in range(400):
        for subject, values in good.items():
            payload = nonsense(values, source) if subject != "hf.d" else source.randbytes(5)
            scene.say(subject, payload, source.choice(replies))
        await scene.node.engine.connection._read_by_server(240.0)  # type: ignore[attr-defined]
    await scene.all_is_well()
    assert {name: scene.cluster.node_pid(name) for name in beats} == pids
    assert scene.node.statistics()["malformed"] > 100
    assert scene.node.engine.statistics()["reconnections"] == reconnections
    assert not [
        record.getMessage() for record in caplog.records if "callback" in record.getMessage()
    ]
