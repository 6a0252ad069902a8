"""Engines named in the object store, so that they outlive the database.

    {url}/projects/{project}/engines/{id}.json   {"manifest": digest of the manifest's blob}

A pointer follows its engine's row: written soon after the engine is published, removed soon after it is deleted, and
compared with the database when the service starts. The database remembers a deleted engine until its pointer is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from enginehouse.artifacts import EngineManifest
from enginehouse.errors import EnginehouseError
from enginehouse.names import ResourceName
from enginehouse.v1 import engines_pb2
from enginehouse_optimizer.pipeline.publish import engine_message
from enginehouse_optimizer.storage.blobs import ProjectBlobs
from enginehouse_optimizer.storage.database import Database
from enginehouse_optimizer.storage.engines import EngineIndex
from enginehouse_optimizer.storage.objects import ObjectStore
from enginehouse_optimizer.threads import in_thread

_log = structlog.get_logger("pointers")

RETRY_SECONDS = 10.0


class ToldEngineIndex(EngineIndex):
    """An index that says when a project's engines change; where pointers outlive it, it remembers those deleted."""

    def __init__(self, database: Database, changed: Callable[[str], None], *, pointed_at: bool) -> None:
        super().__init__(database)
        self._changed = changed
        self._pointed_at = pointed_at

    def publish(self, engines: Sequence[engines_pb2.Engine]) -> list[engines_pb2.Engine]:
        with self._database.transaction():
            published = super().publish(engines)
            for engine in engines:
                self._exists_again(engine.name)
        for project in {engine.name.split("/")[1] for engine in engines}:
            self._changed(project)
        return published

    def adopt(self, engine: engines_pb2.Engine) -> engines_pb2.Engine:
        with self._database.transaction():
            adopted = super().adopt(engine)
            self._exists_again(adopted.name)
        self._changed(adopted.name.split("/")[1])
        return adopted

    def delete(self, name: ResourceName) -> None:
        with self._database.transaction():
            super().delete(name)
            if self._pointed_at:
                self._database.execute("INSERT OR REPLACE INTO deleted_engines VALUES (?, ?)", (name.project, name.id))
        self._changed(name.project)

    def _exists_again(self, name: str) -> None:
        _, project, _, identifier = name.split("/")
        self._database.execute("DELETE FROM deleted_engines WHERE project=? AND id=?", (project, identifier))


class EnginePointers:
    """Keeps the pointers as the database is. All methods in the service's event loop."""

    def __init__(self, database: Database, blobs: ProjectBlobs) -> None:
        self._database = database
        self._blobs = blobs
        self._written: dict[str, dict[str, str]] = {}  # project: engine's id: manifest's digest
        self._dirty: set[str] = set()
        self._wake = asyncio.Event()

    def changed(self, project: str) -> None:
        """The engines of a project are not what they were."""
        if self._blobs.objects is not None:
            self._dirty.add(project)
            self._wake.set()

    async def recover(self, engines: EngineIndex) -> int:
        """Index the engines that the object store names and the database does not; returns how many.

        Once, before the first request. An engine whose manifest is gone or damaged is left out, and logged.
        """
        objects = self._blobs.objects
        if objects is None:
            return 0
        found = 0
        for project in sorted(await in_thread(self._blobs.projects)):
            pointers = await in_thread(_pointers, objects, project)
            self._written[project] = pointers
            known = self._rows(project)
            for identifier in sorted(pointers.keys() - known.keys() - self._deleted(project)):
                name = f"projects/{project}/engines/{identifier}"
                try:
                    engine = await in_thread(_engine, self._blobs, project, name, pointers[identifier])
                    engines.publish([engine])
                    found += 1
                except EnginehouseError as error:
                    _log.error("an engine could not be recovered", engine=name, error=error.message)
            self.changed(project)
        if found:
            _log.info("engines recovered from the object store", engines=found)
        return found

    async def run(self) -> None:
        """Write what changed, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            if not await self.flush():
                await asyncio.sleep(RETRY_SECONDS)
                self._wake.set()

    async def flush(self) -> bool:
        """Write what changed; whether all of it could be."""
        objects = self._blobs.objects
        for project in sorted(self._dirty) if objects is not None else ():
            assert objects is not None
            self._dirty.discard(project)
            wanted, written = self._rows(project), self._written.setdefault(project, {})
            try:
                await in_thread(_write, objects, project, wanted, written)
                for identifier in self._deleted(project) - written.keys():
                    self._database.execute(
                        "DELETE FROM deleted_engines WHERE project=? AND id=?", (project, identifier)
                    )
            except EnginehouseError as error:
                self._dirty.add(project)
                _log.warning("pointers to engines are not written yet", project=project, error=error.message)
        return not self._dirty

    def _deleted(self, project: str) -> set[str]:
        return {str(r["id"]) for r in self._database.rows("SELECT id FROM deleted_engines WHERE project=?", (project,))}

    def _rows(self, project: str) -> dict[str, str]:
        rows = self._database.rows("SELECT id, body FROM engines WHERE project=?", (project,))
        return {str(row["id"]): engines_pb2.Engine.FromString(row["body"]).manifest_digest for row in rows}


def _folder(project: str) -> str:
    return f"projects/{project}/engines"


def _pointers(objects: ObjectStore, project: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for item in objects.objects(_folder(project)):
        value: Any = objects.get_json(item.key)
        if isinstance(value, dict) and item.key.endswith(".json"):
            found[item.key.rsplit("/", 1)[-1].removesuffix(".json")] = str(value.get("manifest", ""))
    return found


def _engine(blobs: ProjectBlobs, project: str, name: str, digest: str) -> engines_pb2.Engine:
    manifest = EngineManifest.from_json(blobs.of(project).read_bytes(digest))
    return engine_message(name, manifest, digest)


def _write(objects: ObjectStore, project: str, wanted: dict[str, str], written: dict[str, str]) -> None:
    """Make the pointers of a project as wanted; `written` follows, one by one."""
    for identifier, digest in wanted.items():
        if written.get(identifier) != digest:
            objects.put_json(f"{_folder(project)}/{identifier}.json", {"manifest": digest})
            written[identifier] = digest
    for identifier in list(written.keys() - wanted.keys()):
        objects.delete([f"{_folder(project)}/{identifier}.json"])
        del written[identifier]
