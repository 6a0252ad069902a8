"""The calibration table: each activation's range, how it was found, and from what.

JSON that a person can read and diff: one tensor a line, in graph order. docs/calibration.md describes the format.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginehouse_worker.calibration.methods import Range
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.files import listing, write_whole

FORMAT = "enginehouse.calibration/1"
FILE = "calibration.json"
# A tensor takes about 150 bytes; more than this is something else.
_LARGEST_BYTES = 64 << 20
_LARGEST_FP32 = 3.4028234663852886e38
# So narrow that 255 steps of an FP32 scale fit in: below it, scales would become 0.
_NARROWEST = 1e-35


@dataclass(frozen=True)
class CalibrationTable:
    """Ranges by tensor name. `amax` serves symmetric quantization, `rmin` and `rmax` asymmetric: one table, both
    dialects.

    `data`: what it was made from, with its digest. `percentile` only for that method. `model_digest` is empty when the
    table does not say which model it is of (TensorRT's do not).
    """

    method: str
    percentile: float | None
    model_digest: str
    data: Mapping[str, Any]
    samples: int
    tensors: Mapping[str, Range]

    def write(self, directory: Path) -> None:
        """Write `calibration.json`."""
        head: dict[str, Any] = {"format": FORMAT, "method": self.method}
        if self.percentile is not None:
            head["percentile"] = self.percentile
        head |= {"model_digest": self.model_digest, "data": dict(sorted(self.data.items())), "samples": self.samples}
        lines = [f"  {_text(name)}: {_text(value)}," for name, value in head.items()]
        tensors = [f"    {_text(name)}: {_text(_range_to_json(value))}" for name, value in self.tensors.items()]
        body = "\n".join([*lines, '  "tensors": {', ",\n".join(tensors), "  }"])
        write_whole(directory / FILE, f"{{\n{body}\n}}\n".encode())

    @classmethod
    def read(cls, directory: Path) -> CalibrationTable:
        """Read `calibration.json`.

        Raises:
            WorkerError: INVALID_ARGUMENT when it is missing or not such a table, naming what is wrong.
        """
        path = directory / FILE
        if not path.is_file():
            raise WorkerError("INVALID_ARGUMENT", f"{directory} has no {FILE}; found: {listing(directory)}")
        return read_table(path)

    def check_model(self, digest: str) -> None:
        """Raise INVALID_ARGUMENT unless the table is for the model of that digest."""
        if digest != self.model_digest:
            raise WorkerError(
                "INVALID_ARGUMENT",
                f"the calibration table is for the model {self.model_digest}, not for {digest}; calibrate this model",
            )


def read_table(path: Path) -> CalibrationTable:
    """Read a calibration table from a file of any name.

    Raises:
        WorkerError: INVALID_ARGUMENT when it is not such a table, or a range in it makes no sense.
    """
    if path.stat().st_size > _LARGEST_BYTES:
        raise _wrong(f"{path.name} has {path.stat().st_size} bytes; expected at most {_LARGEST_BYTES}")
    data = path.read_bytes()
    if data.startswith(b"TRT-"):
        raise _wrong(f"{path.name} is TensorRT's calibration cache; `enginehouse calibration import` converts it")
    try:
        value = json.loads(data, object_pairs_hook=_unique, parse_constant=_not_finite)
        # What cannot be written again (numbers beyond FP64, halves of surrogate pairs) is refused here.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise _wrong(f"{path.name} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        found = repr(value.get("format")) if isinstance(value, dict) else type(value).__name__
        raise _wrong(f"{path.name} has format {found}; expected an object with format {FORMAT!r}")
    try:
        table = CalibrationTable(
            method=_string(value, "method"),
            percentile=_number(value["percentile"], "percentile") if "percentile" in value else None,
            model_digest=_string(value, "model_digest"),
            data=_object(value, "data"),
            samples=_count(value.get("samples")),
            tensors={name: _range_from_json(name, entry) for name, entry in _object(value, "tensors").items()},
        )
    except KeyError as error:
        raise _wrong(f"{path.name} lacks {error}") from None
    if not table.tensors:
        raise _wrong(f"{path.name} has no tensors")
    return table


@dataclass(frozen=True)
class Adopted:
    """A table made ready for a model. `unknown`: how many tensors of it the model has not, and which are left out.

    `other_model`: the digest of the model that the table was made of, when that is another one; else empty.
    """

    table: CalibrationTable
    unknown: int
    other_model: str


def adopt(table: CalibrationTable, model_digest: str, needed: Sequence[str], known: frozenset[str]) -> Adopted:
    """The table for a model whose dialects need the ranges of the tensors `needed`; `known` are all of its tensors.

    A table of another model is taken when it has the same tensors, as that of the same network trained further has.

    Raises:
        WorkerError: INVALID_ARGUMENT naming the tensors that are missing, or why a table of another model does not fit.
    """
    missing = [name for name in needed if name not in table.tensors]
    unknown = [name for name in table.tensors if name not in known]
    other = table.model_digest if table.model_digest not in ("", model_digest) else ""
    origin = f"it was made of another model ({other}), and " if other else ""
    if missing:
        raise WorkerError(
            "INVALID_ARGUMENT",
            f"the calibration table does not fit the model: {origin}it lacks {len(missing)} of the {len(needed)} "
            f"tensors that need a range: {_some(missing)}; calibrate this model, or add them",
            {"missing": missing},
        )
    if other and unknown:
        raise WorkerError(
            "INVALID_ARGUMENT",
            f"the calibration table does not fit the model: {origin}{len(unknown)} of its tensors are not in this one: "
            f"{_some(unknown)}; calibrate this model",
            {"unknown": unknown},
        )
    adopted = CalibrationTable(
        method=table.method,
        percentile=table.percentile,
        model_digest=model_digest,
        data=table.data,
        samples=table.samples,
        tensors={name: table.tensors[name] for name in needed},
    )
    return Adopted(adopted, len(unknown), other)


def seven_digits(value: Range) -> Range:
    """The range rounded to what calibration means, so that equal ranges read equal. FP32 has hardly more."""
    return Range(*(float(f"{n:.7g}") for n in (value.minimum, value.maximum, value.amax, value.rmin, value.rmax)))


def storable(value: Range) -> Range:
    """The range as a table keeps it: in `seven_digits`, and 0 where it is so narrow that an FP32 scale would be 0."""
    rounded = seven_digits(value)
    amax = rounded.amax if rounded.amax >= _NARROWEST else 0.0
    rmin, rmax = (rounded.rmin, rounded.rmax) if rounded.rmax - rounded.rmin >= _NARROWEST else (0.0, 0.0)
    return Range(rounded.minimum, rounded.maximum, amax, rmin, rmax)


def _range_to_json(value: Range) -> dict[str, float]:
    entries = {
        "min": value.minimum,
        "max": value.maximum,
        "amax": value.amax,
        "rmin": value.rmin,
        "rmax": value.rmax,
    }
    # Nine digits give back any FP32 scale that an imported table holds.
    return {name: float(f"{number:.9g}") for name, number in entries.items()}


def _range_from_json(name: str, entry: Any) -> Range:
    where = f"tensor {name!r}"
    if not isinstance(entry, dict):
        raise _wrong(f"{where} is no object")
    absent = [key for key in ("min", "max", "amax", "rmin", "rmax") if key not in entry]
    if absent:
        raise _wrong(f"{where} lacks {', '.join(absent)}")
    low, high, amax, rmin, rmax = (_number(entry[key], where) for key in ("min", "max", "amax", "rmin", "rmax"))
    if low > high:
        raise _wrong(f"{where} has min {low:g} above max {high:g}")
    if not rmin <= 0.0 <= rmax:
        raise _wrong(f"{where} has the range [{rmin:g}, {rmax:g}]; it must hold 0")
    if amax < 0.0:
        raise _wrong(f"{where} has amax {amax:g}; expected a magnitude")
    if 0.0 < amax < _NARROWEST or 0.0 < rmax - rmin < _NARROWEST:
        raise _wrong(f"{where} has a range below {_NARROWEST:g}, whose scale is no FP32 number; write 0 for it")
    return Range(low, high, amax, rmin, rmax)


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _wrong(f"{where} has {value!r}; expected a number")
    if abs(value) > _LARGEST_FP32 or math.isnan(value):
        raise _wrong(f"{where} has {str(value)[:40]}, which is no finite FP32 number")
    return float(value)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise _wrong(f"`samples` is {str(value)[:40]}; expected a count")
    return value


def _string(value: Mapping[str, Any], key: str) -> str:
    if not isinstance(value[key], str):
        raise _wrong(f"`{key}` is {value[key]!r}; expected text")
    return str(value[key])


def _object(value: Mapping[str, Any], key: str) -> dict[str, Any]:
    if not isinstance(value[key], dict):
        raise _wrong(f"`{key}` is {type(value[key]).__name__}; expected an object")
    return dict(value[key])


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has {next(name for name in names if names.count(name) > 1)!r} twice")
    return found


def _not_finite(text: str) -> float:
    raise ValueError(f"it has {text}, which is no number")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _wrong(message: str) -> WorkerError:
    return WorkerError("INVALID_ARGUMENT", f"the calibration table is not usable: {message}")
