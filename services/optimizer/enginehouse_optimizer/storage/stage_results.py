"""What finished stages left: the cache that makes an equal stage run once."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from enginehouse.artifacts import Tree
from enginehouse_optimizer.storage.database import Database
from enginehouse_optimizer.storage.jobs import LIVE


@dataclass(frozen=True)
class StageResult:
    """The output of a stage: its files as a tree of blobs, what its result.json said, and the digest of its log."""

    tree: Tree
    result: Mapping[str, Any]
    log_digest: str

    @property
    def seconds(self) -> float | None:
        """How long the stage ran, where it said so."""
        return _number(self.result.get("seconds"))

    @property
    def peak_memory_bytes(self) -> int | None:
        """The most memory that the stage's process held, where it said so."""
        value = _number(self.result.get("peak_memory_bytes"))
        return None if value is None else int(value)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and 0 <= value < 1e18 else None


class StageResults:
    """Results by project and cache key."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, project: str, key: str) -> StageResult | None:
        row = self._database.row(
            "SELECT tree, result, log_digest FROM stage_results WHERE project=? AND key=?", (project, key)
        )
        if row is None:
            return None
        return StageResult(Tree.from_json(json.loads(row["tree"])), json.loads(row["result"]), row["log_digest"])

    def put(self, project: str, key: str, result: StageResult) -> None:
        """Remember a result whose blobs are all stored."""
        self._database.execute(
            "INSERT OR REPLACE INTO stage_results (project, key, tree, result, log_digest, create_ns, used_ns) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                project,
                key,
                json.dumps(result.tree.to_json()),
                json.dumps(dict(result.result)),
                result.log_digest,
                now := time.time_ns(),
                now,
            ),
        )

    def touch(self, project: str, key: str) -> None:
        """A job takes the result now: it is not unused until long after."""
        self._database.execute(
            "UPDATE stage_results SET used_ns=? WHERE project=? AND key=?", (time.time_ns(), project, key)
        )

    def unused_since(self, ns: int) -> list[tuple[str, str]]:
        """(project, key) of the results that no job has taken since then (Unix nanoseconds).

        None that a live job may have taken is among them, whatever the time: it was taken after that job came.
        """
        rows = self._database.rows(
            "SELECT project, key FROM stage_results WHERE used_ns<? AND used_ns<COALESCE("
            "(SELECT MIN(create_ns) FROM jobs WHERE state IN (?, ?)), ?)",
            (ns, *LIVE, ns),
        )
        return [(row["project"], row["key"]) for row in rows]

    def forget(self, project: str, key: str) -> None:
        """Forget a result whose blobs are gone or damaged, so that the stage runs again."""
        self._database.execute("DELETE FROM stage_results WHERE project=? AND key=?", (project, key))
