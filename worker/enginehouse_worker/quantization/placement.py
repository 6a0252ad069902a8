"""Where Q/DQ pairs stand, decided from the graph alone.

A placement names tensors and uses, so that it can be tested and read without the inserted nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from enginehouse_worker.graphs.index import GraphIndex, Reader
from enginehouse_worker.quantization.rules import (
    MATRIX_OPERATORS,
    RANGE_KEEPING_OPERATORS,
    SHAPE_OPERATORS,
    Dialect,
)


@dataclass(frozen=True)
class Weight:
    """A constant operand that is quantized; `axis` is the output channel's, None for one scale for all of it."""

    use: Reader
    tensor: str
    axis: int | None


@dataclass(frozen=True)
class Placement:
    """`uses`: the uses of an activation that read it dequantized; `outputs`: graph outputs that are dequantized values.

    `range_of`: for each quantized tensor, the tensor whose calibrated range it takes. `biases`: uses of a constant bias
    of a quantized operator. `nodes`: the quantized nodes.
    """

    nodes: frozenset[int]
    uses: frozenset[Reader]
    outputs: frozenset[str]
    range_of: dict[str, str]
    weights: tuple[Weight, ...]
    biases: tuple[Reader, ...]


def place(graph: GraphIndex, dialect: Dialect, excluded: frozenset[int] = frozenset()) -> Placement:
    """Decide the placement of a dialect; nodes in `excluded` (numbers) stay in FP32."""
    if dialect.name == "tensorrt":
        nodes, uses, outputs = _place_for_fused_kernels(graph, dialect, excluded)
    else:
        nodes, uses, outputs = _place_around_operators(graph, dialect, excluded)
    matrix_nodes = sorted(n for n in nodes if graph.nodes[n].op_type in MATRIX_OPERATORS)
    tensors = {graph.nodes[use.node].input[use.position] for use in uses} | outputs
    return Placement(
        nodes=frozenset(nodes),
        uses=frozenset(uses),
        outputs=frozenset(outputs),
        range_of={tensor: range_source(graph, tensor) for tensor in sorted(tensors)},
        weights=tuple(weight for n in matrix_nodes for weight in _weights(graph, n)),
        biases=tuple(bias for n in matrix_nodes if dialect.integer_biases for bias in _biases(graph, n)),
    )


def range_source(graph: GraphIndex, tensor: str) -> str:
    """The tensor whose range `tensor` shares: back through operators that only move or select values."""
    while tensor in graph.producer:
        node = graph.nodes[graph.producer[tensor]]
        if node.op_type not in RANGE_KEEPING_OPERATORS or not graph.is_activation(node.input[0]):
            return tensor
        tensor = node.input[0]
    return tensor


def residual_shortcut(graph: GraphIndex, number: int) -> int | None:
    """Which input of an Add of two activations of one shape is the shortcut, or None when the Add is no residual.

    The other input is the one that a kernel fuses the Add with: made by a Conv, Gemm or MatMul (also through the Add of
    its bias) for this Add alone. When both are, the main branch is the one with more such operators behind it.
    """
    node = graph.nodes[number]
    if node.op_type != "Add" or not all(graph.is_activation(t) for t in node.input) or node.input[0] == node.input[1]:
        return None
    shapes = [graph.shapes.get(t) for t in node.input]
    if shapes[0] is not None and shapes[1] is not None and shapes[0] != shapes[1]:
        return None
    fusible = [_made_by_matrix_operator(graph, t) and graph.sole_reader(t) is not None for t in node.input]
    if fusible[0] != fusible[1]:
        return 1 if fusible[0] else 0
    depths = [_matrix_depth(graph, t) for t in node.input]
    return 0 if depths[0] < depths[1] else 1


def _place_for_fused_kernels(
    graph: GraphIndex, dialect: Dialect, excluded: frozenset[int]
) -> tuple[set[int], set[Reader], set[str]]:
    nodes: set[int] = set()
    uses: set[Reader] = set()
    for number, node in enumerate(graph.nodes):
        if number in excluded:
            continue
        if node.op_type in dialect.operators and quantizable(graph, number, dialect):
            nodes.add(number)
            uses.update(Reader(number, p) for p in operand_positions(graph, number))
        elif (shortcut := residual_shortcut(graph, number)) is not None:
            nodes.add(number)
            uses.add(Reader(number, shortcut))
    return nodes, uses, set()


def _place_around_operators(
    graph: GraphIndex, dialect: Dialect, excluded: frozenset[int]
) -> tuple[set[int], set[Reader], set[str]]:
    nodes: set[int] = set()
    # Tensors that a quantized operator leaves quantized, whoever reads them.
    offered: set[str] = set()
    for number, node in enumerate(graph.nodes):
        if number in excluded or node.op_type not in dialect.operators or not quantizable(graph, number, dialect):
            continue
        if node.op_type in MATRIX_OPERATORS or node.op_type in ("MaxPool", "AveragePool", "GlobalAveragePool"):
            nodes.add(number)
        elif all(tensor in offered for tensor in node.input if tensor):
            # Worth it only where the operands are there in INT8 already.
            nodes.add(number)
        if number in nodes and node.op_type not in ("Gemm", "MatMul"):
            offered.add(_after_activation(graph, node.output[0]))
    wanted = {t for n in nodes for t in graph.nodes[n].input if graph.is_activation(t)}
    for number in reversed(range(len(graph.nodes))):
        node = graph.nodes[number]
        moves = node.op_type in SHAPE_OPERATORS and number not in excluded and graph.is_activation(node.input[0])
        if moves and node.output[0] in wanted:
            nodes.add(number)
            wanted.add(node.input[0])
    made_quantized = {_after_activation(graph, graph.nodes[n].output[0]) for n in nodes}
    tensors = wanted | offered
    uses: set[Reader] = set()
    for tensor in tensors:
        for reader in graph.readers.get(tensor, ()):
            # A kernel that makes INT8 makes nothing else, so everyone reads that; others may keep the FP32 value.
            if tensor in made_quantized or reader.node in nodes:
                uses.add(reader)
    return nodes, uses, {t for t in graph.outputs if t in tensors and t in made_quantized}


