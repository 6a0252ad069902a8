"""An event loop in a thread of its own, for callers that have none."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import weakref
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, TypeVar

from enginehouse.errors import FailedPreconditionError

_T = TypeVar("_T")

_portals: weakref.WeakSet[Portal] = weakref.WeakSet()


class Portal:
    """Runs coroutines for any number of threads. Its loop starts with the first; a forked child gets its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()
        self._closed = False
        _portals.add(self)

    def __del__(self) -> None:
        self.close()

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine to its end and return its result. An interrupt of the caller cancels it.

        Raises:
            FailedPreconditionError: the portal is closed, or this is the loop's own thread (a progress callback may not
                call the client: it would wait for itself).
        """
        try:
            loop = self._running_loop()
        except BaseException:
            coroutine.close()
            raise
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, items: AsyncIterator[_T]) -> Iterator[_T]:
        """The items of an asynchronous iterator; leaving the iteration early closes it."""
        try:
            while True:
                try:
                    item = self.run(_next(items))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            close = getattr(items, "aclose", None)
            if close is not None and self.started:
                self.run(close())

    def close(self) -> None:
        """Stop the loop and its thread. A second close does nothing."""
        with self._lock:
            self._closed = True
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is None or thread is None or self._pid != os.getpid() or not thread.is_alive():
            return
        loop.call_soon_threadsafe(loop.stop)
        if thread is not threading.current_thread():
            thread.join()

    @property
    def started(self) -> bool:
        """Whether there is a loop in this process."""
        return self._loop is not None and self._pid == os.getpid()

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._pid != os.getpid():
            # A fork copies the loop but not its thread. The lock may have been copied while another thread held it.
            self._lock = threading.Lock()
            self._loop = self._thread = None
            self._pid = os.getpid()
        with self._lock:
            if self._closed:
                raise FailedPreconditionError("this client is closed: make another one")
            if self._thread is threading.current_thread():
                raise FailedPreconditionError(
                    "a callback of the client may not call the client: it would wait for itself"
                )
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=_serve, args=(self._loop,), name="enginehouse-client", daemon=True
                )
                self._thread.start()
            return self._loop


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


async def _next(items: AsyncIterator[_T]) -> _T:
    return await items.__anext__()


@atexit.register
def _close_all() -> None:
    """A loop that still runs while the interpreter goes down makes gRPC complain."""
    for portal in list(_portals):
        portal.close()
