"""What every test needs of the process that runs it."""

from __future__ import annotations

import signal

# A process started in the background by a shell ignores SIGINT, and so would every process that it starts: tests of
# Ctrl-C need the signal to arrive.
signal.signal(signal.SIGINT, signal.default_int_handler)
