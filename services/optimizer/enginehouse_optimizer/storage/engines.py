"""The index of published engines."""

from __future__ import annotations

import time
from collections.abc import Sequence

from enginehouse.errors import FailedPreconditionError, NotFoundError
from enginehouse.names import ResourceName
from enginehouse.v1 import engines_pb2
from enginehouse_optimizer.storage.database import Database
from enginehouse_optimizer.storage.paging import Page


class EngineIndex:
    """Engines by name and by key. A row appears only after all its blobs are stored."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def publish(self, engines: Sequence[engines_pb2.Engine]) -> list[engines_pb2.Engine]:
        """Make engines visible, all or none; returns what to tell of each.

        An engine that the project has under that key and model stays, and its verification becomes the newest one, so
        that `data` always names what the figures were measured on. A measurement on labelled data is not replaced by
        one without labels: the caller still gets its own.
        """
        with self._database.transaction():
            return [self._publish(engine) for engine in engines]

    def _publish(self, engine: engines_pb2.Engine) -> engines_pb2.Engine:
        name = _parts(engine.name)
        found = self.find(name.project, engine.key, engine.model)
        if found is None:
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
        elif _facts(found) == _facts(engine):
            return found  # an equal request was faster
        elif not _measured_better(found, engine):
            self._database.execute(
                "UPDATE engines SET body=? WHERE project=? AND id=?",
                (engine.SerializeToString(), name.project, name.id),
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


def _facts(engine: engines_pb2.Engine) -> engines_pb2.Engine:
    """The engine less what differs from job to job."""
    facts = engines_pb2.Engine()
    facts.CopyFrom(engine)
    facts.ClearField("create_time")
    facts.ClearField("manifest_digest")
    return facts


def _measured_better(known: engines_pb2.Engine, new: engines_pb2.Engine) -> bool:
    """Whether the known engine's verification, of the same bytes, says more than the new one's."""
    same_bytes = list(known.files) == list(new.files)
    return same_bytes and known.verification.HasField("top1") and not new.verification.HasField("top1")


def _parts(name: str) -> ResourceName:
    _, project, collection, identifier = name.split("/")
    return ResourceName(project, collection, identifier)
