"""An index over an ONNX graph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import numpy_helper

from enginehouse_worker.backends.base import Array
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.graphs.editing import subgraph_reads

# Constants up to this many elements may say something about shapes; larger ones are weights.
_SHAPE_CONSTANT_ELEMENTS = 1024


@dataclass(frozen=True)
class Reader:
    """One use of a tensor: input `position` of node number `node` (in graph order)."""

    node: int
    position: int


@dataclass(frozen=True)
class GraphIndex:
    """Who makes and reads each tensor. Nodes are numbered in graph order, which ONNX requires to be topological.

    `shapes` has None for an unknown dimension and lacks tensors of unknown rank; `types` are `onnx.TensorProto` types.
    """

    model: onnx.ModelProto
    nodes: tuple[onnx.NodeProto, ...]
    producer: dict[str, int]
    readers: dict[str, tuple[Reader, ...]]
    constants: dict[str, onnx.TensorProto]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    types: dict[str, int]
    shapes: dict[str, tuple[int | None, ...]]
    captured: frozenset[str] = frozenset()
    """What the subgraphs of If, Loop and Scan read, theirs and this graph's tensors alike."""

    def is_activation(self, tensor: str) -> bool:
        """Whether the tensor is an FP32 value that depends on the input (a tensor of unknown type counts as FP32)."""
        if not tensor or tensor in self.constants:
            return False
        return bool(self.types.get(tensor, onnx.TensorProto.FLOAT) == onnx.TensorProto.FLOAT)

    def constant(self, tensor: str) -> Array | None:
        """The value of a constant, or None when the tensor is no constant."""
        proto = self.constants.get(tensor)
        return None if proto is None else numpy_helper.to_array(proto)

    def rank(self, tensor: str) -> int | None:
        if tensor in self.constants:
            return len(self.constants[tensor].dims)
        shape = self.shapes.get(tensor)
        return None if shape is None else len(shape)

    def sole_reader(self, tensor: str) -> Reader | None:
        """The only use of a tensor, or None when it has several, none, is an output, or a subgraph reads it."""
        readers = self.readers.get(tensor, ())
        elsewhere = tensor in self.outputs or tensor in self.captured
        return readers[0] if len(readers) == 1 and not elsewhere else None


def index_graph(model: onnx.ModelProto) -> GraphIndex:
    """Index a model's graph. Constant nodes should have become initializers (`load_model` does that)."""
    graph = model.graph
    constants = {t.name: t for t in graph.initializer}
    producer: dict[str, int] = {}
    readers: dict[str, list[Reader]] = {}
    for number, node in enumerate(graph.node):
        for output in node.output:
            if output:
                producer[output] = number
        for position, name in enumerate(node.input):
            if name:
                readers.setdefault(name, []).append(Reader(number, position))
    types, shapes = _types_and_shapes(model)
    return GraphIndex(
        model=model,
        nodes=tuple(graph.node),
        producer=producer,
        readers={name: tuple(uses) for name, uses in readers.items()},
        constants=constants,
        inputs=tuple(i.name for i in graph.input if i.name not in constants),
        outputs=tuple(o.name for o in graph.output),
        types=types,
        shapes=shapes,
        captured=frozenset(name for node in graph.node for name in subgraph_reads(node)),
    )


def load_model(directory: Path) -> onnx.ModelProto:
    """Load the ONNX file of a directory, its Constant nodes made initializers.

    Raises:
        WorkerError: INVALID_ARGUMENT when the directory has no single `.onnx` file or it is not a valid model.
    """
    from enginehouse_worker.files import sole_file

    path = sole_file(directory, (".onnx",), "the model")
    try:
        model = onnx.load(str(path))
        if not model.graph.node or not model.graph.output:
            raise ValueError("its graph is empty")
    except Exception as error:
        raise WorkerError("INVALID_ARGUMENT", f"{path.name} is not a readable ONNX model: {error}") from error
    constants_to_initializers(model)
    return model


def constants_to_initializers(model: onnx.ModelProto) -> None:
    """Replace Constant nodes that hold a tensor by initializers, in place."""
    kept = []
    for node in model.graph.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None)
        if node.op_type == "Constant" and value is not None:
            value.name = node.output[0]
            model.graph.initializer.append(value)
        else:
            kept.append(node)
    if len(kept) != len(model.graph.node):
        del model.graph.node[:]
        model.graph.node.extend(kept)


def _types_and_shapes(model: onnx.ModelProto) -> tuple[dict[str, int], dict[str, tuple[int | None, ...]]]:
    """Infer types and shapes on a copy without the weights, which shape inference would serialize and copy."""
    light = onnx.ModelProto()
    light.ir_version = model.ir_version
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    light.graph.name = model.graph.name
    light.graph.node.extend(model.graph.node)
    light.graph.input.extend(model.graph.input)
    light.graph.output.extend(model.graph.output)
    light.graph.value_info.extend(model.graph.value_info)
    declared = {i.name for i in model.graph.input}
    for tensor in model.graph.initializer:
        elements = 1
        for size in tensor.dims:
            elements *= size
        if elements <= _SHAPE_CONSTANT_ELEMENTS:
            light.graph.initializer.append(tensor)
        elif tensor.name not in declared:
            light.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    inferred = onnx.shape_inference.infer_shapes(light, data_prop=True)
    types: dict[str, int] = {}
    shapes: dict[str, tuple[int | None, ...]] = {}
    graph = inferred.graph
    for info in [*graph.input, *graph.value_info, *graph.output]:
        tensor_type = info.type.tensor_type
        if tensor_type.elem_type:
            types[info.name] = tensor_type.elem_type
        if tensor_type.HasField("shape"):
            shapes[info.name] = tuple(
                d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in tensor_type.shape.dim
            )
    for tensor in model.graph.initializer:
        types[tensor.name] = tensor.data_type
        shapes[tensor.name] = tuple(tensor.dims)
    return types, shapes
