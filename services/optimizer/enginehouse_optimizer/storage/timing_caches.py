"""Which blob holds what TensorRT measured for a GPU, a driver and a version of its own."""

from __future__ import annotations

import time
from dataclasses import dataclass

from enginehouse_optimizer.storage.database import Database


@dataclass(frozen=True)
class TimingCache:
    """A cache's blob; `size` is in bytes."""

    digest: str
    size: int


class TimingCacheIndex:
    """Timing caches by project and name. Methods belong in the event loop."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, project: str, name: str) -> TimingCache | None:
        row = self._database.row("SELECT digest, size FROM timing_caches WHERE project=? AND name=?", (project, name))
        return None if row is None else TimingCache(row["digest"], row["size"])

    def put(self, project: str, name: str, cache: TimingCache) -> None:
        """Name a cache whose blob is stored; it takes the place of the one before."""
        self._database.execute(
            "INSERT OR REPLACE INTO timing_caches (project, name, digest, size, used_ns) VALUES (?, ?, ?, ?, ?)",
            (project, name, cache.digest, cache.size, time.time_ns()),
        )

    def forget(self, project: str, name: str) -> None:
        self._database.execute("DELETE FROM timing_caches WHERE project=? AND name=?", (project, name))

    def unused_since(self, ns: int) -> list[tuple[str, str]]:
        """(project, name) of the caches that no build has given back since then (Unix nanoseconds)."""
        rows = self._database.rows("SELECT project, name FROM timing_caches WHERE used_ns<?", (ns,))
        return [(row["project"], row["name"]) for row in rows]
