"""A worker process: does one job after the other for the agents of one kind, until its node closes
the channel.

It imports what it needs before it looks where its node imports from, so a file of the application
that is called like a module of the standard library does not get in its way. It dies with its node.
"""

from __future__ import annotations

import io
import logging
import os
import socket
import sys
from typing import Any

import msgspec

from holdfast import codec, errors, limits, said
from holdfast.agents import guard
from holdfast.children import die_with_parent
from holdfast.serving.workers import modules, soundness
from holdfast.serving.workers.channel import (
    LENGTH_BYTES,
    Answer,
    Begun,
    Done,
    Failed,
    Job,
    Told,
    framed,
)
from holdfast.serving.workers.workers import perform

_decode_told = msgspec.msgpack.Decoder(Told).decode
_decode_job = msgspec.msgpack.Decoder(Job).decode
_CAUSE_MAX = 500


class _Channel:
    """The worker's end."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self._socket = socket.socket(fileno=descriptor)

    def read(self) -> bytes | None:
        """The next frame; None at the end."""
        length = self._exactly(LENGTH_BYTES)
        return None if length is None else self._exactly(int.from_bytes(length, "big"))

    def _exactly(self, size: int) -> bytes | None:
        found = bytearray(size)
        view = memoryview(found)
        while view:
            count = self._socket.recv_into(view)
            if count == 0:
                return None
            view = view[count:]
        return bytes(found)

    def write(self, value: Begun | Answer) -> None:
        """Send a frame."""
        self._socket.sendall(framed(codec.encode_raw(value)))


class _Worker:
    def __init__(self, channel: _Channel, told: Told) -> None:
        self._channel = channel
        self._told = told
        self._baseline: soundness.Baseline | None = None

    def do(self, job: Job) -> bool:
        """Do a job, and answer; whether this process may do another one."""
        error: BaseException | None = None
        try:
            kind = modules.find(modules.Place(job.module, job.file, job.qualname)).__kind__
            if self._baseline is None:
                said.set_up_logging(self._told.level)
                self._baseline = soundness.Baseline()
            self._channel.write(Begun())
            result: Done | Failed = guard.fresh().run(self._perform, kind, job)
        except BaseException as found:
            error = found
            result = _failed(job, found)
        ends = soundness.why_broken(error)
        if self._baseline is not None:
            ends = ends or self._baseline.restore()
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError) as found:
                ends = ends or f"what it prints cannot be written: {found!r}"
        self._channel.write(Answer(result, ends))
        return not ends

    def _perform(self, kind: Any, job: Job) -> Done:
        return perform(kind, kind.new_agent(), job)


def _failed(job: Job, error: BaseException) -> Failed:
    ours = isinstance(
        error, errors.HoldfastError
    )  # a state or an argument that does not fit says nothing of the process
    cause = (
        ""
        if ours
        else f"{errors.class_of(error)}: {errors.plain(errors.text_of(error), _CAUSE_MAX)}"
    )
    return Failed(errors.to_wire(guard.shown(f"{job.qualname}.{job.handler}", error)), cause)


def main(descriptor: int) -> int:
    """``python -m holdfast.serving.workers.main``, in effect. ``descriptor``: of the channel."""
    channel = _Channel(descriptor)
    data = channel.read()
    if data is None:
        return 0
    told = _decode_told(data)
    die_with_parent(told.parent)
    soundness.begin_work()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    sys.path[:] = told.path
    worker = _Worker(channel, told)
    while (data := channel.read()) is not None:
        if not worker.do(_decode_job(data)):
            break
    logging.shutdown()
    return 0


assert limits.WORKER_FRAME_BYTES_MAX < 1 << (8 * LENGTH_BYTES), "a frame's length fits"
