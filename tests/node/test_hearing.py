"""Which signals end a program, which have it reload, and which it was told to ignore."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast import signals
from holdfast.signals import Signals


@pytest.fixture(params=["nohup", "plain"])
def ignored(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether SIGHUP is ignored when the program starts."""
    before = signal.signal(
        signal.SIGHUP, signal.SIG_IGN if request.param == "nohup" else signal.SIG_DFL
    )
    yield request.param == "nohup"
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("at_start", "later"), [(False, False), (True, True), (True, False)])
async def test_sighup_reloads_unless_the_terminal_that_a_program_ends_with_was_closed(
    ignored: bool, at_start: bool, later: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "_has_terminal", lambda: at_start)
    reloaded = asyncio.Event()
    with Signals(reloaded.set) as heard:
        monkeypatch.setattr(signals, "_has_terminal", lambda: later)
        os.kill(os.getpid(), signal.SIGHUP)
        ends = at_start and not later and not ignored
        await (heard.stop if ends else reloaded).wait()
        assert (heard.stop.is_set(), reloaded.is_set()) == (ends, not ends)


async def test_sighup_ends_what_has_nothing_to_reload_unless_it_was_told_to_ignore_it(
    ignored: bool,
) -> None:
    with Signals() as heard:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        await heard.stop.wait()
        assert heard.number == (signal.SIGTERM if ignored else signal.SIGHUP)


def test_what_tests_start_hears_what_the_tests_were_told_to_ignore() -> None:
    shown = (
        "import signal; print(signal.getsignal(signal.SIGHUP).name, "
        "signal.getsignal(signal.SIGINT).__name__)"
    )
    program = (
        "import signal, subprocess, sys\n"
        "for number in (signal.SIGHUP, signal.SIGINT): signal.signal(number, signal.SIG_IGN)\n"
        "from tests.hearing import let_children_hear\n"
        "let_children_hear()\n"
        "for number in (signal.SIGHUP, signal.SIGINT): signal.raise_signal(number)\n"
        f"subprocess.run([sys.executable, '-c', {shown!r}], check=True)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["SIG_DFL", "default_int_handler"]
