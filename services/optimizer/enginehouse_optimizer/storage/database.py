"""The SQLite database: opened in WAL mode, brought to the newest schema, one short transaction at a time.

The service is the file's only writer (a lock on the data folder sees to that) and uses it from its event loop only.
Every statement touches a few rows by index, so it runs in the loop. `synchronous=NORMAL`: a power cut may lose the last
transactions, never part of one, and never their order.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from enginehouse.errors import FailedPreconditionError, ResourceExhaustedError

# One script for each schema version; never edit one that was released.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE resources (
        project TEXT NOT NULL, collection TEXT NOT NULL, id TEXT NOT NULL,
        digest TEXT NOT NULL, create_ns INTEGER NOT NULL, body BLOB NOT NULL,
        PRIMARY KEY (project, collection, id)
    ) WITHOUT ROWID;
    CREATE TABLE engines (
        project TEXT NOT NULL, id TEXT NOT NULL, key TEXT NOT NULL,
        model TEXT NOT NULL, backend TEXT NOT NULL, precision INTEGER NOT NULL,
        create_ns INTEGER NOT NULL, body BLOB NOT NULL,
        PRIMARY KEY (project, id), UNIQUE (project, key, model)
    ) WITHOUT ROWID;
    CREATE TABLE serving_configs (
        project TEXT NOT NULL, id TEXT NOT NULL, generation INTEGER NOT NULL, etag TEXT NOT NULL, body BLOB NOT NULL,
        PRIMARY KEY (project, id)
    ) WITHOUT ROWID;
    CREATE TABLE served_engines (
        project TEXT NOT NULL, config TEXT NOT NULL, engine TEXT NOT NULL,
        PRIMARY KEY (project, engine, config)
    ) WITHOUT ROWID;
    CREATE TABLE revisions (project TEXT PRIMARY KEY, revision INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE jobs (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        project TEXT NOT NULL, id TEXT NOT NULL, request_id TEXT, model TEXT NOT NULL,
        state INTEGER NOT NULL, cancel_requested INTEGER NOT NULL DEFAULT 0,
        create_ns INTEGER NOT NULL, start_ns INTEGER, end_ns INTEGER,
        request BLOB NOT NULL, inputs TEXT NOT NULL, response BLOB, error BLOB,
        UNIQUE (project, id), UNIQUE (project, request_id)
    );
    CREATE INDEX jobs_by_state ON jobs (state);
    CREATE TABLE job_stages (
        job INTEGER NOT NULL REFERENCES jobs (number) ON DELETE CASCADE, position INTEGER NOT NULL,
        name TEXT NOT NULL, state INTEGER NOT NULL, fraction REAL NOT NULL DEFAULT 0, message TEXT NOT NULL DEFAULT '',
        start_ns INTEGER, end_ns INTEGER, log_digest TEXT NOT NULL DEFAULT '',
        PRIMARY KEY (job, position), UNIQUE (job, name)
    ) WITHOUT ROWID;
    CREATE TABLE events (
        job INTEGER NOT NULL REFERENCES jobs (number) ON DELETE CASCADE, sequence INTEGER NOT NULL, body BLOB NOT NULL,
        PRIMARY KEY (job, sequence)
    ) WITHOUT ROWID;
    CREATE TABLE stage_results (
        project TEXT NOT NULL, key TEXT NOT NULL, tree TEXT NOT NULL, result TEXT NOT NULL, log_digest TEXT NOT NULL,
        create_ns INTEGER NOT NULL,
        PRIMARY KEY (project, key)
    ) WITHOUT ROWID;
    """,
    # Jobs: priority, what a stage took, what results are still used, what memory to expect of a stage.
    """
    ALTER TABLE jobs ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX jobs_by_end ON jobs (end_ns);
    ALTER TABLE job_stages ADD COLUMN seconds REAL;
    ALTER TABLE job_stages ADD COLUMN peak_memory_bytes INTEGER;
    ALTER TABLE stage_results ADD COLUMN used_ns INTEGER NOT NULL DEFAULT 0;
    UPDATE stage_results SET used_ns=create_ns;
    CREATE INDEX stage_results_by_use ON stage_results (used_ns);
    CREATE TABLE stage_costs (
        environment TEXT NOT NULL, stage TEXT NOT NULL, input_bytes INTEGER NOT NULL,
        peak_memory_bytes INTEGER NOT NULL,
        PRIMARY KEY (environment, stage, input_bytes)
    ) WITHOUT ROWID;
    """,
    # Engines: pins, aliases, and what they were built for, to find them by (the index fills it in from their bodies).
    """
    ALTER TABLE engines ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE engines ADD COLUMN device_kind TEXT;
    ALTER TABLE engines ADD COLUMN device_product TEXT;
    ALTER TABLE engines ADD COLUMN compute_capability TEXT;
    CREATE TABLE aliases (
        project TEXT NOT NULL, model TEXT NOT NULL, id TEXT NOT NULL, engine TEXT NOT NULL,
        etag TEXT NOT NULL, update_ns INTEGER NOT NULL,
        PRIMARY KEY (project, model, id)
    ) WITHOUT ROWID;
    CREATE INDEX aliases_by_engine ON aliases (project, engine);
    CREATE TABLE served_aliases (
        project TEXT NOT NULL, model TEXT NOT NULL, alias TEXT NOT NULL, config TEXT NOT NULL,
        PRIMARY KEY (project, model, alias, config)
    ) WITHOUT ROWID;
    """,
    # Engines that were deleted here while an object store still names them.
    """
    CREATE TABLE deleted_engines (project TEXT NOT NULL, id TEXT NOT NULL, PRIMARY KEY (project, id)) WITHOUT ROWID;
    """,
    # What TensorRT measured for a GPU, a driver and a version of its own (`name` says which).
    """
    CREATE TABLE timing_caches (
        project TEXT NOT NULL, name TEXT NOT NULL, digest TEXT NOT NULL,
        size INTEGER NOT NULL, used_ns INTEGER NOT NULL,
        PRIMARY KEY (project, name)
    ) WITHOUT ROWID;
    """,
)


