"""The calibration table: each activation's range, how it was found, and from what. Readable and diffable JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginehouse_worker.calibration.methods import Range
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.files import read_json, write_json

FORMAT = "enginehouse.calibration/1"
FILE = "calibration.json"


@dataclass(frozen=True)
class CalibrationTable:
    """Ranges by tensor name. `amax` serves symmetric quantization, `rmin` and `rmax` asymmetric: one table, both
    dialects.

    `data`: what it was made from, with its digest. `percentile` only for that method.
    """

    method: str
    percentile: float | None
    model_digest: str
    data: Mapping[str, Any]
    samples: int
    tensors: Mapping[str, Range]

    def write(self, directory: Path) -> None:
        """Write `calibration.json`."""
        value: dict[str, Any] = {
            "format": FORMAT,
            "method": self.method,
            "model_digest": self.model_digest,
            "data": dict(self.data),
            "samples": self.samples,
            "tensors": {name: _range_to_json(value) for name, value in self.tensors.items()},
        }
        if self.percentile is not None:
            value["percentile"] = self.percentile
        write_json(directory / FILE, value)

    @classmethod
    def read(cls, directory: Path) -> CalibrationTable:
        """Read `calibration.json`.

        Raises:
            WorkerError: INVALID_ARGUMENT when it is missing or not such a table.
        """
        value = read_json(directory / FILE)
        if value.get("format") != FORMAT:
            raise WorkerError("INVALID_ARGUMENT", f"{FILE} has format {value.get('format')!r}; expected {FORMAT!r}")
        try:
            return cls(
                method=str(value["method"]),
                percentile=float(value["percentile"]) if "percentile" in value else None,
                model_digest=str(value["model_digest"]),
                data=dict(value["data"]),
                samples=int(value["samples"]),
                tensors={str(name): _range_from_json(entry) for name, entry in value["tensors"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise WorkerError("INVALID_ARGUMENT", f"{FILE} is malformed: {error!r}") from None


def _range_to_json(value: Range) -> dict[str, float]:
    entries = {
        "min": value.minimum,
        "max": value.maximum,
        "amax": value.amax,
        "rmin": value.rmin,
        "rmax": value.rmax,
    }
    # Seven digits hold an FP32 value closely enough, and read and compare the same everywhere.
    return {name: float(f"{number:.7g}") for name, number in entries.items()}


def _range_from_json(entry: Mapping[str, Any]) -> Range:
    return Range(
        float(entry["min"]), float(entry["max"]), float(entry["amax"]), float(entry["rmin"]), float(entry["rmax"])
    )
