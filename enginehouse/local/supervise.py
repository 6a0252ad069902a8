"""Keep a stack's processes running until somebody asks to stop."""

from __future__ import annotations

import threading

from enginehouse.errors import EnginehouseError
from enginehouse.local.plan import StackOptions
from enginehouse.local.stack import Report, restart_dead

LOOK_SECONDS = 0.5
MAX_PAUSE_SECONDS = 30.0


def keep_running(options: StackOptions, stop: threading.Event, report: Report) -> None:
    """Start anew what ends by itself, until `stop` is set or the stack is stopped by somebody else.

    What does not come back is tried again, after pauses that grow to half a minute.
    """
    pause = LOOK_SECONDS
    while not stop.wait(pause):
        try:
            if not restart_dead(options, report):
                return
            pause = LOOK_SECONDS
        except EnginehouseError as error:
            report(error.message)
            pause = min(MAX_PAUSE_SECONDS, 2 * pause)
