"""When a node of which nothing is heard is ended: time in which it used no processor counts much
less."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from holdfast import limits
from holdfast.host.processes import progress_of
from holdfast.host.still import Watch

PASSED = 0.25


def quiet(process: subprocess.Popen[bytes], ready: Callable[[], None]) -> float:
    """For how long nothing is heard of it, in time that is counted and not waited for, until it is
    to be ended."""
    watch, seconds = Watch("n"), 0.0
    watch.heard("ready", {})
    while not watch.is_to_end() and seconds < 2 * limits.STARVED_SECONDS:
        ready()
        watch.look(process.pid, PASSED)
        seconds += PASSED
    assert watch.standstill(process.pid) is not None
    watch.heard("pulse", {"seconds": 0.0, "gone": 0.0})
    watch.look(process.pid, PASSED)
    assert not watch.is_to_end(), "it is heard again"
    return seconds


@pytest.mark.parametrize(
    ("code", "stop"), [("while True: pass", False), ("input()", False), ("input()", True)]
)
def test_only_time_in_which_it_used_the_processor_counts(code: str, stop: bool) -> None:
    program = f"print(flush=True)\n{code}"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], **pipes) as process:  # type: ignore[call-overload]
        try:
            assert process.stdout is not None and process.stdout.readline()
            ticks = -1

            def ready() -> None:
                """It used the processor since the last look, or does nothing."""
                nonlocal ticks
                while (found := progress_of(process.pid)) and (
                    found.ticks == ticks if code != "input()" else found.state not in "ST"
                ):
                    time.sleep(0.005)
                ticks = -1 if found is None else found.ticks

            if stop:
                process.send_signal(signal.SIGSTOP)
                while (found := progress_of(process.pid)) is not None and found.state != "T":
                    time.sleep(0.005)
            busy = code != "input()"
            wanted = (
                limits.FROZEN_SECONDS
                if stop
                else limits.STANDSTILL_SECONDS
                if busy
                else limits.STARVED_SECONDS
            )
            assert wanted <= quiet(process, ready) <= wanted + 2 * PASSED
        finally:
            process.kill()


def test_a_silence_begins_anew_when_it_goes_on() -> None:
    """What it does from there on is its own, and so are the stacks that it then writes."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            watch = Watch("n")
            watch.heard("ready", {})

            def looks_until(state: str) -> None:
                while (found := progress_of(process.pid)) is not None and found.state != state:
                    time.sleep(0.005)
                watch.look(process.pid, PASSED)

            process.send_signal(signal.SIGSTOP)
            for _ in range(int((limits.FROZEN_SECONDS - 1) / PASSED)):
                looks_until("T")
            assert watch.stopped()
            process.send_signal(signal.SIGCONT)
            looks_until("R")
            assert not watch.stopped() and watch.standstill(process.pid) is None
            looks, ticks = 0, -1
            while not watch.is_to_end():
                while (found := progress_of(process.pid)) is not None and found.ticks == ticks:
                    time.sleep(0.005)  # until it used the processor
                ticks = -1 if found is None else found.ticks
                watch.look(process.pid, PASSED)
                looks += 1
            still = watch.standstill(process.pid)
            assert (
                still is not None and still.seconds == looks * PASSED >= limits.STANDSTILL_SECONDS
            )
        finally:
            process.kill()
