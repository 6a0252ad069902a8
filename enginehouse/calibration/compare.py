"""How two calibration tables differ."""

from __future__ import annotations

import math
from dataclasses import dataclass

from enginehouse.calibration.table import CalibrationTable, TensorRange


@dataclass(frozen=True)
class TensorDifference:
    """The second table's range over the first's: `symmetric` of amax, `asymmetric` of rmax - rmin. None where a table
    lacks the tensor, or the first's range is 0 and the second's is not."""

    tensor: str
    first: TensorRange | None
    second: TensorRange | None
    symmetric: float | None
    asymmetric: float | None

    @property
    def size(self) -> float:
        """How far apart the ranges are: the larger ratio's distance from 1 in octaves; infinite when one is missing."""
        if self.symmetric is None or self.asymmetric is None:
            return math.inf
        return max(abs(math.log2(r)) if r > 0.0 else math.inf for r in (self.symmetric, self.asymmetric))


def differences(first: CalibrationTable, second: CalibrationTable) -> list[TensorDifference]:
    """Every tensor of either table, the largest difference first and equal ones in the tables' order."""
    names = dict.fromkeys([*first.tensors, *second.tensors])
    found = [_difference(name, first.tensors.get(name), second.tensors.get(name)) for name in names]
    return sorted(found, key=lambda difference: -difference.size)


def _difference(name: str, first: TensorRange | None, second: TensorRange | None) -> TensorDifference:
    if first is None or second is None:
        return TensorDifference(name, first, second, None, None)
    return TensorDifference(
        name,
        first,
        second,
        _ratio(second.amax, first.amax),
        _ratio(second.rmax - second.rmin, first.rmax - first.rmin),
    )


def _ratio(over: float, under: float) -> float | None:
    if under == 0.0:
        return 1.0 if over == 0.0 else None
    return over / under
