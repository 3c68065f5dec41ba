"""The log's promises, one by one, on every engine."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
from tests.patience import again

from holdfast import limits
from holdfast.engines.base import Engine, Expect, Record, Stored
from holdfast.engines.nats import replica, streams
from holdfast.engines.nats import tail as nats_tail
from holdfast.engines.nats.engine import NatsEngine
from holdfast.engines.nats.tail import _WIDE_ABOVE, _WIDE_SECONDS
from holdfast.errors import Closed, Conflict, Fenced, InvalidName, NoQuorum, TooLarge, Unknown


async def put(
    engine: Engine, cell: str, subject: str, payload: bytes = b"x", expect: int | None = None
) -> int:
    """Append one record, and append it again while an engine refuses it with `NoQuorum`: nothing
    was written then. An engine may refuse either of two that are under way."""
    subject = f"{cell}.{subject}"
    wanted = None if expect is None else Expect(subject, expect)
    record = Record(subject, payload, wanted)
    return (await again(lambda: engine.log.append(cell, [record]), NoQuorum))[0]


async def eventually(engine: Engine, cell: str, subject: str, sequence: int) -> Stored:
    """Read until a replica shows the record that is known to be there."""

    async def look() -> Stored:
        stored = await engine.log.read(cell, f"{cell}.{subject}")
        assert stored is not None and stored.sequence >= sequence, stored
        return stored

    return await again(look, AssertionError, NoQuorum)


async def take(
    engine: Engine, cell: str, filters: list[str], count: int, start: int = 1
) -> list[Stored]:
    found: list[Stored] = []
    async with asyncio.timeout(240), aclosing(engine.log.tail(cell, filters, start)) as tail:  # type: ignore[type-var]
        async for chunk in tail:
            found += chunk.records
            if len(found) >= count:
                break
    return found


async def replicas_agree(engine: Engine, cell: str) -> None:
    """Wait until every replica has what the leader has. A tail may read any of them."""
    if not isinstance(engine, NatsEngine):
        return
    connection = engine.connection

    async def look() -> None:
        leading = await streams.info(connection, cell)
        assert leading.cluster.leader, leading.cluster
        names = [leading.cluster.leader, *(peer.name for peer in leading.cluster.replicas)]
        sizes = await replica.sizes(connection, cell, names)
        assert {(one.last_sequence, one.messages) for one in sizes.values()} == {
            (leading.state.last_seq, leading.state.messages)
        }, sizes

    await again(look, AssertionError, NoQuorum, Unknown)


async def test_what_was_appended_is_read(engine: Engine, cell: str) -> None:
    sequence = await put(engine, cell, "a.b", b"\x00\r\nvalue\xff")
    stored = await eventually(engine, cell, "a.b", sequence)
    assert stored == Stored(f"{cell}.a.b", sequence, b"\x00\r\nvalue\xff")
    assert await engine.log.read_sequence(cell, sequence) == stored
    assert await engine.log.read(cell, f"{cell}.nothing") is None
    assert await engine.log.read_sequence(cell, sequence + 100) is None
    assert await engine.log.read_sequence(cell, 0) is None


async def test_an_empty_payload_is_a_record(engine: Engine, cell: str) -> None:
    sequence = await put(engine, cell, "empty", b"")
    assert (await eventually(engine, cell, "empty", sequence)).payload == b""


async def test_sequences_are_consecutive_and_only_grow(engine: Engine, cell: str) -> None:
    first = await engine.log.append(cell, [Record(f"{cell}.{n}", b"") for n in range(5)])
    second = await engine.log.append(cell, [Record(f"{cell}.{n}", b"") for n in range(3)])
    assert list(first) == [1, 2, 3, 4, 5]
    assert list(second) == [6, 7, 8]
    assert await engine.log.last_sequence(cell) == 8


async def test_only_the_newest_of_a_subject_is_kept(engine: Engine, cell: str) -> None:
    old = await put(engine, cell, "s", b"old")
    new = await put(engine, cell, "s", b"new")
    assert (await eventually(engine, cell, "s", new)).payload == b"new"
    assert await engine.log.read_sequence(cell, old) is None
    await replicas_agree(engine, cell)
    assert [stored.payload for stored in await take(engine, cell, [f"{cell}.>"], 1)] == [b"new"]


async def test_a_batch_is_all_or_nothing(engine: Engine, cell: str) -> None:
    await put(engine, cell, "there")
    batch = [Record(f"{cell}.new-{n}", b"") for n in range(20)]
    batch[13] = Record(f"{cell}.there", b"changed", Expect(f"{cell}.there", 0))
    with pytest.raises(Conflict):
        await engine.log.append(cell, batch)
    assert [stored.payload for stored in await take(engine, cell, [f"{cell}.>"], 1)] == [b"x"]
    assert await engine.log.last_sequence(cell) == 1
    assert list(
        await engine.log.append(cell, [record for record in batch if record.expect is None])
    ) == [*range(2, 21)]


async def test_compare_and_set(engine: Engine, cell: str) -> None:
    first = await put(engine, cell, "s", expect=0)
    with pytest.raises(Conflict) as caught:
        await put(engine, cell, "s", expect=0)
    assert not isinstance(caught.value, Fenced)
    second = await put(engine, cell, "s", expect=first)
    with pytest.raises(Conflict):
        await put(engine, cell, "s", expect=first)
    assert await put(engine, cell, "s", expect=second) == 3


async def test_of_many_that_create_one_succeeds(engine: Engine, cell: str) -> None:
    async def create(number: int) -> int:
        try:
            return await put(engine, cell, "only", str(number).encode(), expect=0)
        except Conflict:
            return 0

    made = [sequence for sequence in await asyncio.gather(*map(create, range(50))) if sequence]
    assert len(made) == 1


async def test_an_old_fence_is_refused(engine: Engine, cell: str) -> None:
    epoch = await put(engine, cell, "7.epoch", b"one")
    fence = Expect(f"{cell}.7.epoch", epoch)
    assert (
        len(
            await engine.log.append(
                cell, [Record(f"{cell}.7.st.a", b"1", fence), Record(f"{cell}.7.st.b", b"1")]
            )
        )
        == 2
    )
    await put(engine, cell, "7.epoch", b"two", expect=epoch)
    for records in (
        [Record(f"{cell}.7.st.a", b"2", fence)],
        [Record(f"{cell}.7.st.a", b"2", fence), Record(f"{cell}.7.st.b", b"2")],
        [Record(f"{cell}.8.st.c", b"2"), Record(f"{cell}.7.st.a", b"2", fence)],
    ):
        with pytest.raises(Fenced):
            await engine.log.append(cell, records)
    assert {s.payload for s in await take(engine, cell, [f"{cell}.*.st.>"], 2)} == {b"1"}


async def test_each_shard_of_a_batch_has_its_own_fence(engine: Engine, cell: str) -> None:
    epochs = [await put(engine, cell, f"{shard}.epoch") for shard in range(3)]
    fences = [Expect(f"{cell}.{shard}.epoch", epoch) for shard, epoch in enumerate(epochs)]
    batch = [
        Record(f"{cell}.{shard}.st.{n}", b"", fences[shard] if n == 0 else None)
        for shard in range(3)
        for n in range(4)
    ]
    assert len(await engine.log.append(cell, batch)) == 12
    await put(engine, cell, "1.epoch")
    with pytest.raises(Fenced):
        await engine.log.append(cell, batch)


async def test_a_tail_is_ordered_and_without_gaps(engine: Engine, cell: str) -> None:
    async def write() -> None:
        for n in range(0, 400, 8):
            await engine.log.append(
                cell, [Record(f"{cell}.in.{n + k}", str(n + k).encode()) for k in range(8)]
            )

    writing = asyncio.create_task(write())
    found = await take(engine, cell, [f"{cell}.in.>"], 400)
    await writing
    assert [int(stored.payload) for stored in found] == list(range(400))
    assert [stored.sequence for stored in found] == list(range(1, 401))
    again = await take(engine, cell, [f"{cell}.in.>"], 10, start=391)
    assert [stored.sequence for stored in again] == list(range(391, 401))


async def test_a_tail_takes_what_its_filters_match(engine: Engine, cell: str) -> None:
    for subject in ("1.st.a", "1.in.a", "2.st.a", "3.st.a.b", "1.epoch"):
        await put(engine, cell, subject)
    found = await take(engine, cell, [f"{cell}.1.in.>", f"{cell}.*.epoch", f"{cell}.3.st.>"], 3)
    assert [stored.subject.removeprefix(cell) for stored in found] == [
        ".1.in.a",
        ".3.st.a.b",
        ".1.epoch",
    ]


async def test_a_tail_with_much_to_catch_up_with_takes_the_same(
    engine: Engine, cell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cluster's engine then reads everything and picks, and later goes on with its filters:
    that interrupts nothing."""
    monkeypatch.setattr(nats_tail, "_SILENCE_SECONDS", 1000.0)
    filters = [f"{cell}.{shard}.>" for shard in (1, 4)]
    wanted = []

    async def write(first: int, last: int) -> None:
        for n in range(first, last, 300):
            batch = [
                Record(f"{cell}.{k % 7}.st.{k % 5_600}", str(k).encode())
                for k in range(n, n + 300, 2)
            ]
            sequences = await engine.log.append(cell, batch)
            wanted.extend(
                Stored(record.subject, sequence, record.payload)
                for record, sequence in zip(batch, sequences, strict=True)
                if record.subject.startswith(tuple(one[:-1] for one in filters))
            )

    await write(0, 9_000)
    await replicas_agree(engine, cell)
    async with asyncio.timeout(240), aclosing(engine.log.tail(cell, filters)) as tail:  # type: ignore[type-var]
        found: list[Stored] = []
        begun = set()
        async for chunk in tail:
            found += chunk.records
            begun.add(chunk.begun)
            if chunk.caught_up:
                break
        newest = {stored.subject: stored for stored in wanted}
        assert _WIDE_ABOVE < len(newest) < len(wanted)
        assert found == sorted(newest.values(), key=lambda stored: stored.sequence)
        # at once, and when it has its filters again
        for first, pause in ((9_000, 0.0), (9_300, _WIDE_SECONDS + 0.5)):
            await asyncio.sleep(pause)
            wanted.clear()
            await write(first, first + 300)
            found = []
            while len(found) < len(wanted):
                chunk = await anext(tail)
                found += chunk.records
                begun.add(chunk.begun)
            assert found == wanted
        assert len(begun) == 1


