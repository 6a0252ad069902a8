"""A blob store for each project: what one project uploads, no other can find or read."""

from __future__ import annotations

from pathlib import Path

from enginehouse.artifacts import BlobStore


class ProjectBlobs:
    """The stores under `{data_dir}/projects/{project}/blobs`."""

    def __init__(self, data_dir: Path) -> None:
        self._projects = data_dir / "projects"
        self._stores: dict[str, BlobStore] = {}

    def of(self, project: str) -> BlobStore:
        """The store of a project whose id was checked; nothing is written until a blob is."""
        if project not in self._stores:
            self._stores[project] = BlobStore(self._projects / project / "blobs")
        return self._stores[project]

    def sweep(self, older_than_seconds: float) -> int:
        """Remove abandoned uploads of all projects, before the service writes; returns how many files went."""
        folders = [path for path in self._projects.glob("*") if path.is_dir()]
        return sum(self.of(path.name).sweep(older_than_seconds, alone=True) for path in folders)
