"""A limit on how fast something comes."""

from __future__ import annotations

import asyncio


class Pace:
    """Lets bytes through at a rate, of all that share it.

    Args:
        bytes_per_second: 0 without limit.
    """

    def __init__(self, bytes_per_second: float = 0.0) -> None:
        self._rate = bytes_per_second
        # On the loop's clock, when all that came so far should have.
        self._due = 0.0

    async def spend(self, count: int) -> None:
        """Wait until `count` more bytes fit the rate. Time in which nothing came is not made up for."""
        if not self._rate:
            return
        now = asyncio.get_running_loop().time()
        self._due = max(self._due, now) + count / self._rate
        await asyncio.sleep(self._due - now)
