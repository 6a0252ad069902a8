"""A graph while it is rewritten: nodes as a list, constants as NumPy arrays, no weights inside protobuf messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from enginehouse_worker.backends.base import Array

# A dimension: a size, a symbol's name, or None when nothing is known.
Dimension = int | str | None
Shape = tuple[Dimension, ...]

# Constants up to this many elements may say something about shapes; larger ones are weights.
SHAPE_CONSTANT_ELEMENTS = 1024


@dataclass
class EditableGraph:
    """Nodes are in topological order. A pass replaces `nodes` and `constants` in place.

    Subgraphs of If, Loop and Scan are left as they are: what they read counts as read by the node that holds them.
    """

    nodes: list[onnx.NodeProto]
    constants: dict[str, Array]
    inputs: list[onnx.ValueInfoProto]
    outputs: list[onnx.ValueInfoProto]
    opset: int
    domains: dict[str, int] = field(default_factory=dict)
    """The versions of other operator sets than ONNX's own."""
    name: str = "model"

    @property
    def input_names(self) -> list[str]:
        return [info.name for info in self.inputs]

    @property
    def output_names(self) -> list[str]:
        return [info.name for info in self.outputs]

    def producers(self) -> dict[str, onnx.NodeProto]:
        """The node that makes each tensor."""
        return {output: node for node in self.nodes for output in node.output if output}

    def readers(self) -> dict[str, list[tuple[onnx.NodeProto, int]]]:
        """Who reads each tensor, and as which input; -1 for a use inside a subgraph or as an output of the graph."""
        found: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
        for node in self.nodes:
            for position, name in enumerate(node.input):
                if name:
                    found.setdefault(name, []).append((node, position))
            for name in subgraph_reads(node):
                found.setdefault(name, []).append((node, -1))
        for info in self.outputs:
            found.setdefault(info.name, []).append((onnx.NodeProto(), -1))
        return found

    def names(self) -> set[str]:
        """Every tensor's name."""
        made = {output for node in self.nodes for output in node.output}
        return made | set(self.constants) | set(self.input_names)

    def drop_unread(self) -> None:
        """Remove nodes, then constants, that nothing reads."""
        read = set(self.output_names)
        kept: list[onnx.NodeProto] = []
        for node in reversed(self.nodes):
            if any(output in read for output in node.output):
                read.update(node.input)
                read.update(subgraph_reads(node))
                kept.append(node)
        self.nodes[:] = reversed(kept)
        for name in [name for name in self.constants if name not in read]:
            del self.constants[name]

    def remove(self, unwanted: list[onnx.NodeProto]) -> None:
        gone = {id(node) for node in unwanted}
        self.nodes[:] = [node for node in self.nodes if id(node) not in gone]

    def rename_tensors(self, names: dict[str, str]) -> None:
        """Rename tensors wherever nodes and their subgraphs mention them, and constants; not inputs and outputs."""
        for node in self.nodes:
            _rename_in(node, names)
        for old in [name for name in self.constants if name in names]:
            self.constants[names[old]] = self.constants.pop(old)

    def infer(self) -> Inferred:
        """Types and shapes by ONNX's own inference, without the weights, which it would copy.

        What inference finds contradictory stays unknown.
        """
        light = self._light()
        try:
            inferred = onnx.shape_inference.infer_shapes(light, data_prop=True)
        except Exception:
            inferred = light
        types: dict[str, int] = {}
        shapes: dict[str, Shape] = {}
        for info in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
            tensor = info.type.tensor_type
            if tensor.elem_type:
                types[info.name] = tensor.elem_type
            if tensor.HasField("shape"):
                shapes[info.name] = tuple(_dimension(d) for d in tensor.shape.dim)
        for name, value in self.constants.items():
            types[name] = tensor_type(value)
            shapes[name] = value.shape
        return Inferred(types, shapes)

    def _light(self) -> onnx.ModelProto:
        model = self._header()
        for name, value in self.constants.items():
            if value.size <= SHAPE_CONSTANT_ELEMENTS:
                model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
            else:
                model.graph.input.append(helper.make_tensor_value_info(name, tensor_type(value), value.shape))
        return model

    def _header(self) -> onnx.ModelProto:
        """The model without constants."""
        # The newest that ONNX Runtime 1.23 and TensorRT 8.5 both read.
        model = onnx.ModelProto(ir_version=8, producer_name="enginehouse")
        model.opset_import.append(helper.make_opsetid("", self.opset))
        model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in self.domains.items())
        model.graph.name = self.name
        model.graph.node.extend(self.nodes)
        model.graph.input.extend(self.inputs)
        model.graph.output.extend(self.outputs)
        return model

    def initializers(self) -> Iterator[onnx.TensorProto]:
        """The constants as ONNX writes them, one at a time."""
        for name, value in self.constants.items():
            yield numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)

    def header(self) -> onnx.ModelProto:
        """The model as ONNX writes it, without its constants (see `initializers`)."""
        used = {node.domain for node in self.nodes}
        model = self._header()
        kept = [entry for entry in model.opset_import if not entry.domain or entry.domain in used]
        if len(kept) != len(model.opset_import):
            copies = [helper.make_opsetid(entry.domain, entry.version) for entry in kept]
            del model.opset_import[:]
            model.opset_import.extend(copies)
        return model

    def to_model(self) -> onnx.ModelProto:
        """The whole model as one message."""
        model = self.header()
        model.graph.initializer.extend(self.initializers())
        return model


