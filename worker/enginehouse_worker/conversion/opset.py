"""Checks a model by ONNX's own rules and brings it to the operator set that everything after it is tried with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx
from onnx import helper, numpy_helper

from enginehouse_worker.backends.base import Array
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.graphs.editing import attributes, constant_value, set_attribute, subgraphs
from enginehouse_worker.graphs.tensor_sizes import elements

OPSET = 17
# com.microsoft's operators are ONNX Runtime's own.
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")


# Operators that opsets 18 to 23 gave types or options that a model need not use.
# fmt: off
_WIDENED = frozenset(
    {
        "AveragePool", "BatchNormalization", "Cast", "Constant", "ConstantOfShape", "Conv", "ConvTranspose",
        "DequantizeLinear", "Dropout", "Elu", "Equal", "Flatten", "GRU", "GlobalAveragePool", "GlobalMaxPool",
        "HardSigmoid", "HardSwish", "Identity", "If", "InstanceNormalization", "IsInf", "IsNaN", "LSTM", "Loop",
        "MaxPool", "Pad", "QuantizeLinear", "RNN", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp",
        "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSumSquare", "Reshape", "Resize", "Scan",
        "ScatterElements", "ScatterND", "Selu", "Shape", "Size", "Softplus", "Softsign", "Split", "Squeeze",
        "ThresholdedRelu", "Transpose", "Unsqueeze",
    }
)
# fmt: on
# Values of attributes that came with those opsets.
_NEWER_VALUES = (b"wrap", b"half_pixel_symmetric")


@dataclass(frozen=True)
class Normalized:
    """A model without its weights, serialized: as it was written, and of the wanted opset."""

    uploaded: bytes
    converted: bytes


def normalized(data: bytes) -> Normalized:
    """A serialized model without weights: checked, its functions written out, of opset 17 where that is possible.

    A newer model that uses what opset 17 lacks keeps its opset: ONNX Runtime reads it. Runs native code.

    Raises:
        WorkerError: INVALID_ARGUMENT naming the node and operator that is wrong.
    """
    model = onnx.ModelProto.FromString(data)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
        del model.functions[:]
    version = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    _check_operators(model, version)
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        raise WorkerError("INVALID_ARGUMENT", f"the model is not valid ONNX: {_one_line(error)}") from None
    uploaded = model.SerializeToString()
    if version < OPSET:
        model = _upgraded(model, version)
    elif version > OPSET:
        model = _downgraded(model, version)
    return Normalized(uploaded, model.SerializeToString())


def _upgraded(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    try:
        return onnx.version_converter.convert_version(model, OPSET)
    except Exception as error:
        raise WorkerError(
            "INVALID_ARGUMENT",
            f"the model has opset {version}, and ONNX cannot convert it to {OPSET}: {_one_line(error)}; export it with "
            f"opset {OPSET}",
        ) from None


def _downgraded(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """The model as one of opset 17, if it uses nothing newer.

    ONNX's own converter is of no use here: it loses the axes of reductions, which moved to an input in opset 18.
    """
    older = onnx.ModelProto()
    older.CopyFrom(model)
    constants = {t.name: numpy_helper.to_array(t) for t in older.graph.initializer}
    constants |= {n.output[0]: v for n in older.graph.node if (v := constant_value(n)) is not None}
    for node in older.graph.node:
        if not _fits(node, version, constants):
            return model
    for entry in older.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = OPSET
    try:
        onnx.checker.check_model(older, full_check=True)
    except Exception:
        return model
    return older


def _fits(node: onnx.NodeProto, version: int, constants: dict[str, Array]) -> bool:
    """Whether a node means the same in opset 17; a reduction's constant axes become its attribute for that."""
    inner = [n for graph in subgraphs(node) for n in graph.node]
    if not all(_fits(n, version, constants) for n in inner):
        return False
    if node.domain not in ("", "ai.onnx"):
        return True
    if onnx.defs.get_schema(node.op_type, version, "").since_version <= OPSET:
        return True
    if node.op_type not in _WIDENED:
        return False
    options = attributes(node)
    if node.op_type.startswith("Reduce") and len(node.input) > 1:
        axes = constants.get(node.input[1])
        if axes is None or not axes.size or options.get("noop_with_empty_axes", 0):
            return False
        set_attribute(node, "axes", [int(axis) for axis in axes])
        del node.input[1:]
    elif node.op_type == "AveragePool" and options.get("ceil_mode", 0):
        # Opset 19 changed what the last window is divided by.
        return False
    schema = onnx.defs.get_schema(node.op_type, OPSET, "")
    known = all(attribute.name in schema.attributes for attribute in node.attribute)
    return known and len(node.input) <= schema.max_input and not any(v in _NEWER_VALUES for v in _strings(options))


def _strings(options: dict[str, Any]) -> list[bytes]:
    return [value for value in options.values() if isinstance(value, bytes)]


def _check_operators(model: onnx.ModelProto, version: int) -> None:
    imported = {entry.domain for entry in model.opset_import}
    for node in model.graph.node:
        where = f"node {node.name or (node.output[0] if node.output else '')!r}"
        if node.domain not in _DOMAINS:
            raise WorkerError(
                "INVALID_ARGUMENT",
                f"{where} has the operator {node.op_type!r} of the custom domain {node.domain!r}, which no backend "
                "has; export the model with ONNX's own operators",
            )
        if node.domain not in ("", "ai.onnx"):
            if node.domain not in imported:
                raise WorkerError("INVALID_ARGUMENT", f"{where}: the model does not import {node.domain!r}")
            continue
        try:
            onnx.defs.get_schema(node.op_type, version, "")
        except Exception:
            raise WorkerError(
                "INVALID_ARGUMENT", f"{where} has the operator {node.op_type!r}, which opset {version} does not have"
            ) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:600]


def without_weights(model: onnx.ModelProto, largest: int) -> tuple[onnx.ModelProto, list[onnx.TensorProto]]:
    """The model with initializers of more than `largest` elements as inputs, and those initializers."""
    light = _shell(model)
    declared = {info.name for info in model.graph.input}
    weights = []
    for tensor in model.graph.initializer:
        if elements(tensor.dims) <= largest:
            light.graph.initializer.append(tensor)
            continue
        weights.append(tensor)
        if tensor.name not in declared:
            light.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return light, weights


def _shell(model: onnx.ModelProto) -> onnx.ModelProto:
    shell = onnx.ModelProto(ir_version=model.ir_version)
    shell.opset_import.extend(model.opset_import)
    shell.functions.extend(model.functions)
    shell.graph.name = model.graph.name or "model"
    shell.graph.node.extend(model.graph.node)
    shell.graph.input.extend(model.graph.input)
    shell.graph.output.extend(model.graph.output)
    return shell
