"""The index of published engines."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence

from enginehouse.errors import AlreadyExistsError, FailedPreconditionError, NotFoundError
from enginehouse.names import ResourceName
from enginehouse.v1 import engines_pb2
from enginehouse_optimizer.storage.database import Database
from enginehouse_optimizer.storage.paging import Page

_COLUMNS = "id, body, pinned"


class EngineIndex:
    """Engines by name and by key. A row appears only after all its blobs are stored."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._fill_devices()

    def publish(self, engines: Sequence[engines_pb2.Engine]) -> list[engines_pb2.Engine]:
        """Make engines visible, all or none; returns what to tell of each.

        An engine that the project has under that key and model stays, and its verification becomes the newest one, so
        that `data` always names what the figures were measured on. A measurement on labelled data is not replaced by
        one without labels: the caller still gets its own.
        """
        with self._database.transaction():
            return [self._publish(engine) for engine in engines]

    def adopt(self, engine: engines_pb2.Engine) -> engines_pb2.Engine:
        """Make an engine visible that was built elsewhere; one that is here with the same files stays as it is.

        Raises:
            AlreadyExistsError: the project has other files under its name, or under its key and model.
        """
        name = _parts(engine.name)
        with self._database.transaction():
            row = self._row(name)
            found = self.find(name.project, engine.key, engine.model) if row is None else _body(row)
            if found is None:
                self._insert(name, engine)
            elif (found.key, list(found.files)) != (engine.key, list(engine.files)):
                raise AlreadyExistsError(
                    f"{found.name} already exists with other files (two builds of one request may differ): "
                    "delete it first, or import under another model id",
                    details={"name": found.name},
                )
            return self.get(name if found is None else _parts(found.name))

    def find(self, project: str, key: str, model: str) -> engines_pb2.Engine | None:
        """The engine of that key, made for that model's name, as it was published."""
        row = self._database.row(
            "SELECT body FROM engines WHERE project=? AND key=? AND model=?", (project, key, model)
        )
        return None if row is None else _body(row)

    def exists(self, name: ResourceName) -> bool:
        return self._database.row("SELECT 1 FROM engines WHERE project=? AND id=?", (name.project, name.id)) is not None

    def get(self, name: ResourceName) -> engines_pb2.Engine:
        """An engine with its pin and its aliases. Raises NotFoundError when there is none."""
        row = self._row(name)
        if row is None:
            raise NotFoundError(f"{name} does not exist", details={"name": str(name)})
        return self._whole(name.project, row)

    def page(
        self, project: str, page: Page, *, model: str = "", backend: str = "", precision: int = 0, device: str = ""
    ) -> tuple[list[engines_pb2.Engine], str]:
        """A page by id of the engines that match what is set, and the token of the next.

        Args:
            device: "cpu" or "gpu", or a product (in any case), or a compute capability.
        """
        rows = self._database.rows(
            f"SELECT {_COLUMNS} FROM engines WHERE project=? AND id>? AND (?='' OR model=?) AND (?='' OR backend=?) "
            "AND (?=0 OR precision=?) AND (?='' OR device_kind=? COLLATE NOCASE OR compute_capability=? "
            "OR device_product=? COLLATE NOCASE) ORDER BY id LIMIT ?",
            (project, page.after, model, model, backend, backend, precision, precision, *[device] * 4, page.size + 1),
        )
        shown = rows[: page.size]
        token = page.next_token([row["id"] for row in shown], len(rows) > page.size)
        return [self._whole(project, row) for row in shown], token

    def pin(self, name: ResourceName, pinned: bool) -> engines_pb2.Engine:
        """Keep an engine from being deleted or collected, or no longer. Raises NotFoundError when there is none."""
        with self._database.transaction():
            self._database.execute(
                "UPDATE engines SET pinned=? WHERE project=? AND id=?", (int(pinned), name.project, name.id)
            )
            return self.get(name)

    def delete(self, name: ResourceName) -> None:
        """Take an engine out of the index; its blobs stay, since other engines and cached stages may share them.

        Raises:
            NotFoundError: there is none.
            FailedPreconditionError: a serving configuration or an alias names it, or it is pinned.
        """
        with self._database.transaction():
            engine = self.get(name)
            rows = self._database.rows(
                "SELECT config FROM served_engines WHERE project=? AND engine=? ORDER BY config",
                (name.project, name.id),
            )
            configs = ", ".join(row["config"] for row in rows)
            aliases = ", ".join(engine.aliases)
            reasons = {
                f"is served by {configs}": (configs, "change or delete those serving configurations"),
                f"is what the alias {aliases} names": (aliases, "move or delete the alias"),
                "is pinned": (engine.pinned, "unpin it"),
            }
            why = [reason for reason, (holds, _) in reasons.items() if holds]
            if why:
                todo = ", ".join(what for holds, what in reasons.values() if holds)
                raise FailedPreconditionError(
                    f"{name} {' and '.join(why)}: {todo} first",
                    details={"serving_configs": configs, "aliases": aliases, "pinned": str(engine.pinned).lower()},
                )
            self._database.execute("DELETE FROM engines WHERE project=? AND id=?", (name.project, name.id))

    def _publish(self, engine: engines_pb2.Engine) -> engines_pb2.Engine:
        name = _parts(engine.name)
        found = self.find(name.project, engine.key, engine.model)
        if found is None:
            self._insert(name, engine)
        elif _facts(found) == _facts(engine):
            return found  # an equal request was faster
        elif not _measured_better(found, engine):
            self._database.execute(
                "UPDATE engines SET body=? WHERE project=? AND id=?",
                (engine.SerializeToString(), name.project, name.id),
            )
        return engine

    def _insert(self, name: ResourceName, engine: engines_pb2.Engine) -> None:
        self._database.execute(
            "INSERT INTO engines (project, id, key, model, backend, precision, create_ns, body, device_kind, "
            "device_product, compute_capability) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                name.project,
                name.id,
                engine.key,
                engine.model,
                engine.backend,
                engine.precision,
                time.time_ns(),
                engine.SerializeToString(),
                engine.device.kind,
                engine.device.product,
                engine.device.compute_capability,
            ),
        )

    def _row(self, name: ResourceName) -> sqlite3.Row | None:
        return self._database.row(f"SELECT {_COLUMNS} FROM engines WHERE project=? AND id=?", (name.project, name.id))

    def _whole(self, project: str, row: sqlite3.Row) -> engines_pb2.Engine:
        engine = _body(row)
        engine.pinned = bool(row["pinned"])
        aliases = self._database.rows(
            "SELECT id FROM aliases WHERE project=? AND engine=? ORDER BY id", (project, row["id"])
        )
        engine.aliases[:] = [alias["id"] for alias in aliases]
        return engine

    def _fill_devices(self) -> None:
        """The device columns of engines that an earlier version published."""
        with self._database.transaction():
            for row in self._database.rows("SELECT project, id, body FROM engines WHERE device_kind IS NULL"):
                device = _body(row).device
                self._database.execute(
                    "UPDATE engines SET device_kind=?, device_product=?, compute_capability=? WHERE project=? AND id=?",
                    (device.kind, device.product, device.compute_capability, row["project"], row["id"]),
                )


def _body(row: sqlite3.Row) -> engines_pb2.Engine:
    return engines_pb2.Engine.FromString(row["body"])


def _facts(engine: engines_pb2.Engine) -> engines_pb2.Engine:
    """The engine less what differs from job to job."""
    facts = engines_pb2.Engine()
    facts.CopyFrom(engine)
    facts.ClearField("create_time")
    facts.ClearField("manifest_digest")
    return facts


def _measured_better(known: engines_pb2.Engine, new: engines_pb2.Engine) -> bool:
    """Whether the known engine's verification, of the same bytes, says more than the new one's."""
    if list(known.files) != list(new.files):
        return False
    if known.HasField("verification") and not new.HasField("verification"):
        return True
    return known.verification.HasField("top1") and not new.verification.HasField("top1")


def _parts(name: str) -> ResourceName:
    _, project, collection, identifier = name.split("/")
    return ResourceName(project, collection, identifier)