async def test_a_tail_says_when_it_has_caught_up(engine: Engine, cell: str) -> None:
    async with asyncio.timeout(240), aclosing(engine.log.tail(cell, [f"{cell}.>"])) as tail:  # type: ignore[type-var]
        assert (await anext(tail))[:2] == ([], True)
        await engine.log.append(cell, [Record(f"{cell}.{n}", b"") for n in range(300)])
        count, caught_up = 0, False
        while count < 300:
            chunk = await anext(tail)
            count, caught_up = count + len(chunk.records), chunk.caught_up
        assert count == 300
        assert caught_up


async def test_the_copy_that_decides_shows_all_subjects_and_others_can_be_read(
    engine: Engine, cell: str
) -> None:
    for subject in ("1.st.a", "1.in.a", "2.st.a", "1.in.b", "1.epoch"):
        await put(engine, cell, subject)
    await engine.log.purge(cell, f"{cell}.1.in.a", 100)
    await replicas_agree(engine, cell)
    shown = await engine.log.subjects(cell, [f"{cell}.1.>", f"{cell}.3.>"])
    if engine.name == "local":  # one copy of everything: there is nothing to compare it with
        assert shown is None
        return
    assert shown is not None
    assert shown.subjects == {f"{cell}.1.st.a", f"{cell}.1.in.b", f"{cell}.1.epoch"}
    servers = set()
    for _ in range(4):
        async with (
            asyncio.timeout(240),
            aclosing(engine.log.tail(cell, [f"{cell}.>"], not_on=shown.server)) as tail,
        ):  # type: ignore[type-var]
            chunk = await anext(tail)
            servers.add(chunk.server)
            assert {stored.subject for stored in chunk.records} <= {
                *shown.subjects,
                f"{cell}.2.st.a",
            }
    assert servers and "" not in servers and shown.server not in servers
    # Also of a shard with many agents.
    many = [Record(f"{cell}.7.st.{n}", b"") for n in range(2000)]
    for start in range(0, len(many), engine.batch_records_max):
        await engine.log.append(cell, many[start : start + engine.batch_records_max])
    shown = await engine.log.subjects(cell, [f"{cell}.7.>"])
    assert shown is not None and len(shown.subjects) == 2000


