"""Models and datasets: named messages with the digest of what they stand for."""

from __future__ import annotations

import time
from typing import Generic, TypeVar

from google.protobuf.message import Message

from enginehouse.errors import AlreadyExistsError, NotFoundError
from enginehouse.names import ResourceName
from enginehouse_optimizer.storage.database import Database
from enginehouse_optimizer.storage.paging import Page

M = TypeVar("M", bound=Message)


class Resources(Generic[M]):
    """The resources of one collection (`models`, `datasets`)."""

    def __init__(self, database: Database, collection: str, kind: type[M]) -> None:
        self._database = database
        self._collection = collection
        self._kind = kind

    def create(self, name: ResourceName, digest: str, resource: M, *, replace: bool) -> M:
        """Store a resource; returns what is stored now. The same digest again changes nothing, unless `replace` is set.

        Raises:
            AlreadyExistsError: there is one of that name with another digest, and `replace` is not set.
        """
        with self._database.transaction():
            row = self._row(name)
            if row is not None and row["digest"] == digest and not replace:
                return self._kind.FromString(row["body"])
            if row is not None and not replace:
                raise AlreadyExistsError(
                    f"{name} already exists with the digest {row['digest']}: use another id, or allow_replace",
                    details={"digest": row["digest"]},
                )
            self._database.execute(
                "INSERT OR REPLACE INTO resources VALUES (?, ?, ?, ?, ?, ?)",
                (name.project, self._collection, name.id, digest, time.time_ns(), resource.SerializeToString()),
            )
        return resource

    def get(self, name: ResourceName) -> M:
        """Raises NotFoundError when there is none."""
        row = self._row(name)
        if row is None:
            raise NotFoundError(f"{name} does not exist", details={"name": str(name)})
        return self._kind.FromString(row["body"])

    def page(self, project: str, page: Page) -> tuple[list[M], str]:
        """A page by id, and the token of the next."""
        rows = self._database.rows(
            "SELECT id, body FROM resources WHERE project=? AND collection=? AND id>? ORDER BY id LIMIT ?",
            (project, self._collection, page.after, page.size + 1),
        )
        shown = rows[: page.size]
        token = page.next_token([row["id"] for row in shown], len(rows) > page.size)
        return [self._kind.FromString(row["body"]) for row in shown], token

    def delete(self, name: ResourceName) -> None:
        """Raises NotFoundError when there is none."""
        if not self._database.execute(
            "DELETE FROM resources WHERE project=? AND collection=? AND id=?",
            (name.project, self._collection, name.id),
        ):
            raise NotFoundError(f"{name} does not exist", details={"name": str(name)})

    def _row(self, name: ResourceName):  # type: ignore[no-untyped-def]
        return self._database.row(
            "SELECT digest, body FROM resources WHERE project=? AND collection=? AND id=?",
            (name.project, self._collection, name.id),
        )
