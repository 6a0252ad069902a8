"""What inference answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from enginehouse.client.values.engines import TensorSpec


@dataclass(frozen=True, eq=False)
class InferResult(Mapping[str, npt.NDArray[Any]]):
    """The outputs of one request: a mapping from output name to array.

    Arrays are views of the received bytes and therefore read-only; `.copy()` one to write into it. BF16 outputs are
    float32 arrays, BYTES outputs are object arrays of `bytes`. Outputs that went into device arrays are those arrays.
    """

    model_name: str
    model_version: str
    request_id: str
    outputs: Mapping[str, npt.NDArray[Any]] = field(repr=False)
    parameters: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self.outputs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.outputs)

    def __len__(self) -> int:
        return len(self.outputs)

    def only(self) -> npt.NDArray[Any]:
        """The output of a model that has one.

        Raises:
            ValueError: it has several, or none.
        """
        if len(self.outputs) != 1:
            raise ValueError(f"{self.model_name} answered {sorted(self.outputs)}: name the output that you want")
        return next(iter(self.outputs.values()))


@dataclass(frozen=True)
class ModelSignature:
    """What a served model takes and gives. -1 is a dynamic dimension."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class ModelIndex:
    """A line of the inference process's index. `state` is "READY", "LOADING", "UNLOADING", "UNAVAILABLE" or ""."""

    name: str
    version: str
    state: str
    reason: str