async def test_purge_removes_what_is_older_and_nothing_else(engine: Engine, cell: str) -> None:
    for n in range(1, 6):
        await put(engine, cell, f"in.{n}")
    await put(engine, cell, "st.a")
    await engine.log.purge(cell, f"{cell}.in.>", 4)
    await engine.log.purge(cell, f"{cell}.in.>", 4)
    await engine.log.purge(cell, f"{cell}.in.>", 1)
    await engine.log.purge(cell, f"{cell}.none.>", 99)
    await replicas_agree(engine, cell)
    assert [stored.sequence for stored in await take(engine, cell, [f"{cell}.>"], 3)] == [4, 5, 6]
    assert await put(engine, cell, "in.1", expect=0) == 7


async def test_a_record_of_the_largest_size_and_one_larger(engine: Engine, cell: str) -> None:
    value = b"v" * (limits.RECORD_BYTES_MAX - 1024)
    sequence = await put(engine, cell, "large", value)
    assert (await eventually(engine, cell, "large", sequence)).payload == value
    with pytest.raises(TooLarge):
        await put(engine, cell, "larger", b"v" * limits.RECORD_BYTES_MAX)
    assert await put(engine, cell, "next") == sequence + 1


async def test_a_batch_too_large_is_refused_whole(engine: Engine, cell: str) -> None:
    with pytest.raises(TooLarge):
        await engine.log.append(
            cell, [Record(f"{cell}.{n}", b"") for n in range(engine.batch_records_max + 1)]
        )
    with pytest.raises(TooLarge):
        await engine.log.append(cell, [Record(f"{cell}.{n}", b"v" * 900_000) for n in range(5)])
    most = await engine.log.append(
        cell, [Record(f"{cell}.{n}", b"") for n in range(engine.batch_records_max)]
    )
    assert list(most) == list(range(1, engine.batch_records_max + 1))