class Database:
    """A connection with transactions. `path` may be ":memory:" in tests.

    Raises:
        FailedPreconditionError: the file was written by a later version, or is no database.
    """

    def __init__(self, path: Path | str) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.row_factory = sqlite3.Row
        self._depth = 0
        try:
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")
            self._connection.execute("PRAGMA foreign_keys=ON")
            self._connection.execute("PRAGMA busy_timeout=5000")
            self._migrate(str(path))
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise FailedPreconditionError(f"{path} is not a usable database: {error}") from error

    def close(self) -> None:
        self._connection.close()

    @property
    def version(self) -> int:
        """The schema's version."""
        return int(self._connection.execute("PRAGMA user_version").fetchone()[0])

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All statements inside, or none. Inside another transaction it is part of that one. Never await inside."""
        if self._depth:
            yield
            return
        self._connection.execute("BEGIN IMMEDIATE")
        self._depth += 1
        try:
            yield
            with _full_disk_named():
                self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # a full disk ends it by itself
                self._connection.execute("ROLLBACK")
            raise
        finally:
            self._depth -= 1

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        """Run a statement; returns how many rows it changed."""
        with _full_disk_named():
            return self._connection.execute(sql, parameters).rowcount

    def insert(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        """Run an INSERT; returns the new row's number."""
        with _full_disk_named():
            return int(self._connection.execute(sql, parameters).lastrowid or 0)

    def row(self, sql: str, parameters: Sequence[Any] = ()) -> sqlite3.Row | None:
        """The first row, if there is one."""
        found: sqlite3.Row | None = self._connection.execute(sql, parameters).fetchone()
        return found

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[sqlite3.Row]:
        return self._connection.execute(sql, parameters).fetchall()

    def _migrate(self, path: str) -> None:
        if self.version > len(MIGRATIONS):
            raise FailedPreconditionError(
                f"{path} has schema {self.version}, written by a later version; this one knows {len(MIGRATIONS)}: "
                "upgrade enginehouse-optimizer, or use another data folder"
            )
        for number in range(self.version, len(MIGRATIONS)):
            # executescript commits what is open first, so the script carries its own transaction.
            script = f"BEGIN IMMEDIATE;{MIGRATIONS[number]}PRAGMA user_version={number + 1};COMMIT;"
            try:
                self._connection.executescript(script)
            except sqlite3.DatabaseError:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise


@contextmanager
def _full_disk_named() -> Iterator[None]:
    """Raises ResourceExhaustedError for SQLite's error of a full disk: a caller may try again when there is space."""
    try:
        yield
    except sqlite3.OperationalError as error:
        # sqlite_errorcode would say it, from Python 3.11 on.
        if "full" in str(error) or "disk I/O error" in str(error):
            raise ResourceExhaustedError(
                f"the database cannot be written ({error}): where the data folder's device is full, free space and try "
                "again"
            ) from error
        raise
