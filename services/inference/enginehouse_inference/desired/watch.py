"""Watches the optimizer's serving configurations and tells what they are now."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import grpc
import grpc.aio
import structlog

from enginehouse.v1 import serving_pb2, serving_pb2_grpc
from enginehouse_inference.desired.state import StateFile

_log = structlog.get_logger("desired")

_FIRST_SECONDS = 0.25
_MOST_SECONDS = 15.0


class Watcher:
    """Calls `apply` with the whole desired state: at first the one on disk, then each that the optimizer sends.

    Args:
        channel: makes a channel to the optimizer.
        apply: brings the process to the state; it must not block.
    """

    def __init__(
        self,
        channel: Callable[[], grpc.aio.Channel],
        project: str,
        file: StateFile,
        apply: Callable[[serving_pb2.WatchServingConfigsResponse], None],
    ) -> None:
        self._channel = channel
        self._parent = f"projects/{project}"
        self._file = file
        self._apply = apply
        self._task: asyncio.Task[None] | None = None
        self.heard = asyncio.Event()
        self.connected = False

    def start(self) -> None:
        """Apply the state on disk, if there is one, and begin to watch."""
        if (state := self._file.read()) is not None:
            _log.info("applying the state on disk", revision=state.revision, models=len(state.serving_configs))
            self._apply(state)
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        delay = _FIRST_SECONDS
        while True:
            try:
                async with self._channel() as channel:
                    call = serving_pb2_grpc.ServingConfigsStub(channel).WatchServingConfigs(
                        serving_pb2.WatchServingConfigsRequest(parent=self._parent)
                    )
                    async for state in call:
                        delay = _FIRST_SECONDS
                        await self._hear(state)
            except grpc.aio.AioRpcError as error:
                # Servers end old connections on purpose; only the first failure in a row is news.
                if self.connected or not self.heard.is_set():
                    _log.warning("the optimizer is away: serving the last state", reason=error.details())
            except Exception:
                _log.exception("watching failed")
            self.connected = False
            # All replicas lose the optimizer at once: do not all come back at once.
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(delay * 2, _MOST_SECONDS)

    async def _hear(self, state: serving_pb2.WatchServingConfigsResponse) -> None:
        if not self.connected:
            _log.info("watching", revision=state.revision, models=len(state.serving_configs))
        self.connected = True
        self._apply(state)
        self.heard.set()
        try:
            await asyncio.to_thread(self._file.write, state)
        except OSError as error:
            _log.error("the desired state cannot be kept for the next start", reason=str(error))
