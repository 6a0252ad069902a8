"""Serving configurations: the desired state of a project, with a revision that rises with every change."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from uuid import uuid4

from enginehouse.errors import AbortedError, NotFoundError
from enginehouse.names import NestedName, ResourceName
from enginehouse.v1 import serving_pb2
from enginehouse_optimizer.storage.database import Database
from enginehouse_optimizer.storage.paging import Page

Check = Callable[[serving_pb2.ServingConfig], None]
"""Raises when a configuration cannot be served."""


@dataclass(frozen=True)
class DesiredState:
    """All of a project's configurations, sorted by name, as they were at a revision."""

    configs: tuple[serving_pb2.ServingConfig, ...]
    revision: int


class ServingStore:
    """Serving configurations by name."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, name: ResourceName) -> serving_pb2.ServingConfig:
        """Raises NotFoundError when there is none."""
        row = self._database.row("SELECT body FROM serving_configs WHERE project=? AND id=?", (name.project, name.id))
        if row is None:
            raise NotFoundError(f"{name} does not exist", details={"name": str(name)})
        return serving_pb2.ServingConfig.FromString(row["body"])

    def page(self, project: str, page: Page) -> tuple[list[serving_pb2.ServingConfig], str]:
        """A page by id, and the token of the next."""
        rows = self._database.rows(
            "SELECT id, body FROM serving_configs WHERE project=? AND id>? ORDER BY id LIMIT ?",
            (project, page.after, page.size + 1),
        )
        shown = rows[: page.size]
        token = page.next_token([row["id"] for row in shown], len(rows) > page.size)
        return [serving_pb2.ServingConfig.FromString(row["body"]) for row in shown], token

    def state(self, project: str) -> DesiredState:
        with self._database.transaction():
            rows = self._database.rows("SELECT body FROM serving_configs WHERE project=? ORDER BY id", (project,))
            return DesiredState(
                tuple(serving_pb2.ServingConfig.FromString(row["body"]) for row in rows), self.revision(project)
            )

    def revision(self, project: str) -> int:
        """0 before the first change."""
        row = self._database.row("SELECT revision FROM revisions WHERE project=?", (project,))
        return 0 if row is None else int(row["revision"])

    def put(
        self,
        name: ResourceName,
        config: serving_pb2.ServingConfig,
        engines: set[str],
        aliases: Iterable[NestedName] = (),
        *,
        allow_missing: bool,
    ) -> serving_pb2.ServingConfig:
        """Replace a configuration; returns it with its new etag and generation.

        Args:
            config: checked, with `update_time` set; its etag, when set, must be the current one's.
            engines: ids of the engines that it names.
            aliases: the aliases that it names.

        Raises:
            NotFoundError: there is none, and `allow_missing` is not set.
            AbortedError: somebody else changed it since the caller read it.
        """
        with self._database.transaction():
            row = self._database.row(
                "SELECT generation, etag FROM serving_configs WHERE project=? AND id=?", (name.project, name.id)
            )
            if row is None and not allow_missing:
                raise NotFoundError(
                    f"{name} does not exist: set allow_missing to create it", details={"name": str(name)}
                )
            current = "" if row is None else str(row["etag"])
            if config.etag and config.etag != current:
                raise AbortedError(
                    f"{name} has changed since it was read (etag {config.etag!r}, now {current!r}): "
                    "read it again and repeat the change",
                    details={"etag": current},
                )
            stored = self._store(name, config, 0 if row is None else int(row["generation"]), engines)
            self._database.execute("DELETE FROM served_aliases WHERE project=? AND config=?", (name.project, name.id))
            for alias in sorted(set(aliases), key=str):
                self._database.execute(
                    "INSERT INTO served_aliases VALUES (?, ?, ?, ?)", (name.project, alias.owner.id, alias.id, name.id)
                )
            self._advance(name.project)
        return stored

    def delete(self, name: ResourceName) -> None:
        """Raises NotFoundError when there is none."""
        with self._database.transaction():
            if not self._database.execute(
                "DELETE FROM serving_configs WHERE project=? AND id=?", (name.project, name.id)
            ):
                raise NotFoundError(f"{name} does not exist", details={"name": str(name)})
            self._forget_engines(name)
            self._database.execute("DELETE FROM served_aliases WHERE project=? AND config=?", (name.project, name.id))
            self._advance(name.project)

    def users(self, alias: NestedName) -> list[str]:
        """Ids of the configurations that name an alias."""
        rows = self._database.rows(
            "SELECT config FROM served_aliases WHERE project=? AND model=? AND alias=? ORDER BY config",
            (alias.owner.project, alias.owner.id, alias.id),
        )
        return [str(row["config"]) for row in rows]

    def follow(self, alias: NestedName, engine: ResourceName, check: Check) -> bool:
        """Put an alias's new engine into every configuration that names it; returns whether there is one.

        Args:
            check: called with each changed configuration; what it raises stops all of it.
        """
        project = alias.owner.project
        with self._database.transaction():
            users = self.users(alias)
            for config_id in users:
                name = ResourceName(project, "servingConfigs", config_id)
                config = moved(self.get(name), str(alias), str(engine))
                check(config)
                config.update_time.GetCurrentTime()
                engines = {version.engine.rsplit("/", 1)[-1] for version in config.versions}
                self._store(name, config, config.generation, engines)
            if users:
                self._advance(project)
        return bool(users)

    def _store(
        self, name: ResourceName, config: serving_pb2.ServingConfig, generation: int, engines: set[str]
    ) -> serving_pb2.ServingConfig:
        """Write a configuration as the generation after `generation`, with a new etag."""
        stored = serving_pb2.ServingConfig()
        stored.CopyFrom(config)
        stored.name = str(name)
        stored.etag = uuid4().hex
        stored.generation = generation + 1
        self._database.execute(
            "INSERT OR REPLACE INTO serving_configs VALUES (?, ?, ?, ?, ?)",
            (name.project, name.id, stored.generation, stored.etag, stored.SerializeToString()),
        )
        self._forget_engines(name)
        for engine in sorted(engines):
            self._database.execute("INSERT INTO served_engines VALUES (?, ?, ?)", (name.project, name.id, engine))
        return stored

    def _forget_engines(self, name: ResourceName) -> None:
        self._database.execute("DELETE FROM served_engines WHERE project=? AND config=?", (name.project, name.id))

    def _advance(self, project: str) -> None:
        self._database.execute(
            "INSERT INTO revisions VALUES (?, 1) ON CONFLICT (project) DO UPDATE SET revision = revision + 1",
            (project,),
        )


def moved(config: serving_pb2.ServingConfig, alias: str, engine: str) -> serving_pb2.ServingConfig:
    """The configuration after an alias moved: the version after the highest in the place of the one that names it.

    A new number, so that an inference process loads the new engine beside the old one and clients see which answered.
    """
    changed = serving_pb2.ServingConfig()
    changed.CopyFrom(config)
    highest = max((version.version for version in config.versions), default=0)
    del changed.versions[:]
    changed.versions.extend(version for version in config.versions if version.alias != alias)
    changed.versions.add(version=highest + 1, engine=engine, alias=alias)
    return changed
