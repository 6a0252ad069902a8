"""What every test needs of the process that runs it."""

from __future__ import annotations

import os
import signal

from hypothesis import settings

# A process started in the background by a shell ignores SIGINT, and so would every process that it starts: tests of
# Ctrl-C need the signal to arrive.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples every time, so that a failure is a change's. HYPOTHESIS_PROFILE=random looks for new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("random", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))
