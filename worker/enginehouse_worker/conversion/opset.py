"""Checks a model by ONNX's own rules and brings it to the operator set that everything after it is tried with."""

from __future__ import annotations

import onnx
from onnx import helper

from enginehouse_worker.errors import WorkerError
from enginehouse_worker.graphs.tensor_sizes import elements

OPSET = 17
# com.microsoft's operators are ONNX Runtime's own.
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")


def normalized(data: bytes) -> bytes:
    """A serialized model without weights: checked, its functions written out, of opset 17 where ONNX can convert it.

    A newer model that cannot be converted keeps its opset: ONNX Runtime reads it. Runs native code.

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
    if version < OPSET:
        model = _upgraded(model, version)
    elif version > OPSET:
        model = _downgraded(model, version)
    data = model.SerializeToString()
    return bytes(data)


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
    newer = [node for node in model.graph.node if _since(node, version) > OPSET]
    if not newer and not any(a.type == onnx.AttributeProto.GRAPH for n in model.graph.node for a in n.attribute):
        for entry in model.opset_import:
            if entry.domain in ("", "ai.onnx"):
                entry.version = OPSET
        return model
    try:
        converted = onnx.version_converter.convert_version(model, OPSET)
        onnx.checker.check_model(converted, full_check=True)
    except Exception:
        return model
    return converted


def _since(node: onnx.NodeProto, version: int) -> int:
    return int(onnx.defs.get_schema(node.op_type, version, "").since_version) if node.domain in ("", "ai.onnx") else 1


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
