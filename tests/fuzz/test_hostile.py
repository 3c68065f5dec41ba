"""A message of a few KB costs neither gigabytes nor a loop that stands still, whatever its sender
made of it."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.fuzz.hostile import HARMFUL, HARMLESS

from holdfast import limits


def test_small_messages_cost_little() -> None:
    """In a process that would end at a GB of memory, or after a minute of processor time for all of
    them."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.hostile"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
    )
    found = {line.split("\t")[0]: line.split("\t")[1:] for line in done.stdout.splitlines()}
    assert done.returncode == 0, (list(found)[-1:], done.stderr[-2000:])
    assert set(found) == {name for name, *_ in (*HARMFUL, *HARMLESS)}
    assert all(int(size) <= limits.MESSAGE_BYTES_MAX for size, _ in found.values())
    assert [name for name, *_ in HARMFUL if not found[name][1].startswith("refused")] == []
    assert [(name, found[name][1]) for name, *_ in HARMLESS if found[name][1] != "taken"] == []
