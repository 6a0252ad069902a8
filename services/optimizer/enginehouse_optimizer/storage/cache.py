"""Keeps the local files of an object store's blobs below a bound: what was not asked for longest goes first."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import structlog

from enginehouse.artifacts.store import StoredBlob

if TYPE_CHECKING:
    from enginehouse_optimizer.storage.remote import RemoteBlobStore

_log = structlog.get_logger("cache")

# Between asking for a blob's path and opening it, its file must not go; once it is open or linked, it may.
IN_USE_SECONDS = 300.0
# Room made beyond what is needed, so that not every blob costs a look at the whole cache.
_SPARE = 0.1


class CacheBound:
    """One bound for the caches of all projects. Safe to use from threads.

    Args:
        max_bytes: what the caches may hold; 0 is no bound. What is in use may exceed it.
        stores: gives the stores that share it.
    """

    def __init__(
        self, max_bytes: int, stores: Callable[[], Iterable[RemoteBlobStore]], in_use_seconds: float = IN_USE_SECONDS
    ) -> None:
        self._max_bytes = max_bytes
        self._stores = stores
        self._in_use_ns = round(in_use_seconds * 1e9)
        self._lock = threading.Lock()
        self._held = -1  # bytes, at most; -1 before the first look

    def make_room(self, store: RemoteBlobStore, size: int) -> None:
        """A file of `size` bytes is about to enter `store`'s cache."""
        if not self._max_bytes:
            return
        with self._lock:
            if self._held < 0 or self._held + size > self._max_bytes:
                self._held = self._evict({store, *self._stores()}, self._max_bytes - size)
            self._held += size

    def _evict(self, stores: set[RemoteBlobStore], wanted: int) -> int:
        """Evict until at most `wanted` bytes are left, as far as may be; returns the bytes left."""
        found: list[tuple[int, StoredBlob, RemoteBlobStore]] = [
            (store.cache_use(blob), blob, store) for store in stores for blob in store.cached()
        ]
        held = sum(blob.size for _, blob, _ in found)
        if held <= wanted:
            return held
        goal = wanted - self._max_bytes * _SPARE
        unused_since = time.time_ns() - self._in_use_ns
        evicted = 0
        for last, blob, store in sorted(found, key=lambda item: item[0]):
            if held <= goal or last >= unused_since:
                break
            if store.evict(blob.digest, unused_since):
                held -= blob.size
                evicted += 1
        _log.info("evicted from the cache", blobs=evicted, bytes_left=held)
        return held
