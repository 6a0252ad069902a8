"""An event loop in a thread of its own, for callers that have none."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, TypeVar

from enginehouse.errors import FailedPreconditionError

_T = TypeVar("_T")

CANCEL_SECONDS = 2.0

_portals: weakref.WeakSet[Portal] = weakref.WeakSet()


class Portal:
    """Runs coroutines for any number of threads. Its loop starts with the first; a forked child gets its own.

    Args:
        suspend: lets go of what does not survive a fork (open channels), so that it is made again when next needed.
    """

    def __init__(self, suspend: Callable[[], Coroutine[Any, Any, None]] | None = None) -> None:
        self._suspend = suspend
        self._closed = False
        self._broken = False
        self._running = 0
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        _portals.add(self)

    def __del__(self) -> None:
        self.close()

    @property
    def started(self) -> bool:
        """Whether there is a loop."""
        return self._loop is not None

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine to its end and return its result. An interrupt of the caller cancels it.

        Raises:
            FailedPreconditionError: the portal is closed; or this is the loop's own thread (a progress callback may not
                call the client: it would wait for itself); or the process forked while a call ran.
        """
        try:
            loop = self._enter()
        except BaseException:
            coroutine.close()
            raise
        try:
            ended = threading.Event()
            future = asyncio.run_coroutine_threadsafe(_until(coroutine, ended), loop)
            try:
                return future.result()
            except BaseException:
                # What an interrupt left must have ended before its caller may close what it worked on.
                future.cancel()
                ended.wait(CANCEL_SECONDS)
                raise
        finally:
            with self._lock:
                self._running -= 1

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
        if loop is None or thread is None or not thread.is_alive():
            return
        loop.call_soon_threadsafe(loop.stop)
        if thread is not threading.current_thread():
            thread.join()

    def before_fork(self) -> None:
        """Let go of the channels, unless a call runs: gRPC's threads would be missing in the child."""
        with self._lock:
            idle = self._running == 0
        self._broken = self._loop is not None and (self._suspend is None or not idle)
        if self._loop is not None and self._suspend is not None and idle:
            self.run(self._suspend())

    def after_fork(self, *, child: bool) -> None:
        """In a child: forget the loop, whose thread is not here."""
        if child:
            # The lock may have been copied while another thread held it.
            self._lock = threading.Lock()
            self._loop = self._thread = None
            self._running = 0
        else:
            self._broken = False

    def _enter(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._closed:
                raise FailedPreconditionError("this client is closed: make another one")
            if self._thread is threading.current_thread():
                raise FailedPreconditionError(
                    "a callback of the client may not call the client: it would wait for itself"
                )
            if _in_broken_child:
                raise FailedPreconditionError(
                    "the process forked while a call of a client ran, which gRPC does not survive in the child: "
                    "fork when none runs, or use the start method 'spawn'"
                )
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=_serve, args=(self._loop,), name="enginehouse-client", daemon=True
                )
                self._thread.start()
            self._running += 1
            return self._loop


# Set in a child whose parent had a call in flight: gRPC hangs there, whatever the client.
_in_broken_child = False


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


async def _until(coroutine: Coroutine[Any, Any, _T], ended: threading.Event) -> _T:
    try:
        return await coroutine
    finally:
        ended.set()


async def _next(items: AsyncIterator[_T]) -> _T:
    return await items.__anext__()


@atexit.register
def _close_all() -> None:
    """A loop that still runs while the interpreter goes down makes gRPC complain."""
    for portal in list(_portals):
        portal.close()


def _before_fork() -> None:
    for portal in list(_portals):
        portal.before_fork()


def _after_fork_in_parent() -> None:
    for portal in list(_portals):
        portal.after_fork(child=False)


def _after_fork_in_child() -> None:
    global _in_broken_child
    for portal in list(_portals):
        _in_broken_child = _in_broken_child or portal._broken
        portal.after_fork(child=True)


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
