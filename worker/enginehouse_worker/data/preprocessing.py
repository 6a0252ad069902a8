"""From pixels to what a model takes: (p - mean) / deviation, in the model's order of channels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from enginehouse_worker.errors import WorkerError
from enginehouse_worker.stages.params import Params

PARAMETER = "preprocessing"
_KNOWN = ("mean", "deviation", "bgr")
# Smaller would turn pixels into infinities.
_SMALLEST_DEVIATION = 1e-6


@dataclass(frozen=True)
class Preprocessing:
    """A value p in [0, 255] of channel c becomes (p - mean[c]) / deviation[c].

    `mean` and `deviation` have one value, which serves all channels, or one a channel in the model's order. `bgr`: the
    model's channels are blue, green, red; the images' are always red, green, blue.
    """

    mean: tuple[float, ...] = (0.0,)
    deviation: tuple[float, ...] = (1.0,)
    bgr: bool = False

    def to_json(self) -> dict[str, Any]:
        return {"mean": list(self.mean), "deviation": list(self.deviation), "bgr": self.bgr}

    def check_channels(self, channels: int) -> None:
        """Raise unless the values are for images of that many channels.

        Raises:
            WorkerError: INVALID_ARGUMENT naming the parameter that is wrong.
        """
        for name, values in (("mean", self.mean), ("deviation", self.deviation)):
            if len(values) not in (1, channels):
                raise _wrong(
                    f"{name!r} has {len(values)} values for images of {channels} channels; give 1 or {channels}"
                )
        if self.bgr and channels != 3:
            raise _wrong(f"'bgr' is for images of 3 channels; these have {channels}")

    def apply(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """FP32 (samples, height, width, channels) of UINT8 RGB pixels of that shape."""
        ordered = pixels[..., ::-1] if self.bgr else pixels
        values = ordered.astype(np.float32)
        values -= np.asarray(self.mean, np.float32)
        values /= np.asarray(self.deviation, np.float32)
        return values


def read_preprocessing(params: Params) -> Preprocessing | None:
    """A stage's `preprocessing` parameter, or None when it was not given.

    Raises:
        WorkerError: INVALID_ARGUMENT for unknown names, values that are no finite numbers, or a deviation near 0.
    """
    if PARAMETER not in params:
        return None
    return preprocessing_of(params.mapping(PARAMETER))


def preprocessing_of(values: Mapping[str, Any]) -> Preprocessing:
    """The same, of the parameter's own object: `{"mean": [...], "deviation": [...], "bgr": false}`."""
    Params(values, _KNOWN, PARAMETER)
    bgr = values.get("bgr", False)
    if not isinstance(bgr, bool):
        raise _wrong(f"'bgr' is {bgr!r}; expected true or false")
    deviation = _numbers(values, "deviation", 1.0)
    if any(abs(value) < _SMALLEST_DEVIATION for value in deviation):
        raise _wrong(f"'deviation' is {list(deviation)}; expected numbers other than 0, which pixels are divided by")
    return Preprocessing(_numbers(values, "mean", 0.0), deviation, bgr)


def _numbers(values: Mapping[str, Any], name: str, default: float) -> tuple[float, ...]:
    given = values.get(name, [])
    if not isinstance(given, list) or not all(
        isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in given
    ):
        raise _wrong(f"{name!r} is {given!r}; expected a list of finite numbers, one for all channels or one a channel")
    return tuple(float(v) for v in given) or (default,)


def _wrong(message: str) -> WorkerError:
    return WorkerError("INVALID_ARGUMENT", f"{PARAMETER}: {message}")
