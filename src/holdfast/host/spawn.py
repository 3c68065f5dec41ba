"""A child process of a host, or of whoever runs hosts: told by its standard input, heard by pipes.

It ends when its process ends. What its code started may go on, and keep the pipes of the standard
output open: that is still read, up to a bound, but nobody waits for it.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from holdfast import limits, lines, pipes

_orphaned: Final[deque[lines.TextReader]] = deque()


class Child:
    """See the module; made by `start`."""

    def __init__(
        self, process: asyncio.subprocess.Process, events: lines.LineReader, text: lines.TextReader
    ) -> None:
        self.process = process
        self._events = events
        self._text = text

    async def wait(self) -> int:
        """Wait until its process ends, and take what it said before; return how it ended."""
        code = await self.process.wait()
        self._finish()
        return code

    async def kill(self) -> None:
        """End it at once, if it runs."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()
        self._finish()

    def _finish(self) -> None:
        self._events.finish()
        self._events.close()
        self._text.finish()
        if not self._text.closed and self._text not in _orphaned:
            _orphaned.append(self._text)
        while _orphaned and (_orphaned[0].closed or len(_orphaned) > limits.ORPHANED_PIPES_MAX):
            _orphaned.popleft().close()


async def start(
    command: Sequence[str],
    told: Callable[[int], bytes],
    on_event: Callable[[str, dict[str, Any]], None],
    on_text: Callable[[str], None],
) -> Child:
    """Start a process in a session of its own. ``told``: what to write to its standard input, given
    its pipe for events.

    ``on_text`` gets each line of its standard output and its standard error.
    """
    events, events_end = os.pipe()
    try:
        text, text_end = pipes.make()
    except BaseException:
        os.close(events)
        os.close(events_end)
        raise
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=text_end,
            stderr=text_end,
            pass_fds=[events_end],
            start_new_session=True,
        )
    except BaseException:
        os.close(events)
        os.close(text)
        raise
    finally:
        os.close(events_end)
        os.close(text_end)
    child = Child(
        process, lines.EventReader(events, on_event, on_text).lines, lines.TextReader(text, on_text)
    )
    assert process.stdin is not None
    process.stdin.write(told(events_end))
    process.stdin.close()
    return child
