"""What LoadGen's samples run on: an engine in a worker process (the scope "host"), or the service ("served")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from enginehouse.bench.inputs import random_inputs
from enginehouse.bench.seams import Engine, Serving
from enginehouse.workers.link import WorkerProcess
from enginehouse.workers.tensors import TensorInput, protocol_dtype

Library = Mapping[str, npt.NDArray[Any]]


def library(engine: Engine, samples: int, seed: int) -> Library:
    """Random samples of an engine's inputs, dimension 0 the sample: LoadGen's query sample library.

    Raises:
        FailedPreconditionError: an input has a dynamic dimension besides the batch, or a dtype we cannot make up.
    """
    return random_inputs(engine.inputs, samples, seed)


class WorkerTarget:
    """An engine that is loaded in a worker process of ours; samples are written straight into its shared memory."""

    def __init__(self, worker: WorkerProcess, key: str, samples: Library) -> None:
        self._worker, self._key = worker, key
        self._rows = {name: [row.reshape(-1).view(np.uint8).data for row in array] for name, array in samples.items()}
        self._kinds = {name: (protocol_dtype(array.dtype), array.shape[1:]) for name, array in samples.items()}

    async def infer(self, indices: Sequence[int]) -> None:
        inputs = [
            TensorInput(name, kind, (len(indices), *shape), [self._rows[name][index] for index in indices])
            for name, (kind, shape) in self._kinds.items()
        ]
        (await self._worker.infer(self._key, inputs)).release()


class ServiceTarget:
    """A model of the inference service, over gRPC."""

    def __init__(self, serving: Serving, model: str, samples: Library) -> None:
        self._serving, self._model, self._samples = serving, model, samples

    async def infer(self, indices: Sequence[int]) -> None:
        await self._serving.infer(self._model, {name: array[list(indices)] for name, array in self._samples.items()})
