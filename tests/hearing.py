"""Programs that tests start hear signals, also where the tests themselves were started in the
background.

`nohup` has a program ignore SIGHUP, and the shell of a script has what it runs with ``&`` ignore
SIGINT. Whatever such a program starts ignores them as well, so a test would wait in vain for what
its signal does.
"""

from __future__ import annotations

import signal


def let_children_hear() -> None:
    """Ignore by a handler what this process was told to ignore: that a signal is ignored is
    inherited, a handler is not."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
