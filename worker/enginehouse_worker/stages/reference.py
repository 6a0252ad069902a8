"""reference: the FP32 model's outputs, which every engine of the model is compared with."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from enginehouse_worker.backends.base import Array
from enginehouse_worker.backends.onnxruntime.session import create_session
from enginehouse_worker.datasets import open_dataset, read_preprocessing
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.files import sole_file
from enginehouse_worker.graphs.index import load_model
from enginehouse_worker.graphs.signature import model_signature
from enginehouse_worker.npy import Rows, write_npz_rows
from enginehouse_worker.stages.context import Stage, StageContext
from enginehouse_worker.stages.params import Params

_PARAMS = ("synthetic", "max_samples", "batch_size", "preprocessing")
FILE = "outputs.npz"
# A multiple of every element's size.
_PART_BYTES = 1 << 20


def run(ctx: StageContext) -> dict[str, Any]:
    params = Params(ctx.params, _PARAMS, ctx.stage)
    size = params.integer("batch_size", 8, 1, 4096)
    directory = ctx.input("model")
    model = load_model(directory)
    signature = model_signature(directory, model)
    del model
    dataset = open_dataset(
        ctx.inputs.get("dataset"),
        params.mapping("synthetic") if "synthetic" in params else None,
        signature,
        params.integer("max_samples", 2**31 - 1, 1) if "max_samples" in params else None,
        preprocessing=read_preprocessing(params),
    )
    session = create_session(sole_file(directory, (".onnx",), "the model"))
    # Text is not compared.
    names = [spec.name for spec in signature.outputs if spec.dtype != "BYTES"]
    if not names:
        raise WorkerError("INVALID_ARGUMENT", "all outputs of the model are text; there are no numbers to compare")
    done = 0
    with tempfile.TemporaryDirectory(dir=ctx.output, prefix=".scratch-") as scratch:
        spools = {name: _Spool(name, Path(scratch) / str(number)) for number, name in enumerate(names)}
        for batch in dataset.batches(size):
            count = len(next(iter(batch.values())))
            try:
                values = session.run(names, batch)
            except Exception as error:
                message = f"the model failed on the samples from {done}: {error}"
                raise WorkerError("INVALID_ARGUMENT", message) from error
            for name, value in zip(names, values, strict=True):
                spools[name].add(value, count)
            done += count
            ctx.progress(done / dataset.samples, f"sample {done} of {dataset.samples}")
        write_npz_rows(ctx.output / FILE, {name: spool.rows(done) for name, spool in spools.items()})
    return {"samples": done, "data": dataset.describe()}


class _Spool:
    """One output's values on disk, as they come: an output may be as large as an image a sample."""

    def __init__(self, name: str, path: Path) -> None:
        self._name = name
        self._path = path
        self._dtype: np.dtype[Any] = np.dtype(np.float32)
        self._shape: tuple[int, ...] | None = None

    def add(self, value: Array, count: int) -> None:
        """Keep the values of `count` samples.

        Raises:
            WorkerError: INVALID_ARGUMENT when they are not as many, or not of the shape of those before.
        """
        shape = tuple(value.shape[1:])
        if value.ndim == 0 or len(value) != count or self._shape not in (None, shape):
            earlier = "" if self._shape is None else f"; earlier samples gave {['samples', *self._shape]}"
            raise WorkerError(
                "INVALID_ARGUMENT",
                f"output {self._name!r} has shape {list(value.shape)} for {count} samples{earlier}; expected one value "
                "of one shape for each sample",
            )
        self._shape, self._dtype = shape, value.dtype
        with self._path.open("ab") as file:
            file.write(np.ascontiguousarray(value).tobytes())

    def rows(self, samples: int) -> Rows:
        """All that was kept."""
        return Rows(self._dtype, (samples, *(self._shape or ())), self._parts())

    def _parts(self) -> Iterator[Array]:
        with self._path.open("rb") as file:
            while part := file.read(_PART_BYTES):
                yield np.frombuffer(part, np.uint8).view(self._dtype)


STAGE = Stage("reference", ("model", "dataset"), run, ("onnxruntime", "onnx", "numpy"))
