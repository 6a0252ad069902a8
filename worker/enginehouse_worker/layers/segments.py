"""Cuts a graph into segments that run one after the other, so that what comes before a change need not run again."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx

from enginehouse_worker.graphs.editing import subgraph_reads
from enginehouse_worker.graphs.index import GraphIndex


@dataclass(frozen=True)
class Segment:
    """Nodes [begin, end) of a graph. `inputs` come from the graph's inputs and earlier segments; `outputs` are what
    later segments read, and the graph's outputs."""

    begin: int
    end: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def cut(graph: GraphIndex, numbers: Sequence[int], count: int) -> tuple[Segment, ...]:
    """At most `count` segments, each with about as many of the nodes `numbers` (ascending).

    Between two groups of these nodes, the graph is cut where the fewest values live on.
    """
    count = max(1, min(count, len(numbers)))
    last_use = _last_uses(graph)
    sizes = _live_sizes(graph, last_use)
    borders = [0]
    for group in range(1, count):
        # From the middle of the group before to the middle of the group after.
        low = numbers[(2 * group - 1) * len(numbers) // (2 * count)] + 1
        high = numbers[min((2 * group + 1) * len(numbers) // (2 * count), len(numbers) - 1)]
        candidates = range(max(low, borders[-1] + 1), high + 1)
        if candidates:
            borders.append(min(candidates, key=lambda position: sizes[position]))
    borders.append(len(graph.nodes))
    return tuple(_segment(graph, begin, end) for begin, end in itertools.pairwise(borders))


def segment_model(graph: GraphIndex, segment: Segment) -> onnx.ModelProto:
    """The segment as a model of its own."""
    source = graph.model
    model = onnx.ModelProto()
    model.ir_version = source.ir_version
    model.opset_import.extend(source.opset_import)
    model.functions.extend(source.functions)
    model.graph.name = source.graph.name
    nodes = graph.nodes[segment.begin : segment.end]
    model.graph.node.extend(nodes)
    read = {tensor for node in nodes for tensor in reads(node)} | set(segment.outputs)
    model.graph.initializer.extend(tensor for name, tensor in graph.constants.items() if name in read)
    for names, infos in ((segment.inputs, model.graph.input), (segment.outputs, model.graph.output)):
        for name in names:
            infos.append(_value_info(graph, name))
    return model


def reads(node: onnx.NodeProto) -> tuple[str, ...]:
    """The tensors that a node reads: its inputs, and all that its subgraphs (of If, Loop, Scan) read, theirs too."""
    return tuple(dict.fromkeys([*(str(name) for name in node.input if name), *subgraph_reads(node)]))


def _segment(graph: GraphIndex, begin: int, end: int) -> Segment:
    made = {output for node in graph.nodes[begin:end] for output in node.output if output}
    inputs = _activations(graph, (name for node in graph.nodes[begin:end] for name in reads(node) if name not in made))
    later = {name for node in graph.nodes[end:] for name in reads(node)} | set(graph.outputs)
    outputs = tuple(o for node in graph.nodes[begin:end] for o in node.output if o in later)
    return Segment(begin, end, inputs, outputs)


def _activations(graph: GraphIndex, names: Iterable[str]) -> tuple[str, ...]:
    # Subgraphs' own tensors are among the names.
    return tuple(dict.fromkeys(name for name in names if name in graph.producer or name in graph.inputs))


def _last_uses(graph: GraphIndex) -> dict[str, int]:
    return {name: number for number, node in enumerate(graph.nodes) for name in reads(node)}


def _live_sizes(graph: GraphIndex, last_use: dict[str, int]) -> list[float]:
    """For each position, the elements (a sample's) that are made before it and read from it on."""
    changes = [0.0] * (len(graph.nodes) + 1)
    made = [(name, 0) for name in graph.inputs]
    made += [(str(output), number + 1) for number, node in enumerate(graph.nodes) for output in node.output if output]
    for name, begin in made:
        end = last_use.get(name, -1) + 1
        if end > begin:
            size = _elements(graph, name)
            changes[begin] += size
            changes[end] -= size
    sizes, live = [], 0.0
    for change in changes:
        live += change
        sizes.append(live)
    return sizes


def _elements(graph: GraphIndex, name: str) -> float:
    shape = graph.shapes.get(name)
    # Of an unknown size: large, so that cuts avoid it.
    return 1e7 if shape is None else float(math.prod(d or 1 for d in shape))


def _value_info(graph: GraphIndex, name: str) -> onnx.ValueInfoProto:
    shape = graph.shapes.get(name)
    dimensions = None if shape is None else list(shape)
    return onnx.helper.make_tensor_value_info(name, graph.types.get(name, onnx.TensorProto.FLOAT), dimensions)
