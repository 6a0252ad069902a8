"""What memory stages took, so that the next equal one starts only where that much is free."""

from __future__ import annotations

from enginehouse_optimizer.storage.database import Database

# Inputs whose sizes differ by less than this are equal: a file's metadata may be a few bytes longer.
SAME_SIZE = 0.05

_GIB = 1 << 30
# For stages that never ran: bytes whatever the input, and for each byte of it. TensorFlow takes most.
_DEFAULTS = {"freeze": (2 * _GIB, 6), "convert": (2 * _GIB, 12)}
_DEFAULT = (_GIB, 4)


class StageCosts:
    """Peak memory by environment, kind of stage and bytes of its inputs: the last run's."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record(self, environment: str, stage: str, input_bytes: int, peak_memory_bytes: int) -> None:
        """A stage has run."""
        self._database.execute(
            "INSERT OR REPLACE INTO stage_costs VALUES (?, ?, ?, ?)",
            (environment, stage, input_bytes, peak_memory_bytes),
        )

    def expected(self, environment: str, stage: str, input_bytes: int) -> int:
        """The peak memory to expect, in bytes: the most that stages of this kind took for inputs of this size.

        Args:
            stage: its kind, such as "convert"; more words after it ("freeze vgg16") tell apart what size does not.
        """
        row = self._database.row(
            "SELECT MAX(peak_memory_bytes) AS peak FROM stage_costs "
            "WHERE environment=? AND stage=? AND input_bytes BETWEEN ? AND ?",
            (environment, stage, int(input_bytes * (1 - SAME_SIZE)), int(input_bytes * (1 + SAME_SIZE))),
        )
        if row is not None and row["peak"] is not None:
            return int(row["peak"])
        base, factor = _DEFAULTS.get(stage.split()[0], _DEFAULT)
        return base + factor * input_bytes
