"""The order in which layers are tried in FP32: the most harmful first, each with those that round what it reads."""

from __future__ import annotations

from collections.abc import Sequence

from enginehouse_worker.graphs.index import GraphIndex
from enginehouse_worker.layers.layer import Layer
from enginehouse_worker.quantization.placement import Placement
from enginehouse_worker.quantization.rules import RANGE_KEEPING_OPERATORS, TENSORRT, Dialect

_ACTIVATIONS = frozenset({"Relu", "Clip"})


def exclusion_orders(
    graph: GraphIndex, dialect: Dialect, placement: Placement, layers: Sequence[Layer], noises: Sequence[float]
) -> list[list[int]]:
    """Orders of exclusion to try until one reaches the target; each has the positions in `layers`.

    The first is by noise. A layer's noise is of its weights and of what it reads. TensorRT rounds that for this reader
    alone. In ONNX Runtime's dialect the kernel before gives 8 bits and nothing else, so that it stays rounded until
    that one is in FP32 too: in a second order, such layers follow the one that they spoil.
    """
    worst = sorted(range(len(layers)), key=lambda position: (-noises[position], position))
    if dialect is TENSORRT:
        return [worst]
    position_of = {layer.number: position for position, layer in enumerate(layers)}
    order: dict[int, None] = {}
    for position in worst:
        order[position] = None
        for number in _rounding_nodes(graph, placement, layers[position].number):
            if number in position_of:
                order.setdefault(position_of[number])
    return [worst, list(order)]


def _rounding_nodes(graph: GraphIndex, placement: Placement, number: int) -> list[int]:
    """The quantized nodes whose kernels make what a node reads, through those that only move or clip values."""
    found: list[int] = []
    tensors = list(graph.nodes[number].input)
    while tensors:
        tensor = tensors.pop(0)
        if tensor not in graph.producer:
            continue
        maker = graph.producer[tensor]
        node = graph.nodes[maker]
        if maker in placement.nodes:
            found.append(maker)
        if node.op_type in RANGE_KEEPING_OPERATORS or (maker not in placement.nodes and node.op_type in _ACTIVATIONS):
            tensors.append(node.input[0])
    return found
