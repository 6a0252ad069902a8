"""A blob store for each project: what one project uploads, no other can find or read."""

from __future__ import annotations

import threading
from pathlib import Path

from enginehouse.artifacts import BlobStore
from enginehouse_optimizer.storage.cache import CacheBound
from enginehouse_optimizer.storage.objects import ObjectStore
from enginehouse_optimizer.storage.remote import RemoteBlobStore
from enginehouse_optimizer.storage.tenancy import Tenancy


class ProjectBlobs:
    """The stores under `{data_dir}/projects/{project}/blobs`, or under an object store with these folders as its cache.

    Args:
        objects: where the blobs are; the folders themselves when None.
        cache_bytes: what the folders may hold of an object store's blobs; 0 is no bound.
    """

    def __init__(self, data_dir: Path, objects: ObjectStore | None = None, *, cache_bytes: int = 0) -> None:
        self._projects = data_dir / "projects"
        self.objects = objects
        self._stores: dict[str, BlobStore] = {}
        self._making = threading.Lock()
        self._bound = CacheBound(cache_bytes, self._remote)
        self._tenancy = Tenancy(data_dir, objects)

    def of(self, project: str) -> BlobStore:
        """The store of a project whose id was checked; nothing is written until a blob is."""
        with self._making:
            if project not in self._stores:
                root = self._projects / project / "blobs"
                self._stores[project] = (
                    BlobStore(root)
                    if self.objects is None
                    else RemoteBlobStore(root, self.objects, project, self._bound)
                )
            return self._stores[project]

    def projects(self) -> set[str]:
        """The projects that have blobs, here or in the object store."""
        local = self._local()
        return local if self.objects is None else local | set(self.objects.folders("projects"))

    def open(self) -> int:
        """Before the service writes: take the object store into use; returns how many local blobs went there.

        Raises:
            FailedPreconditionError: the blobs are elsewhere, or the object store refuses.
            UnavailableError: it does not answer.
        """
        moved = 0
        if self._tenancy.enter():
            for project in sorted(self._local()):
                store = self.of(project)
                moved += store.push() if isinstance(store, RemoteBlobStore) else 0
        self._tenancy.settle()
        return moved

    def check_alone(self) -> None:
        """Raises FailedPreconditionError when another optimizer uses the object store too."""
        self._tenancy.check_alone()

    def sweep(self, older_than_seconds: float) -> int:
        """Remove abandoned uploads of all projects, before the service writes; returns how many files went."""
        return sum(self.of(project).sweep(older_than_seconds, alone=True) for project in self._local())

    def _local(self) -> set[str]:
        return {path.name for path in self._projects.glob("*") if path.is_dir()}

    def _remote(self) -> list[RemoteBlobStore]:
        with self._making:
            return [store for store in self._stores.values() if isinstance(store, RemoteBlobStore)]
