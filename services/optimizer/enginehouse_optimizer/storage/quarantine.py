"""Quarantine of an object store: a prefix beside the folder."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

from enginehouse.artifacts.quarantine import Quarantine
from enginehouse_optimizer.storage.objects import ObjectStore


class RemoteQuarantine(Quarantine):
    """Damaged objects under a prefix, damaged files of the cache in a folder; both are counted and cleared."""

    def __init__(self, folder: Path, objects: ObjectStore, prefix: str) -> None:
        super().__init__(folder)
        self._objects = objects
        self._prefix = prefix

    def put_object(self, key: str) -> str:
        """Move an object in; returns its new key."""
        new = f"{self._prefix}/{key.rsplit('/', 1)[-1]}.{uuid4().hex[:8]}"
        self._objects.move(key, new)
        return new

    def size(self) -> int:
        return super().size() + sum(found.size for found in self._objects.objects(self._prefix))

    def clear(self, before_ns: int, *, dry_run: bool = False) -> int:
        old = [found.key for found in self._objects.objects(self._prefix) if found.modified_ns < before_ns]
        if not dry_run:
            self._objects.delete(old)
        return len(old) + super().clear(before_ns, dry_run=dry_run)
