"""Runs a new engine at the ends of its batch profile, so that what cannot run is never published."""

from __future__ import annotations

import numpy as np

from enginehouse_worker.backends.base import Array, BatchProfile, LoadedEngine, Signature, TensorSpec, numpy_dtype
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.synthetic import synthetic_sample


def run_trial(engine: LoadedEngine, profile: BatchProfile, signature: Signature | None = None) -> None:
    """Run one batch of random inputs at the smallest and at the largest batch size.

    Args:
        signature: the engine's, with sizes for dynamic dimensions where 1 is outside of what the engine was built for.

    Raises:
        WorkerError: INVALID_ARGUMENT when the engine fails, or its outputs are not as its signature says.
    """
    signature = signature or engine.signature
    instance = engine.new_instance()
    try:
        for batch in sorted({profile.min, profile.max}) if signature.batched else [1]:
            inputs = {spec.name: _random_input(spec, batch, signature.batched) for spec in signature.inputs}
            try:
                outputs = instance.run(inputs, [])
            except Exception as error:
                raise WorkerError("INVALID_ARGUMENT", f"the engine fails at batch {batch}: {error}") from error
            for spec in signature.outputs:
                _check(spec, outputs[spec.name], batch if signature.batched else None)
    finally:
        instance.close()


def _random_input(spec: TensorSpec, batch: int, batched: bool) -> Array:
    random = np.random.default_rng(batch)
    if spec.dtype == "BYTES":
        shape = [d if d > 0 else 1 for d in spec.shape]
        return np.full([batch, *shape[1:]] if batched else shape, b"text", object)
    if not batched:
        # The sample's shape leaves out dimension 0, so one is put in front of what is fixed.
        return synthetic_sample(TensorSpec(spec.name, spec.dtype, (-1, *spec.shape)), "normal", random)
    return np.stack([synthetic_sample(spec, "normal", random) for _ in range(batch)])


def _check(spec: TensorSpec, value: Array, batch: int | None) -> None:
    expected = (batch, *spec.shape[1:]) if batch is not None else spec.shape
    fits = value.ndim == len(expected) and all(e in (-1, s) for e, s in zip(expected, value.shape, strict=True))
    if not fits or value.dtype != numpy_dtype(spec.dtype):
        raise WorkerError(
            "INVALID_ARGUMENT",
            f"output {spec.name!r} is {value.dtype} {list(value.shape)}; expected {spec.dtype} {list(expected)}",
        )
