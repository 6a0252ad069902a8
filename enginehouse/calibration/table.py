"""Enginehouse's calibration table: JSON that a person can read and diff. docs/calibration.md describes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from enginehouse.errors import InvalidArgumentError

FORMAT = "enginehouse.calibration/1"
_KEYS = ("min", "max", "amax", "rmin", "rmax")
_LARGEST_FP32 = 3.4028234663852886e38
# Below it a scale would be no FP32 number.
_NARROWEST = 1e-35


@dataclass(frozen=True)
class TensorRange:
    """A tensor's range. `minimum` and `maximum` are what was seen; [-amax, amax] is what symmetric quantization uses
    and [rmin, rmax], which holds 0, what asymmetric does."""

    minimum: float
    maximum: float
    amax: float
    rmin: float
    rmax: float


@dataclass(frozen=True)
class CalibrationTable:
    """Ranges by tensor name, in graph order.

    `method`: "entropy", "max", "percentile", "mse", or what another tool calls its own. `model_digest`: of the ONNX
    file that it is for; empty when nobody knows. `data`: what it was made from.
    """

    method: str
    tensors: Mapping[str, TensorRange]
    model_digest: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    samples: int = 0
    percentile: float | None = None


def table_text(table: CalibrationTable) -> str:
    """The table as a file's text: one tensor a line."""
    head: dict[str, Any] = {"format": FORMAT, "method": table.method}
    if table.percentile is not None:
        head["percentile"] = table.percentile
    data = {name: table.data[name] for name in sorted(table.data)}
    head |= {"model_digest": table.model_digest, "data": data, "samples": table.samples}
    lines = [f"  {_text(name)}: {_text(value)}," for name, value in head.items()]
    tensors = [f"    {_text(name)}: {_text(_numbers(value))}" for name, value in table.tensors.items()]
    return "\n".join(["{", *lines, '  "tensors": {', ",\n".join(tensors), "  }", "}", ""])


def read_table(text: str | bytes) -> CalibrationTable:
    """The table that a file's text is.

    Raises:
        InvalidArgumentError: it is none, or a range in it makes no sense; the message names what is wrong.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _wrong(f"it is no JSON: {error}") from None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        found = repr(value.get("format")) if isinstance(value, dict) else type(value).__name__
        raise _wrong(f"its format is {found}; expected {FORMAT!r}")
    tensors, data = value.get("tensors"), value.get("data", {})
    if not isinstance(tensors, dict) or not tensors:
        raise _wrong("it has no tensors")
    if not isinstance(data, dict) or not all(isinstance(value.get(k, ""), str) for k in ("method", "model_digest")):
        raise _wrong("`data` must be an object, `method` and `model_digest` text")
    return CalibrationTable(
        method=value.get("method", ""),
        tensors={name: _range(name, entry) for name, entry in tensors.items()},
        model_digest=value.get("model_digest", ""),
        data=data,
        samples=int(_number(value.get("samples", 0), "`samples`")),
        percentile=_number(value["percentile"], "`percentile`") if "percentile" in value else None,
    )


def check_range(name: str, value: TensorRange) -> TensorRange:
    """The range itself.

    Raises:
        InvalidArgumentError: its ends are the wrong way round, or no scale can be made of it.
    """
    if value.minimum > value.maximum:
        raise _wrong(f"tensor {name!r} has min {value.minimum:g} above max {value.maximum:g}")
    if not value.rmin <= 0.0 <= value.rmax:
        raise _wrong(f"tensor {name!r} has the range [{value.rmin:g}, {value.rmax:g}]; it must hold 0")
    if value.amax < 0.0:
        raise _wrong(f"tensor {name!r} has amax {value.amax:g}; expected a magnitude")
    if 0.0 < value.amax < _NARROWEST or 0.0 < value.rmax - value.rmin < _NARROWEST:
        raise _wrong(f"tensor {name!r} has a range below {_NARROWEST:g}, too narrow for an FP32 scale; write 0 for it")
    return value


def _range(name: str, entry: Any) -> TensorRange:
    if not isinstance(entry, dict) or any(key not in entry for key in _KEYS):
        raise _wrong(f"tensor {name!r} needs {', '.join(_KEYS)}")
    return check_range(name, TensorRange(*(_number(entry[key], f"tensor {name!r}, {key}:") for key in _KEYS)))


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= _LARGEST_FP32:
        raise _wrong(f"{where} {str(value)[:40]!r} is no finite FP32 number")
    return float(value)


def _numbers(value: TensorRange) -> dict[str, float]:
    numbers = (value.minimum, value.maximum, value.amax, value.rmin, value.rmax)
    # Nine digits give back any FP32 number.
    return {key: float(f"{number:.9g}") for key, number in zip(_KEYS, numbers, strict=True)}


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _wrong(message: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"the calibration table is not usable: {message}")
