"""Pipes between processes: whatever is written into them, nobody waits, nothing ends, and what is
dropped is counted."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from holdfast import limits
from holdfast.host import spawn
from holdfast.lines import EventReader, LineReader, TextReader
from holdfast.pipes import Rate, Teller, Writer, write_all


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(240):
        while not condition():
            await asyncio.sleep(0.01)


class Heard:
    """What an `EventReader` hands on."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.nonsense: list[str] = []
        reading, self.writing = os.pipe()
        self.lines = EventReader(
            reading, lambda *event: self.events.append(event), self.nonsense.append
        ).lines


async def test_events_come_in_their_order_from_all_threads() -> None:
    heard = Heard()
    teller = Teller(heard.writing)

    def tell(thread: int) -> None:
        for number in range(200):
            teller.tell("one", {"thread": thread, "number": number})

    threads = [threading.Thread(target=tell, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    await until(lambda: len(heard.events) == 800)
    for thread in range(4):
        assert [facts["number"] for _, facts in heard.events if facts["thread"] == thread] == list(
            range(200)
        )
    heard.lines.close()


async def test_who_tells_waits_for_nobody_and_nothing_of_importance_is_lost() -> None:
    reading, writing = os.pipe()
    teller = Teller(writing)
    assert all(teller.tell("kept", {"text": "x" * 1000}) for _ in range(200))
    assert not teller.tell("dropped", {}, may_drop=True)
    kept = 200
    while teller.tell("kept", {"text": "x" * 100_000}):
        kept += 1  # … up to a bound
    heard: list[str] = []
    reader = EventReader(reading, lambda event, _: heard.append(event), heard.append)
    await until(lambda: len(heard) == kept)
    assert teller.tell("dropped", {}, may_drop=True)
    await until(lambda: heard[-1] == "dropped")
    assert set(heard) == {"kept", "dropped"}
    reader.lines.close()
    assert not teller.tell("nobody reads", {}) or not teller.tell("nobody reads", {})


NONSENSE = [
    b"x" * 70_000,
    b"[" * 200_000,
    b"{" + b'"a":{' * 100_000,
    b"9" * 5000,
    b"\xff\xfe\x00",
    b"[1, 2]",
    b'{"event": 3}',
    b'{"no": "event"}',
    b"",
    b'{"event": "' + b"y" * (limits.EVENT_BYTES_MAX + 1) + b'"}',
    b'{"event": "bad", "fact": []}',
]


async def test_what_is_no_event_is_dropped_and_said_once() -> None:
    heard = Heard()

    def write() -> None:
        for line in NONSENSE:
            write_all(heard.writing, line + b'\n{"event": "good"}\n')

    await asyncio.to_thread(write)
    await until(lambda: len([one for one in heard.events if one[0] == "good"]) == len(NONSENSE))
    assert {event for event, _ in heard.events} == {"good", "bad"}
    assert len(heard.nonsense) == 1 and "not an event" in heard.nonsense[0]
    heard.lines.close()
    os.close(heard.writing)


async def test_facts_that_do_not_fit_end_nobody() -> None:
    said: list[str] = []
    reading, writing = os.pipe()

    def on_event(event: str, facts: dict[str, Any]) -> None:
        assert int(facts["number"]) == 1

    reader = EventReader(reading, on_event, said.append)
    write_all(
        writing,
        b'{"event":"a"}\n{"event":"b","number":"many"}\n{"event":"c","number":{}}\n{"event":"d","number":1}\n',
    )
    os.close(writing)
    await until(lambda: reader.lines.closed)
    assert len(said) == 1 and "KeyError" in said[0]


async def read_text(*pieces: bytes) -> list[str]:
    reading, writing = os.pipe()
    lines: list[str] = []
    reader = TextReader(reading, lines.append)
    for piece in pieces:
        await asyncio.to_thread(write_all, writing, piece)
        await asyncio.sleep(0)
    os.close(writing)
    await until(lambda: reader.closed)
    return lines


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        ([b"one\ntwo\n"], ["one", "two"]),
        ([b"on", b"e\n", b"\n", b"two"], ["one", "", "two"]),
        ([b"one\r", b"\ntwo\r\n"], ["one", "two"]),
        ([b"\r 1%\r 50%\r100%\n"], [" 1%", " 50%", "100%"]),
        ([b"\xff\xfe\x00\n"], ["\\xff\\xfe\x00"]),
        (["grün\n".encode()], ["grün"]),
        ([b"[/var/log]\n\x1b[31m\n"], ["[/var/log]", "\x1b[31m"]),
        ([b"x" * 70_000], ["x" * 8192 + "... 61808 more"]),
        ([b"x" * 70_000 + b"\nnext\n"], ["x" * 8192 + "... 61808 more", "next"]),
        ([], []),
    ],
)
async def test_lines_of_text(
    pieces: list[bytes], lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # however long it is until the next piece comes
    monkeypatch.setattr(limits, "SAID_PART_SECONDS", 1000.0)
    assert await read_text(*pieces) == lines


async def test_text_without_an_end_of_the_line_is_shown_soon() -> None:
    reading, writing = os.pipe()
    lines: list[str] = []
    reader = TextReader(reading, lines.append)
    os.write(writing, b"are you there? ")
    await until(lambda: lines == ["are you there? "])
    reader.close()
    os.close(writing)


async def test_a_flood_is_cut_and_counted() -> None:
    count = 100_000
    lines = await read_text(b"".join(b"line %d\n" % number for number in range(count)))
    shown = [line for line in lines if line.startswith("line")]
    dropped = [int(line.split()[1]) for line in lines if line.endswith("lines dropped")]
    assert limits.SAID_LINES_BURST <= len(shown) < count / 2
    assert len(shown) + sum(dropped) == count


async def test_a_reader_ends_though_somebody_still_has_the_pipe() -> None:
    reading, writing = os.pipe()
    lines: list[bytes] = []
    reader = LineReader(reading, lambda line, _: lines.append(line), 100)
    os.write(writing, b"one\ntwo\n")
    reader.finish()
    assert lines == [b"one", b"two"] and not reader.closed
    reader.close()
    os.close(writing)


async def test_few_outputs_of_ended_children_are_still_read() -> None:
    lines: list[str] = []
    program = (
        "import subprocess; subprocess.Popen(['sleep', '200'], start_new_session=True); "
        "print('up', flush=True)"
    )
    children = [
        await spawn.start(
            [sys.executable, "-c", program], lambda _: b"", lambda *_: None, lines.append
        )
        for _ in range(3)
    ]
    while spawn._orphaned:  # of tests before
        spawn._orphaned.pop().close()
    kept = 0
    assert [await child.wait() for child in children] == [0, 0, 0]
    assert lines == ["up"] * 3
    assert len(spawn._orphaned) == kept + 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "ORPHANED_PIPES_MAX", 1)
        children[0]._finish()
    assert len(spawn._orphaned) == 1
    spawn._orphaned.pop().close()


