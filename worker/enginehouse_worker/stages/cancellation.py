"""SIGTERM stops a stage at once, also while the main thread is inside a framework's C++ code.

A Python signal handler runs only when the main thread returns to the interpreter, which a framework's call may not do
for minutes. So SIGTERM is blocked in every thread, and one thread waits for it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable


def block_termination() -> None:
    """Block SIGTERM in this thread and in those it starts from now on."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def exit_on_termination(announce: Callable[[], None]) -> None:
    """Start the thread that, on SIGTERM, calls `announce` and ends the process with status 1."""

    def wait() -> None:
        signal.sigwait({signal.SIGTERM})
        try:
            announce()
        finally:
            # Not sys.exit: nothing else may delay the end, and the output directory has no result.json yet.
            os._exit(1)

    threading.Thread(target=wait, name="termination", daemon=True).start()
