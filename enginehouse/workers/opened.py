"""Clients' device memory that one worker process has open."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Coroutine
from typing import Any

from enginehouse.errors import EnginehouseError
from enginehouse.workers.framing import Frame
from enginehouse.workers.regions import DeviceRegion


class OpenRegions:
    """Each region is opened when it is first used, once for all who use it.

    Args:
        call: sends a frame and waits for its answer.
    """

    def __init__(self, call: Callable[[Frame], Coroutine[Any, Any, Frame]]) -> None:
        self._call = call
        self._opening: dict[int, asyncio.Task[Frame]] = {}

    async def open(self, region: DeviceRegion) -> None:
        """Return when it is open.

        Raises:
            EnginehouseError: what the worker says is wrong with the handle; the next call tries again.
        """
        opening = self._opening.get(region.number)
        if opening is None:
            handle = base64.b64encode(region.handle).decode()
            frame = {"type": "region", "region": region.number, "bytes": region.size, "handle": handle}
            opening = self._opening[region.number] = asyncio.create_task(self._call(frame))
        # Several may wait for it: one that leaves must not take it from the others.
        await asyncio.wait({opening})
        error = opening.exception()
        if error is None:
            return
        if self._opening.get(region.number) is opening:
            del self._opening[region.number]
        if not isinstance(error, EnginehouseError):
            raise error
        # One of its own for each who waited.
        message = f"CUDA shared memory region {region.name!r} cannot be opened: {error.message}"
        raise type(error)(message, details=error.details, retry_after_seconds=error.retry_after_seconds)

    async def close(self, region: DeviceRegion) -> None:
        """Return when it is closed, which is once what uses it has run; at once when it is not open."""
        opening = self._opening.pop(region.number, None)
        if opening is None:
            return
        await asyncio.wait({opening})
        if opening.exception() is None:
            await self._call({"type": "close", "region": region.number})
