"""What finished stages left: the cache that makes an equal stage run once."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from enginehouse.artifacts import Tree
from enginehouse_optimizer.storage.database import Database


@dataclass(frozen=True)
class StageResult:
    """The output of a stage: its files as a tree of blobs, what its result.json said, and the digest of its log."""

    tree: Tree
    result: Mapping[str, Any]
    log_digest: str


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
            "INSERT OR REPLACE INTO stage_results VALUES (?, ?, ?, ?, ?, ?)",
            (
                project,
                key,
                json.dumps(result.tree.to_json()),
                json.dumps(dict(result.result)),
                result.log_digest,
                time.time_ns(),
            ),
        )

    def forget(self, project: str, key: str) -> None:
        """Forget a result whose blobs are gone or damaged, so that the stage runs again."""
        self._database.execute("DELETE FROM stage_results WHERE project=? AND key=?", (project, key))
