"""Which blobs the database names, and for whom: what garbage collection keeps and a check looks for."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from enginehouse.v1 import engines_pb2, models_pb2
from enginehouse_optimizer.storage.database import Database
from enginehouse_optimizer.storage.jobs import Jobs

MODELS, DATASETS, ENGINES, STAGE_RESULTS, JOBS = "models", "datasets", "engines", "stage results", "jobs"
TIMING_CACHES = "timing caches"
KINDS = (MODELS, DATASETS, ENGINES, TIMING_CACHES, STAGE_RESULTS, JOBS)

_ENGINE_BLOBS = (
    "manifest_digest", "build_log_digest", "calibration_digest", "sensitivity_digest", "layers_digest",
)  # fmt: skip
# Digests stand in messages and JSON as they are, so whatever field names a blob, now or in a later version, is found.
_DIGEST = re.compile(rb"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Owner:
    """Who names a blob: one of KINDS, and its resource name (a stage result's key, a timing cache's own name)."""

    kind: str
    name: str


class NamedBlobs:
    """Reads the database: its methods belong in the event loop, and what they answer is of one moment."""

    def __init__(self, database: Database, jobs: Jobs) -> None:
        self._database = database
        self._jobs = jobs

    def of(self, project: str) -> Mapping[str, Owner]:
        """Every digest that something of the project names, with the first of KINDS that does.

        Digests of other things than blobs (keys, zoo sources) are among them: keeping too much is safe.
        """
        owners: dict[str, Owner] = {}
        with self._database.transaction():
            for owner, digest in self._all(project):
                owners.setdefault(digest, owner)
        return owners

    def required(self, project: str) -> Iterator[tuple[Owner, str]]:
        """Each owner with each blob that it cannot do without. Unlike `of`, digests of blobs only."""
        for row in self._resources(project, MODELS):
            model = models_pb2.Model.FromString(row["body"])
            owner = Owner(MODELS, f"projects/{project}/{MODELS}/{row['id']}")
            yield from ((owner, digest) for digest in (model.blob, model.zoo.weights) if digest)
        for row in self._resources(project, DATASETS):
            dataset = models_pb2.Dataset.FromString(row["body"])
            yield Owner(DATASETS, f"projects/{project}/{DATASETS}/{row['id']}"), dataset.blob
        for row in self._engines(project):
            engine = engines_pb2.Engine.FromString(row["body"])
            owner = Owner(ENGINES, f"projects/{project}/engines/{row['id']}")
            digests = [getattr(engine, name) for name in _ENGINE_BLOBS] + [file.digest for file in engine.files]
            yield from ((owner, digest) for digest in digests if digest)
        yield from self._timing_caches(project)
        for row in self._results(project):
            owner = Owner(STAGE_RESULTS, str(row["key"]))
            digests = [entry["digest"] for entry in json.loads(row["tree"])] + [row["log_digest"]]
            yield from ((owner, digest) for digest in digests if digest)

    def oldest_live_ns(self, project: str) -> int | None:
        """When the oldest job that is not done came (Unix nanoseconds); None when there is none."""
        return min((job.create_ns for job in self._jobs.live() if job.project == project), default=None)

    def projects(self) -> set[str]:
        """The projects that have anything in the database."""
        found: set[str] = set()
        for table in ("resources", "engines", "timing_caches", "stage_results", "jobs"):
            found |= {str(row["project"]) for row in self._database.rows(f"SELECT DISTINCT project FROM {table}")}
        return found

    def _all(self, project: str) -> Iterator[tuple[Owner, str]]:
        for collection in (MODELS, DATASETS):
            for row in self._resources(project, collection):
                owner = Owner(collection, f"projects/{project}/{collection}/{row['id']}")
                yield from ((owner, digest) for digest in _digests(row["body"]))
        for row in self._engines(project):
            owner = Owner(ENGINES, f"projects/{project}/engines/{row['id']}")
            yield from ((owner, digest) for digest in _digests(row["body"]))
        yield from self._timing_caches(project)
        for row in self._results(project):
            owner = Owner(STAGE_RESULTS, str(row["key"]))
            yield from ((owner, digest) for digest in _digests(f"{row['tree']} {row['log_digest']}".encode()))
        for job_project, digest in self._jobs.blobs():
            if job_project == project:
                yield Owner(JOBS, f"projects/{project}/operations"), digest

    def _resources(self, project: str, collection: str) -> list[sqlite3.Row]:
        return self._database.rows(
            "SELECT id, body FROM resources WHERE project=? AND collection=?", (project, collection)
        )

    def _engines(self, project: str) -> list[sqlite3.Row]:
        return self._database.rows("SELECT id, body FROM engines WHERE project=?", (project,))

    def _timing_caches(self, project: str) -> Iterator[tuple[Owner, str]]:
        for row in self._database.rows("SELECT name, digest FROM timing_caches WHERE project=?", (project,)):
            yield Owner(TIMING_CACHES, str(row["name"])), str(row["digest"])

    def _results(self, project: str) -> list[sqlite3.Row]:
        return self._database.rows("SELECT key, tree, log_digest FROM stage_results WHERE project=?", (project,))


def _digests(data: bytes) -> list[str]:
    return [found.decode() for found in _DIGEST.findall(data)]
