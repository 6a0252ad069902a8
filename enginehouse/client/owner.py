"""Whose a thing is that belongs to one event loop of one process."""

from __future__ import annotations

import asyncio
import os
import weakref


class LoopOwner:
    """The process and the event loop that run now."""

    def __init__(self) -> None:
        self._process = os.getpid()
        # Not its id: the next loop may lie where this one was.
        self._loop = weakref.ref(asyncio.get_running_loop())

    @property
    def runs(self) -> bool:
        """Whether this is still the process, and the loop that runs."""
        return os.getpid() == self._process and self._loop() is asyncio.get_running_loop()
