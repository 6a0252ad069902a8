"""The index of published engines."""

from __future__ import annotations

import time

from enginehouse.errors import FailedPreconditionError, NotFoundError
from enginehouse.names import ResourceName
from enginehouse.v1 import engines_pb2
from enginehouse_optimizer.storage.database import Database
from enginehouse_optimizer.storage.paging import Page


class EngineIndex:
    """Engines by name and by key. A row appears only after all its blobs are stored."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def publish(self, engine: engines_pb2.Engine) -> engines_pb2.Engine:
        """Add an engine; returns the one that the project has under that key and model, the first one published."""
        name = _parts(engine.name)
        with self._database.transaction():
            if (found := self.find(name.project, engine.key, engine.model)) is not None:
                return found
            self._database.execute(
                "INSERT INTO engines VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    name.project,
                    name.id,
                    engine.key,
                    engine.model,
                    engine.backend,
                    engine.precision,
                    time.time_ns(),
                    engine.SerializeToString(),
                ),
            )
        return engine

    def find(self, project: str, key: str, model: str) -> engines_pb2.Engine | None:
        """The engine of that key, made for that model's name."""
        row = self._database.row(
            "SELECT body FROM engines WHERE project=? AND key=? AND model=?", (project, key, model)
        )
        return None if row is None else engines_pb2.Engine.FromString(row["body"])

    def exists(self, name: ResourceName) -> bool:
        return self._database.row("SELECT 1 FROM engines WHERE project=? AND id=?", (name.project, name.id)) is not None

    def get(self, name: ResourceName) -> engines_pb2.Engine:
        """Raises NotFoundError when there is none."""
        row = self._database.row("SELECT body FROM engines WHERE project=? AND id=?", (name.project, name.id))
        if row is None:
            raise NotFoundError(f"{name} does not exist", details={"name": str(name)})
        return engines_pb2.Engine.FromString(row["body"])

    def page(
        self, project: str, page: Page, *, model: str = "", backend: str = "", precision: int = 0
    ) -> tuple[list[engines_pb2.Engine], str]:
        """A page by id of the engines that match what is set, and the token of the next."""
        rows = self._database.rows(
            "SELECT id, body FROM engines WHERE project=? AND id>? AND (?='' OR model=?) AND (?='' OR backend=?) "
            "AND (?=0 OR precision=?) ORDER BY id LIMIT ?",
            (project, page.after, model, model, backend, backend, precision, precision, page.size + 1),
        )
        shown = rows[: page.size]
        token = page.next_token([row["id"] for row in shown], len(rows) > page.size)
        return [engines_pb2.Engine.FromString(row["body"]) for row in shown], token

    def delete(self, name: ResourceName) -> None:
        """Take an engine out of the index; its blobs stay, since other engines and cached stages may share them.

        Raises:
            NotFoundError: there is none.
            FailedPreconditionError: a serving configuration names it.
        """
        with self._database.transaction():
            users = self._database.rows(
                "SELECT config FROM served_engines WHERE project=? AND engine=? ORDER BY config",
                (name.project, name.id),
            )
            if users:
                configs = ", ".join(row["config"] for row in users)
                raise FailedPreconditionError(
                    f"{name} is served by {configs}: change or delete those serving configurations first",
                    details={"serving_configs": configs},
                )
            if not self._database.execute("DELETE FROM engines WHERE project=? AND id=?", (name.project, name.id)):
                raise NotFoundError(f"{name} does not exist", details={"name": str(name)})


def _parts(name: str) -> ResourceName:
    _, project, collection, identifier = name.split("/")
    return ResourceName(project, collection, identifier)