def quantizable(graph: GraphIndex, number: int, dialect: Dialect) -> bool:
    """Whether the operands of a node have a form that integer kernels take."""
    node = graph.nodes[number]
    if node.op_type in ("Conv", "ConvTranspose"):
        if not graph.is_activation(node.input[0]) or node.input[1] not in graph.constants:
            return False
        return not dialect.integer_biases or len(node.input) < 3 or node.input[2] in graph.constants
    if node.op_type == "Gemm":
        attributes = {a.name: a for a in node.attribute}
        if not graph.is_activation(node.input[0]) or ("transA" in attributes and attributes["transA"].i):
            return False
        if any(name in attributes and attributes[name].f != 1.0 for name in ("alpha", "beta")):
            return False
        if dialect.integer_biases and len(node.input) == 3 and graph.rank(node.input[2]) != 1:
            return False
        return not dialect.integer_biases or all(t in graph.constants for t in node.input[1:])
    if node.op_type == "MatMul":
        return any(graph.is_activation(t) for t in node.input) and all(
            graph.is_activation(t) or _is_float_constant(graph, t) for t in node.input
        )
    return all(graph.is_activation(t) for t in node.input if t) and len(node.output) == 1


def operand_positions(graph: GraphIndex, number: int) -> tuple[int, ...]:
    """The inputs of a node that are activations to quantize (a bias never is)."""
    node = graph.nodes[number]
    count = 2 if node.op_type in MATRIX_OPERATORS else len(node.input)
    return tuple(p for p, tensor in enumerate(node.input[:count]) if graph.is_activation(tensor))


def _weights(graph: GraphIndex, number: int) -> tuple[Weight, ...]:
    node = graph.nodes[number]
    found = []
    for position, tensor in enumerate(node.input[:2]):
        if not _is_float_constant(graph, tensor):
            continue
        found.append(Weight(Reader(number, position), tensor, _channel_axis(graph, node.op_type, number, position)))
    return tuple(found)


def _channel_axis(graph: GraphIndex, op_type: str, number: int, position: int) -> int | None:
    node = graph.nodes[number]
    attributes = {a.name: a for a in node.attribute}
    if op_type == "Conv":
        return 0
    if op_type == "ConvTranspose":
        # Weights are (input channels, output channels / groups, ...): with groups no axis is the output channel.
        grouped = "group" in attributes and attributes["group"].i != 1
        return None if grouped else 1
    if op_type == "Gemm":
        return 0 if "transB" in attributes and attributes["transB"].i else 1
    return 1 if position == 1 and graph.rank(node.input[1]) == 2 else None


def _biases(graph: GraphIndex, number: int) -> tuple[Reader, ...]:
    node = graph.nodes[number]
    has_bias = node.op_type in ("Conv", "Gemm") and len(node.input) == 3 and node.input[2] in graph.constants
    return (Reader(number, 2),) if has_bias else ()


def _after_activation(graph: GraphIndex, tensor: str) -> str:
    """The tensor after a ReLU (or a Clip from 0) that alone reads `tensor`, since quantization does its work."""
    reader = graph.sole_reader(tensor)
    if reader is None or reader.position != 0:
        return tensor
    node = graph.nodes[reader.node]
    after = str(node.output[0])
    if node.op_type == "Relu":
        return after
    if node.op_type == "Clip" and len(node.input) > 1 and (low := graph.constant(node.input[1])) is not None:
        return after if float(np.asarray(low).reshape(())) == 0.0 else tensor
    return tensor


def _is_float_constant(graph: GraphIndex, tensor: str) -> bool:
    value = graph.constants.get(tensor)
    return value is not None and graph.types[tensor] == 1 and len(value.dims) >= 1


def _made_by_matrix_operator(graph: GraphIndex, tensor: str) -> bool:
    if tensor not in graph.producer:
        return False
    node = graph.nodes[graph.producer[tensor]]
    if node.op_type == "Add" and any(t in graph.constants for t in node.input):
        return any(_made_by_matrix_operator(graph, t) for t in node.input if t not in graph.constants)
    return node.op_type in MATRIX_OPERATORS


def _matrix_depth(graph: GraphIndex, tensor: str) -> int:
    """The most Conv, Gemm and MatMul operators on a path from the graph's inputs to `tensor`."""
    depth: dict[str, int] = {}
    last = graph.producer.get(tensor, -1)
    for node in graph.nodes[: last + 1]:
        below = max((depth.get(t, 0) for t in node.input), default=0) + (node.op_type in MATRIX_OPERATORS)
        for output in node.output:
            depth[output] = below
    return depth.get(tensor, 0)
