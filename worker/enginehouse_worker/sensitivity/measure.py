"""Measures how much noise each layer's quantization alone brings to the outputs.

The FP32 model runs once a batch, in segments, and what passes from one to the next is kept. A layer then costs one
run of its own segment, with its inputs and weights quantized, and of the segments behind it: of ResNet-50 half the
model on average, and weights are loaded once instead of once a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from enginehouse_worker.backends.base import Array
from enginehouse_worker.backends.onnxruntime.session import create_session
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.graphs.index import GraphIndex, index_graph
from enginehouse_worker.layers.layer import Layer, alone
from enginehouse_worker.layers.segments import Segment, cut, segment_model
from enginehouse_worker.quantization.insert import insert
from enginehouse_worker.quantization.model import Quantization, activation_scales
from enginehouse_worker.quantization.placement import Placement
from enginehouse_worker.sensitivity.noise import Noise, softmax_outputs

Values = dict[str, Array]
# More segments spare more computing and keep more activations: 16 are within 3% of the least computing.
_SEGMENTS = 16


class SegmentedModel:
    """The FP32 model, cut into segments with about as many of the layers each."""

    def __init__(self, graph: GraphIndex, layers: Sequence[Layer]) -> None:
        self._graph = graph
        cuts = cut(graph, [layer.number for layer in layers], _SEGMENTS) if layers else ()
        self.segments = tuple(segment for segment in cuts if segment.outputs)
        self._sessions = [create_session(segment_model(graph, s).SerializeToString()) for s in self.segments]

    def run(self, batch: Mapping[str, Array]) -> Values:
        """Every value that a segment leaves to later ones, and the inputs and outputs."""
        values = dict(batch)
        self._forward(0, values, values)
        return values

    def outputs(self, values: Mapping[str, Array]) -> Values:
        """The graph's outputs among the values."""
        return {name: values[name] for name in self._graph.outputs}

    def outputs_after(self, number: int, values: Mapping[str, Array], changed: Values) -> Values:
        """The outputs when segment `number` left `changed` instead; only segments that these reach run again."""
        self._forward(number + 1, values, changed)
        return {name: changed.get(name, values[name]) for name in self._graph.outputs}

    def _forward(self, first: int, values: Mapping[str, Array], changed: Values) -> None:
        for segment, session in zip(self.segments[first:], self._sessions[first:], strict=True):
            if values is changed or any(name in changed for name in segment.inputs):
                feeds = {name: changed.get(name, values.get(name)) for name in segment.inputs}
                changed.update(zip(segment.outputs, session.run(list(segment.outputs), feeds), strict=True))


class LayerQuantizer:
    """Makes sessions of one segment with one layer quantized."""

    def __init__(self, quantization: Quantization, placement: Placement, segments: Sequence[Segment]) -> None:
        self._quantization = quantization
        self._placement = placement
        self._segments = segments
        self._graphs: dict[int, GraphIndex] = {}

    def segment_of(self, layer: Layer) -> int:
        """The number of the layer's segment, or -1 when no output depends on the layer."""
        found = (n for n, segment in enumerate(self._segments) if segment.begin <= layer.number < segment.end)
        return next(found, -1)

    def session(self, layer: Layer) -> Any:
        """Q/DQ round, and everything runs in FP32, so that nothing but the rounding differs from the FP32 model."""
        number = self.segment_of(layer)
        segment = self._segments[number]
        if number not in self._graphs:
            self._graphs = {number: index_graph(segment_model(self._quantization.graph, segment))}
        graph = self._graphs[number]
        dialect = self._quantization.dialect
        placement = alone(self._quantization.graph, self._placement, layer.number, segment.begin)
        scales = activation_scales(placement, self._quantization.table, dialect)
        model = insert(graph, placement, dialect, scales, largest_weight=self._quantization.largest_weight)
        return create_session(model.SerializeToString(), integer_kernels=False)


def measure_layers(
    quantization: Quantization,
    placement: Placement,
    layers: Sequence[Layer],
    batches: Iterator[dict[str, Array]],
    measured: Callable[[int, int, float], None],
) -> tuple[list[float], list[Values]]:
    """The outputs' noise ratio of each layer quantized alone, and the FP32 outputs of each batch.

    `measured` is told (batch, layer's position, noise ratio so far). Memory holds one batch's values between segments.

    Raises:
        WorkerError: INVALID_ARGUMENT when the model does not run on the data, or gives a NaN.
    """
    model = SegmentedModel(quantization.graph, layers)
    quantizer = LayerQuantizer(quantization, placement, model.segments)
    noises: list[Noise] = []
    references: list[Values] = []
    for number, batch in enumerate(batches):
        values = _run(model, batch, number)
        expected = model.outputs(values)
        softmax = softmax_outputs(expected)
        references.append({name: expected[name] for name in softmax})
        noises = noises or [Noise(softmax) for _ in layers]
        for position, layer in enumerate(layers):
            segment = quantizer.segment_of(layer)
            outputs = expected
            if segment >= 0:
                session, names = quantizer.session(layer), model.segments[segment].outputs
                feeds = {name: values[name] for name in model.segments[segment].inputs}
                changed = dict(zip(names, session.run(list(names), feeds), strict=True))
                outputs = model.outputs_after(segment, values, changed)
            noises[position].add(expected, outputs)
            measured(number, position, noises[position].ratio)
    return [noise.ratio for noise in noises], references


def measure_model(
    quantization: Quantization,
    excluded: frozenset[int],
    batches: Iterator[dict[str, Array]],
    references: Sequence[Values],
    widen_int8_products: bool,
) -> float:
    """The outputs' noise ratio of the whole quantized model, as the backend runs it, with some nodes in FP32."""
    proto = quantization.model(quantization.place(excluded))
    session = create_session(
        proto.SerializeToString(),
        widen_int8_products=widen_int8_products,
        # TensorRT sums products in 32 bits; ONNX Runtime's kernels for its dialect might not.
        integer_kernels=quantization.dialect.name == "onnxruntime",
    )
    del proto
    noise = Noise(softmax_outputs({n: np.concatenate([r[n] for r in references]) for n in references[0]}))
    for batch, expected in zip(batches, references, strict=True):
        names = list(expected)
        noise.add(expected, dict(zip(names, session.run(names, batch), strict=True)))
    return noise.ratio


def _run(model: SegmentedModel, batch: Mapping[str, Array], number: int) -> Values:
    try:
        return model.run(batch)
    except Exception as error:
        raise WorkerError("INVALID_ARGUMENT", f"the model failed on batch {number}: {error}") from error
