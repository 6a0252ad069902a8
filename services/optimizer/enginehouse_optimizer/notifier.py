"""Wakes those who wait for a change of something; what changed is read from storage."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from enginehouse.errors import UnavailableError


class Notifier:
    """One for a service; all methods in its event loop."""

    def __init__(self) -> None:
        self._waiting: defaultdict[Hashable, set[asyncio.Event]] = defaultdict(set)
        self._closed = False

    def notify(self, key: Hashable) -> None:
        for event in self._waiting.get(key, ()):
            event.set()

    def close(self) -> None:
        """End every stream that waits: the server drains, and clients should connect to another."""
        self._closed = True
        for events in self._waiting.values():
            for event in events:
                event.set()

    @contextmanager
    def watch(self, key: Hashable) -> Iterator[Watch]:
        event = asyncio.Event()
        self._waiting[key].add(event)
        try:
            yield Watch(self, event)
        finally:
            self._waiting[key].discard(event)
            if not self._waiting[key]:
                del self._waiting[key]

    @property
    def closed(self) -> bool:
        return self._closed


class Watch:
    """What a waiter holds: `arm()`, look at storage, then `wait()`; a change after `arm()` is never missed."""

    def __init__(self, notifier: Notifier, event: asyncio.Event) -> None:
        self._notifier = notifier
        self._event = event

    def arm(self) -> None:
        if not self._notifier.closed:
            self._event.clear()

    async def wait(self, timeout_seconds: float | None = None) -> bool:
        """Until something changes; False when the time is up first.

        Raises:
            UnavailableError: the server stops.
        """
        try:
            await asyncio.wait_for(self._event.wait(), timeout_seconds)
        except asyncio.TimeoutError:
            return False
        if self._notifier.closed:
            raise UnavailableError("the server is stopping: connect again", retry_after_seconds=1.0)
        return True