async def test_no_program_that_is_started_inherits_the_pipe() -> None:
    heard = Heard()
    os.set_inheritable(heard.writing, True)
    Teller(heard.writing)
    look = f"import os; os.fstat({heard.writing})"
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", look], close_fds=False, stderr=subprocess.DEVNULL
    )
    assert done.returncode != 0
    heard.lines.close()


def test_a_fork_says_nothing() -> None:
    reading, writing = os.pipe()
    teller = Teller(writing)
    teller.tell("parent", {})
    child = os.fork()
    if child == 0:
        os._exit(0 if teller.closed and not teller.tell("child", {}) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert [json.loads(line)["event"] for line in os.read(reading, 65536).splitlines()] == [
        "parent"
    ]
    os.close(reading)
    os.close(writing)


def test_a_writer_waits_for_nobody_and_says_what_it_dropped() -> None:
    may_go_on, texts = threading.Event(), list[str]()

    def write(text: str) -> None:
        may_go_on.wait(30)
        texts.append(text)

    writer = Writer(write)
    for number in range(limits.WRITER_LINES_MAX + 500):
        writer.put(str(number))
    writer.close(0.01)  # it gives up
    may_go_on.set()
    writer.close(30.0)
    shown = [text for text in texts if text.isdigit()]
    assert limits.WRITER_LINES_MAX <= len(shown) <= limits.WRITER_LINES_MAX + 1
    assert texts[-1] == f"... {limits.WRITER_LINES_MAX + 500 - len(shown)} lines dropped\n"


def test_a_writer_outlives_its_reader() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    writer = Writer(lambda text: write_all(writing, text.encode()))
    writer.put("one")
    writer.put("two")
    writer.close(30.0)
    os.close(writing)


def test_a_rate_comes_back_a_second_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("holdfast.pipes.time.monotonic", lambda: now)
    rate = Rate(per_second=10.0, burst=20)
    assert [rate.take() for _ in range(25)] == [True] * 20 + [False] * 5
    now += 0.5
    assert not rate.take()
    now += 0.75
    assert [rate.take() for _ in range(13)] == [True] * 12 + [False]
    assert (rate.take_dropped(), rate.take_dropped()) == (7, 0)


LATE = """
import os, sys
from holdfast.pipes import Teller, Writer

class Late:
    def __init__(self):
        self.writer = Writer(print)
        reading, self.pipe = os.pipe()
        self.teller = Teller(self.pipe)
        while self.teller.tell("full", {}, may_drop=True):
            pass
        self.teller._helped = False

    def __del__(self, os=os, sys=sys):
        os.write(1, b"ending" if sys.is_finalizing() else b"early")
        self.writer.put("late")
        self.teller.tell("late", {})

late = Late()
"""


def test_what_is_said_while_the_interpreter_ends_holds_up_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LATE], capture_output=True, text=True, timeout=400, check=True
    )
    assert done.stdout == "ending", done
