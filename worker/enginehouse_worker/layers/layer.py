"""A quantized layer alone: the part of a placement that belongs to one node."""

from __future__ import annotations

from dataclasses import dataclass, replace

from enginehouse_worker.graphs.index import GraphIndex, Reader
from enginehouse_worker.quantization.exclusion import layer_names
from enginehouse_worker.quantization.placement import Placement
from enginehouse_worker.quantization.rules import SHAPE_OPERATORS


@dataclass(frozen=True)
class Layer:
    """A node whose inputs are quantized; `number` in graph order, `name` as `exclude` takes it."""

    number: int
    name: str
    op_type: str


def quantized_layers(graph: GraphIndex, placement: Placement) -> tuple[Layer, ...]:
    """The quantized nodes in graph order, but for those that only move values, which add no noise of their own."""
    names = layer_names(graph)
    read = {use.node for use in placement.uses} | {weight.use.node for weight in placement.weights}
    return tuple(
        Layer(number, names[number], graph.nodes[number].op_type)
        for number in sorted(placement.nodes & read)
        if graph.nodes[number].op_type not in SHAPE_OPERATORS
    )


def alone(graph: GraphIndex, placement: Placement, number: int, begin: int = 0) -> Placement:
    """The placement that quantizes only the inputs and weights of one node.

    `begin` is the first node of the part of the graph that it is for.
    """
    uses = frozenset(Reader(use.node - begin, use.position) for use in placement.uses if use.node == number)
    tensors = {graph.nodes[number].input[use.position] for use in uses}
    return replace(
        placement,
        nodes=frozenset({number - begin}),
        uses=uses,
        outputs=frozenset(),
        range_of={tensor: source for tensor, source in placement.range_of.items() if tensor in tensors},
        weights=tuple(
            replace(weight, use=Reader(number - begin, weight.use.position))
            for weight in placement.weights
            if weight.use.node == number
        ),
        biases=tuple(Reader(number - begin, use.position) for use in placement.biases if use.node == number),
    )
