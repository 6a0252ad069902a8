"""Raises a graph's opset where a type needs a newer one."""

from __future__ import annotations

import onnx
from onnx import helper, numpy_helper

from enginehouse_worker.errors import WorkerError
from enginehouse_worker.graphs.editing import SHAPE_CONSTANT_ELEMENTS, EditableGraph, editable, tensor_type


def raise_opset(graph: EditableGraph, version: int) -> None:
    """Convert a graph to an opset, in place, by ONNX's own converter, which sees no weights.

    Raises:
        WorkerError: INVALID_ARGUMENT when ONNX cannot convert it.
    """
    if graph.opset >= version:
        return
    light = graph.header()
    for name, value in graph.constants.items():
        if value.size <= SHAPE_CONSTANT_ELEMENTS:
            light.graph.initializer.append(numpy_helper.from_array(value, name))
        else:
            light.graph.input.append(helper.make_tensor_value_info(name, tensor_type(value), value.shape))
    try:
        converted = editable(onnx.version_converter.convert_version(light, version))
    except Exception as error:
        raise WorkerError(
            "INVALID_ARGUMENT",
            f"the model has opset {graph.opset} and needs {version} for these types; ONNX cannot convert it: "
            f"{' '.join(str(error).split())[:600]}",
        ) from None
    graph.nodes[:] = converted.nodes
    graph.constants.update(converted.constants)
    graph.opset = version
    graph.domains = converted.domains
