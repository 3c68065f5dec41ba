"""What the server's process is told before it begins."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import pytest

from holdfast.host.server import nats_server

_SAY = """
import ctypes
prctl, death = ctypes.CDLL(None).prctl, ctypes.c_int()
prctl(2, ctypes.byref(death), 0, 0, 0)
print(prctl(30, 0, 0, 0, 0), death.value)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux's")
def test_a_server_wakes_late_and_ends_with_its_host() -> None:
    said = subprocess.run(
        [sys.executable, "-c", _SAY],
        preexec_fn=functools.partial(nats_server._begin, os.getpid()),
        stdout=subprocess.PIPE,
        check=True,
    )
    assert said.stdout.split() == [b"5000000", b"9"]
