"""Runs a graph as it came and as it was rewritten, on the same random inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from enginehouse_worker.backends.base import Array, TensorSpec, numpy_dtype
from enginehouse_worker.backends.onnxruntime.session import create_session
from enginehouse_worker.errors import WorkerError

SAMPLES = 3
# For dynamic dimensions other than the batch: sequences run with any, images need some pixels.
_SIZES = (16, 64, 224)
# Relative to the largest value of an output. Rewritten sums differ by rounding only; other errors are far larger.
_TOLERANCE = 1e-3
_SEED = 0
# Of one sample of one input. A graph that takes more is not tried: it may compute for hours.
_MOST_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class Comparison:
    """`ran`: whether the original could be run on random inputs at all. `equal`: by path, whether it computes the same.

    `ranks`: of the original's outputs, by name; empty when it did not run.
    """

    ran: bool
    equal: Mapping[Path, bool]
    ranks: Mapping[str, int]


def compare(original: Path, inputs: Sequence[TensorSpec], rewritten: Mapping[Path, bool]) -> Comparison:
    """Run `original` sample by sample, and each of `rewritten`: in one batch where its value is True, else likewise.

    Args:
        inputs: the original's. With a dynamic or single dimension 0 that is the batch.

    Raises:
        WorkerError: INVALID_ARGUMENT when ONNX Runtime cannot load a model.
    """
    session = create_session(original)
    expected = _expected(session, inputs)
    if expected is None:
        for path in rewritten:
            create_session(path)
        return Comparison(False, {}, {})
    samples, outputs = expected
    del session
    equal = {}
    for path, batched in rewritten.items():
        try:
            session = create_session(path)
            equal[path] = _equal(outputs, _outputs(session, samples, batched))
        except WorkerError:
            if not batched:
                raise
            # A batch that the graph does not take is one that it cannot have.
            equal[path] = False
        except Exception:
            equal[path] = False
    return Comparison(True, equal, {name: value.ndim for name, value in outputs[0].items()})


def _expected(
    session: Any, inputs: Sequence[TensorSpec]
) -> tuple[list[dict[str, Array]], list[dict[str, Array]]] | None:
    """Random samples and what the original makes of each; None when none of the sizes runs or results are random."""
    for size in _SIZES:
        samples = _samples(inputs, size)
        if samples is None:
            return None
        try:
            outputs = _outputs(session, samples, batched=False)
            again = _outputs(session, samples[:1], batched=False)
        except Exception:
            continue
        return (samples, outputs) if _equal(outputs[:1], again) else None
    return None


def _samples(inputs: Sequence[TensorSpec], size: int) -> list[dict[str, Array]] | None:
    random = np.random.default_rng(_SEED)
    found = []
    for _ in range(SAMPLES):
        sample: dict[str, Array] = {}
        for spec in inputs:
            shape = [1 if axis == 0 and d == -1 else size if d == -1 else d for axis, d in enumerate(spec.shape)]
            dtype = numpy_dtype(spec.dtype)
            if dtype.kind not in "fiub" or np.prod(shape, dtype=float) > _MOST_ELEMENTS:
                return None
            if dtype.kind == "f":
                sample[spec.name] = random.standard_normal(shape).astype(dtype)
            else:
                # Small enough to be a token, a class or a mask.
                sample[spec.name] = random.integers(0, 2, shape).astype(dtype)
        found.append(sample)
    return found


def _outputs(session: Any, samples: list[dict[str, Array]], batched: bool) -> list[dict[str, Array]]:
    """The outputs of each sample, with a batch dimension of 1 where they have one."""
    names = [output.name for output in session.get_outputs()]
    if not batched:
        return [dict(zip(names, session.run(names, sample), strict=True)) for sample in samples]
    batch = {name: np.concatenate([sample[name] for sample in samples]) for name in samples[0]}
    values = session.run(names, batch)
    if any(value.ndim == 0 or len(value) != len(samples) for value in values):
        raise ValueError("an output has no batch dimension")
    return [
        {name: value[row : row + 1] for name, value in zip(names, values, strict=True)} for row in range(len(samples))
    ]


def _equal(expected: list[dict[str, Array]], found: list[dict[str, Array]]) -> bool:
    return all(
        name in row and _close(value, row[name])
        for values, row in zip(expected, found, strict=True)
        for name, value in values.items()
    )


def _close(expected: Array, found: Array) -> bool:
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return False
    if expected.dtype.kind != "f":
        return bool((expected == found).all())
    finite = np.abs(expected[np.isfinite(expected)])
    scale = float(finite.max()) if finite.size else 0.0
    return bool(np.allclose(found, expected, rtol=_TOLERANCE, atol=_TOLERANCE * scale + 1e-30, equal_nan=True))
