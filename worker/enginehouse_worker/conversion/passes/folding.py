"""Computes what depends on constants only."""

from __future__ import annotations

from functools import reduce
from operator import mul

import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from enginehouse_worker.backends.base import Array
from enginehouse_worker.graphs.editing import EditableGraph, Inferred, constant_value, subgraphs

# Q/DQ nodes stay: folding a DequantizeLinear would lose that its weight is quantized. So do random operators, and those
# whose result is large and cheap to make.
# fmt: off
_FOLDED = frozenset(
    {
        "Abs", "Add", "And", "Cast", "Ceil", "Concat", "ConstantOfShape", "Cos", "Div", "Equal", "Exp",
        "Expand", "Flatten", "Floor", "Gather", "GatherND", "Greater", "GreaterOrEqual", "Identity", "Less",
        "LessOrEqual", "Log", "MatMul", "Max", "Min", "Mul", "Neg", "Not", "Or", "Pow", "Range", "Reciprocal",
        "ReduceProd", "ReduceSum", "Reshape", "ScatterND", "Shape", "Sin", "Size", "Slice", "Split", "Sqrt",
        "Squeeze", "Sub", "Tile", "Transpose", "Trilu", "Unsqueeze", "Where",
    }
)
# fmt: on
# A result larger than this and than its inputs is better computed than stored.
_ELEMENTS = 1 << 16


def fold_constants(graph: EditableGraph) -> None:
    """Replace nodes whose inputs are all constants by their result, in place."""
    inferred = graph.infer()
    outputs = set(graph.output_names)
    kept = []
    for node in graph.nodes:
        value = constant_value(node)
        if value is not None and node.output[0] not in outputs:
            graph.constants[node.output[0]] = value
            continue
        values = None if outputs.intersection(node.output) else _evaluate(graph, node, inferred)
        if values is None:
            kept.append(node)
            continue
        graph.constants.update((name, v) for name, v in zip(node.output, values, strict=True) if name)
    graph.nodes[:] = kept
    graph.drop_unread()


def _evaluate(graph: EditableGraph, node: onnx.NodeProto, inferred: Inferred) -> list[Array] | None:
    if node.op_type not in _FOLDED or node.domain not in ("", "ai.onnx") or any(True for _ in subgraphs(node)):
        return None
    names = [name for name in node.input if name]
    if not names or any(name not in graph.constants for name in names):
        return None
    size = sum(graph.constants[name].size for name in names)
    for name in node.output:
        shape = inferred.shapes.get(name)
        known = [d for d in shape if isinstance(d, int)] if shape is not None else None
        if known is None or shape is None or len(known) != len(shape) or reduce(mul, known, 1) > max(size, _ELEMENTS):
            return None
    single = helper.make_graph(
        [node],
        "node",
        [helper.make_tensor_value_info(name, inferred.types[name], None) for name in dict.fromkeys(names)],
        [helper.make_tensor_value_info(name, inferred.types.get(name, 1), None) for name in node.output if name],
    )
    try:
        model = helper.make_model(single, opset_imports=[helper.make_opsetid("", graph.opset)], ir_version=8)
        return list(ReferenceEvaluator(model).run(None, {name: graph.constants[name] for name in names}))
    except Exception:
        # What cannot be computed here may still run, and else the checks that follow say why.
        return None
