"""Where Q/DQ pairs stand, decided from the graph alone.

A placement names tensors and uses, so that it can be tested and read without the inserted nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from enginehouse_worker.graphs.index import GraphIndex, Reader
from enginehouse_worker.quantization.rules import (
    MATRIX_OPERATORS,
    PER_CHANNEL_OPERATORS,
    POOLING_OPERATORS,
    RANGE_KEEPING_OPERATORS,
    SHAPE_OPERATORS,
    SOFTMAX_OPERATORS,
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

    The other input is the one that a kernel fuses the Add with: made by a Conv, Gemm or MatMul (also through its bias
    and its batch norm) for this Add alone. When both are, or neither is, the main branch is the one with more such
    operators behind it. No residual: a sum of embeddings, behind which there is no such operator, and a mask, which
    is added to what a Softmax reads.
    """
    node = graph.nodes[number]
    if node.op_type != "Add" or not all(graph.is_activation(t) for t in node.input) or node.input[0] == node.input[1]:
        return None
    shapes = [graph.shapes.get(t) for t in node.input]
    if shapes[0] is not None and shapes[1] is not None and shapes[0] != shapes[1]:
        return None
    readers = graph.readers.get(node.output[0], ())
    if readers and all(graph.nodes[reader.node].op_type in SOFTMAX_OPERATORS for reader in readers):
        return None
    fusible = [graph.sole_reader(t) is not None and _made_by_matrix_operator(graph, t) for t in node.input]
    if fusible[0] != fusible[1]:
        return 1 if fusible[0] else 0
    depths = [_matrix_depth(graph, t) for t in node.input]
    if not any(depths):
        return None
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
        elif dialect.quantized_shortcuts and (shortcut := residual_shortcut(graph, number)) is not None:
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
        if node.op_type not in MATRIX_OPERATORS:
            # Worth it only where the operands are there in INT8 already, and INT8 is good enough for who reads it.
            operands_offered = all(tensor in offered for tensor in node.input if tensor)
            if not (operands_offered or node.op_type in POOLING_OPERATORS) or _ends_in_fp32(graph, node.output[0]):
                continue
        nodes.add(number)
        if node.op_type not in ("Gemm", "MatMul"):
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
    if node.op_type == "Gemm" and dialect.integer_biases and not _has_integer_bias(graph, number):
        return False
    if node.op_type in ("Gemm", "MatMul"):
        return any(graph.is_activation(t) for t in node.input[:2]) and all(
            graph.is_activation(t) or _is_float_constant(graph, t) for t in node.input[:2]
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
        if position == 0:
            return None
        return 0 if "transB" in attributes and attributes["transB"].i else 1
    return 1 if position == 1 and graph.rank(node.input[1]) == 2 else None


def _biases(graph: GraphIndex, number: int) -> tuple[Reader, ...]:
    node = graph.nodes[number]
    has_bias = node.op_type in ("Conv", "Gemm") and len(node.input) > 2 and node.input[2] in graph.constants
    return (Reader(number, 2),) if has_bias else ()


def _has_integer_bias(graph: GraphIndex, number: int) -> bool:
    """Whether the bias of a Gemm, if it has one, is a row of constants that is added as it is."""
    node = graph.nodes[number]
    if len(node.input) < 3 or not node.input[2]:
        return True
    attributes = {a.name: a for a in node.attribute}
    row = graph.constants.get(node.input[2])
    if row is None or len(row.dims) != 1 or ("beta" in attributes and attributes["beta"].f != 1.0):
        return False
    # The bias is in units of alpha times both scales, and a scale is positive.
    return "alpha" not in attributes or attributes["alpha"].f > 0.0


def _after_activation(graph: GraphIndex, tensor: str) -> str:
    """The tensor after a ReLU (or a Clip from 0) that alone reads `tensor`, since quantization does its work.

    The same whatever is excluded, so that every placement finds its ranges in one calibration table.
    """
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


def _ends_in_fp32(graph: GraphIndex, tensor: str) -> bool:
    """Whether a tensor is read, if at all, by Softmax only (maybe reshaped before), or is only what the model returns.

    Both are FP32, and 8 bits of the logits would cost accuracy and save nothing.
    """
    readers = graph.readers.get(tensor, ())
    if tensor in graph.captured:
        return False
    for reader in readers:
        node = graph.nodes[reader.node]
        if node.op_type in SHAPE_OPERATORS and reader.position == 0 and _ends_in_fp32(graph, node.output[0]):
            continue
        if node.op_type not in SOFTMAX_OPERATORS:
            return False
    return True


def _is_float_constant(graph: GraphIndex, tensor: str) -> bool:
    value = graph.constants.get(tensor)
    return value is not None and graph.types[tensor] == 1 and len(value.dims) >= 1


def _made_by_matrix_operator(graph: GraphIndex, tensor: str) -> bool:
    """Whether a matrix operator writes the tensor, its bias and its batch norm applied (in whatever nodes)."""
    if tensor not in graph.producer:
        return False
    node = graph.nodes[graph.producer[tensor]]
    if node.op_type in MATRIX_OPERATORS:
        return True
    if node.op_type not in PER_CHANNEL_OPERATORS:
        return False
    sources = [t for t in node.input if t and t not in graph.constants]
    return (
        len(sources) == 1 and graph.sole_reader(sources[0]) is not None and _made_by_matrix_operator(graph, sources[0])
    )


def _matrix_depth(graph: GraphIndex, tensor: str) -> int:
    """The most Conv, Gemm and MatMul operators on a path from the graph's inputs to `tensor`."""
    depth: dict[str, int] = {}
    last = graph.producer.get(tensor, -1)
    for node in graph.nodes[: last + 1]:
        below = max((depth.get(t, 0) for t in node.input), default=0) + (node.op_type in MATRIX_OPERATORS)
        for output in node.output:
            depth[output] = below
    return depth.get(tensor, 0)
