"""Runs the FP32 model on calibration data and streams its activations into histograms."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from enginehouse_worker.backends.base import Array
from enginehouse_worker.calibration.histogram import Histogram
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.graphs.index import GraphIndex
from enginehouse_worker.quantization.placement import place
from enginehouse_worker.quantization.rules import DIALECTS


def tensors_to_calibrate(graph: GraphIndex) -> tuple[str, ...]:
    """Every activation whose range some dialect needs, in graph order."""
    needed = {source for dialect in DIALECTS.values() for source in place(graph, dialect).range_of.values()}
    order = [*graph.inputs, *(output for node in graph.nodes for output in node.output)]
    return tuple(name for name in order if name in needed)


@dataclass(frozen=True)
class Probe:
    """A model with other outputs than its own: `tensors`. It shares the weights of `graph`."""

    graph: GraphIndex
    tensors: tuple[str, ...]

    def write(self, path: Path) -> None:
        """Write it as an ONNX file."""
        # A second message would be a second copy of the weights, so the model lends its own.
        model = self.graph.model
        own = [onnx.ValueInfoProto.FromString(output.SerializeToString()) for output in model.graph.output]
        del model.graph.output[:]
        try:
            for name in self.tensors:
                model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
            path.write_bytes(model.SerializeToString())
        finally:
            del model.graph.output[:]
            model.graph.output.extend(own)


def with_outputs(graph: GraphIndex, tensors: Sequence[str]) -> Probe:
    """The model with those tensors, which nodes of it compute, as its only outputs."""
    return Probe(graph, tuple(tensors))


def collect(probe: Probe, tensors: Sequence[str], batches: Iterable[Mapping[str, Array]]) -> dict[str, Histogram]:
    """Histograms of the tensors over all batches. Memory holds the activations of one batch at a time.

    Raises:
        WorkerError: INVALID_ARGUMENT when the model cannot run on the data or an activation is not finite.
    """
    from enginehouse_worker.backends.onnxruntime.session import create_session

    histograms = {name: Histogram() for name in tensors}
    inputs = set(probe.graph.inputs)
    computed = [name for name in tensors if name not in inputs]
    session = None
    if computed:
        with tempfile.TemporaryDirectory() as directory:
            # From a file, the model is not in memory once more while ONNX Runtime reads it.
            path = Path(directory) / "probe.onnx"
            probe.write(path)
            session = create_session(path)
    for number, batch in enumerate(batches):
        values: dict[str, Array] = {name: batch[name] for name in tensors if name in inputs}
        if session is not None:
            try:
                values.update(zip(computed, session.run(computed, dict(batch)), strict=True))
            except Exception as error:
                raise WorkerError("INVALID_ARGUMENT", f"the model failed on batch {number}: {error}") from error
        for name in tensors:
            try:
                histograms[name].add(values.pop(name))
            except ValueError as error:
                raise WorkerError("INVALID_ARGUMENT", f"tensor {name!r}, batch {number}: {error}") from None
    return histograms
