"""Aliases: names for engines of a model that can move, and take the serving configurations that name them along."""

from __future__ import annotations

import sqlite3
import time
from uuid import uuid4

from enginehouse.errors import AbortedError, FailedPreconditionError, NotFoundError
from enginehouse.names import NestedName, ResourceName
from enginehouse.v1 import engines_pb2
from enginehouse_optimizer.storage.database import Database
from enginehouse_optimizer.storage.paging import Page
from enginehouse_optimizer.storage.serving import Check, ServingStore

ALL_MODELS = "-"


class AliasStore:
    """Aliases by name."""

    def __init__(self, database: Database, serving: ServingStore) -> None:
        self._database = database
        self._serving = serving

    def get(self, name: NestedName) -> engines_pb2.Alias:
        """Raises NotFoundError when there is none."""
        row = self._row(name)
        if row is None:
            raise NotFoundError(f"{name} does not exist", details={"name": str(name)})
        return _alias(row)

    def page(self, project: str, model: str, page: Page) -> tuple[list[engines_pb2.Alias], str]:
        """A page of a model's aliases, or of all models' for ALL_MODELS, by name; and the token of the next."""
        after = (*page.after.partition("/")[::2],)
        rows = self._database.rows(
            "SELECT * FROM aliases WHERE project=? AND (model, id) > (?, ?) AND (?=? OR model=?) "
            "ORDER BY model, id LIMIT ?",
            (project, *after, model, ALL_MODELS, model, page.size + 1),
        )
        shown = rows[: page.size]
        token = page.next_token([f"{row['model']}/{row['id']}" for row in shown], len(rows) > page.size)
        return [_alias(row) for row in shown], token

    def set(self, name: NestedName, engine: ResourceName, etag: str, check: Check) -> tuple[engines_pb2.Alias, bool]:
        """Make an alias or move it, and put the engine into every serving configuration that names it: all or nothing.

        Args:
            engine: an engine that exists.
            etag: when set, it must be the alias's current one.
            check: as `ServingStore.follow` takes it.

        Returns:
            The alias, and whether a serving configuration changed. Setting what it is already changes nothing.

        Raises:
            AbortedError: somebody else moved it since the caller read it.
            FailedPreconditionError: a configuration that names it cannot serve the engine.
        """
        with self._database.transaction():
            row = self._row(name)
            current = "" if row is None else str(row["etag"])
            if etag and etag != current:
                raise AbortedError(
                    f"{name} has changed since it was read (etag {etag!r}, now {current!r}): read it again",
                    details={"etag": current},
                )
            if row is not None and row["engine"] == engine.id:
                return _alias(row), False
            self._database.execute(
                "INSERT OR REPLACE INTO aliases VALUES (?, ?, ?, ?, ?, ?)",
                (name.owner.project, name.owner.id, name.id, engine.id, uuid4().hex, time.time_ns()),
            )
            followed = self._serving.follow(name, engine, check)
            return self.get(name), followed

    def delete(self, name: NestedName) -> None:
        """Forget an alias; its engine stays.

        Raises:
            NotFoundError: there is none.
            FailedPreconditionError: a serving configuration names it.
        """
        with self._database.transaction():
            self.get(name)
            configs = ", ".join(self._serving.users(name))
            if configs:
                raise FailedPreconditionError(
                    f"{name} is served by {configs}: change or delete those serving configurations first",
                    details={"serving_configs": configs},
                )
            self._database.execute(
                "DELETE FROM aliases WHERE project=? AND model=? AND id=?",
                (name.owner.project, name.owner.id, name.id),
            )

    def _row(self, name: NestedName) -> sqlite3.Row | None:
        return self._database.row(
            "SELECT * FROM aliases WHERE project=? AND model=? AND id=?", (name.owner.project, name.owner.id, name.id)
        )


def _alias(row: sqlite3.Row) -> engines_pb2.Alias:
    alias = engines_pb2.Alias(
        name=f"projects/{row['project']}/models/{row['model']}/aliases/{row['id']}",
        engine=f"projects/{row['project']}/engines/{row['engine']}",
        etag=row["etag"],
    )
    alias.update_time.FromNanoseconds(row["update_ns"])
    return alias