@pytest.mark.parametrize(
    "subject", ["", "a b", "a..b", ".a", "a.", "a.*", "a.>", "a\nb", "a\x00", "ä b", "x" * 3000]
)
async def test_an_unusable_subject_is_refused(engine: Engine, cell: str, subject: str) -> None:
    with pytest.raises(InvalidName):
        await engine.log.append(
            cell, [Record(f"{cell}.good", b""), Record(f"{cell}.{subject}", b"")]
        )
    assert await engine.log.last_sequence(cell) == 0


async def test_bad_batches_are_refused(engine: Engine, cell: str) -> None:
    twice = [Record(f"{cell}.a", b""), Record(f"{cell}.a", b"")]
    elsewhere = [Record("elsewhere.a", b"")]
    own = [Record(f"{cell}.a", b""), Record(f"{cell}.b", b"", Expect(f"{cell}.a", 0))]
    far = [Record(f"{cell}.a", b"", Expect("elsewhere.epoch", 0))]
    for batch in ([], twice, elsewhere, own, far):
        with pytest.raises(InvalidName):
            await engine.log.append(cell, batch)
    with pytest.raises(InvalidName):
        await engine.log.append("no cell", [Record("no cell.a", b"")])
    assert await engine.log.last_sequence(cell) == 0


async def test_subjects_in_any_script_are_kept_apart(engine: Engine, cell: str) -> None:
    names = ["é", "日本", "a%2Eb", "A/b", "-", "$x", "ß", "🙂"]
    for name in names:
        await put(engine, cell, f"st.{name}", name.encode())
    found = await take(engine, cell, [f"{cell}.st.*"], len(names))
    assert [stored.subject.rpartition(".")[2] for stored in found] == names


async def test_a_closed_log_says_so(engine: Engine, cell: str) -> None:
    tail = engine.log.tail(cell, [f"{cell}.>"])
    await anext(tail)
    waiting = asyncio.ensure_future(anext(tail))
    await engine.log.last_sequence(cell)  # the tail waits by then
    await engine.close()
    await engine.close()
    async with asyncio.timeout(240):
        with pytest.raises(Closed):
            await waiting
    with pytest.raises(Closed):
        await put(engine, cell, "late")
    with pytest.raises(Closed):
        await engine.log.read(cell, f"{cell}.late")


async def test_a_cancelled_append_does_not_harm_the_next(engine: Engine, cell: str) -> None:
    for n in range(20):
        task = asyncio.create_task(put(engine, cell, f"s.{n}"))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    sequence = await put(engine, cell, "after")
    assert (await eventually(engine, cell, "after", sequence)).payload == b"x"