@dataclass(frozen=True)
class Inferred:
    """`types` are `onnx.TensorProto` types; `shapes` lacks tensors of unknown rank."""

    types: dict[str, int]
    shapes: dict[str, Shape]


def editable(model: onnx.ModelProto) -> EditableGraph:
    """Take a model apart. Its graph must have no functions and no external data.

    Constant nodes that hold numbers become constants.
    """
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        value = constant_value(node)
        if value is None:
            # A copy of its own: a reference would keep the whole model, weights included, in memory.
            nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
        else:
            constants[node.output[0]] = value
    versions = {entry.domain: entry.version for entry in model.opset_import}
    opset = versions.pop("", versions.pop("ai.onnx", 1))
    versions.pop("ai.onnx", None)
    inputs = [onnx.ValueInfoProto.FromString(i.SerializeToString()) for i in model.graph.input]
    return EditableGraph(
        nodes=nodes,
        constants=constants,
        # Before IR version 4, initializers were inputs as well.
        inputs=[info for info in inputs if info.name not in constants],
        outputs=[onnx.ValueInfoProto.FromString(o.SerializeToString()) for o in model.graph.output],
        opset=opset,
        domains=versions,
        name=model.graph.name or "model",
    )


def constant_value(node: onnx.NodeProto) -> Array | None:
    """The value of a Constant node that holds numbers; None for any other node."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or len(node.attribute) != 1:
        return None
    attribute = node.attribute[0]
    if attribute.name == "value":
        value: Array = numpy_helper.to_array(attribute.t)
        return value
    dtypes: dict[str, Any] = {"value_int": np.int64, "value_ints": np.int64}
    dtypes |= {"value_float": np.float32, "value_floats": np.float32}
    if attribute.name not in dtypes:
        return None
    return np.asarray(helper.get_attribute_value(attribute), dtypes[attribute.name])


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes as Python values."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def set_attribute(node: onnx.NodeProto, name: str, value: Any) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    made = helper.make_attribute(name, value)
    copies = [onnx.AttributeProto.FromString(a.SerializeToString()) for a in kept]
    del node.attribute[:]
    node.attribute.extend([*copies, made])


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def subgraph_reads(node: onnx.NodeProto) -> set[str]:
    """The names that a node's subgraphs read or return, theirs and the outer graph's alike."""
    found: set[str] = set()
    for graph in subgraphs(node):
        found.update(output.name for output in graph.output)
        for inner in graph.node:
            found.update(inner.input)
            found |= subgraph_reads(inner)
    return found


def tensor_type(value: Array) -> int:
    """The `onnx.TensorProto` type of an array."""
    return int(helper.np_dtype_to_tensor_dtype(value.dtype)) if value.dtype != object else onnx.TensorProto.STRING


def _rename_in(node: onnx.NodeProto, names: dict[str, str]) -> None:
    _replace(node.input, names)
    _replace(node.output, names)
    for graph in subgraphs(node):
        for output in graph.output:
            output.name = names.get(output.name, output.name)
        for inner in graph.node:
            _rename_in(inner, names)


def _replace(values: Any, names: dict[str, str]) -> None:
    for position, name in enumerate(values):
        if name in names:
            values[position] = names[name]


def _dimension(proto: Any) -> Dimension:
    if proto.HasField("dim_value"):
        return int(proto.dim_value) if proto.dim_value >= 0 else None
    return str(proto.dim_param) or None


Pass = Callable[[EditableGraph], None]
