"""Rewrites what the converter leaves into the forms that quantization and backends know, and names nodes readably."""

from __future__ import annotations

import re

import onnx
from onnx import helper

from enginehouse_worker.graphs.index import GraphIndex, constants_to_initializers, index_graph
from enginehouse_worker.graphs.naming import unique_name

_COUNTER = re.compile(r"__\d+$")


def tidy(model: onnx.ModelProto) -> None:
    """Fold paddings into poolings and products with their bias into Gemm, rename nodes and tensors, in place."""
    constants_to_initializers(model)
    _fold_pool_padding(model)
    _fuse_dense(model)
    _rename(model)


def _fold_pool_padding(model: onnx.ModelProto) -> None:
    """A spatial Pad with zeros between a ReLU and a MaxPool becomes the pooling's own padding.

    MaxPool pads with minus infinity, which is the same there: every window has a real value, and none is negative.
    """
    graph = index_graph(model)
    for node in graph.nodes:
        if node.op_type != "MaxPool" or node.input[0] not in graph.producer:
            continue
        pad = graph.nodes[graph.producer[node.input[0]]]
        source = graph.producer.get(pad.input[0])
        if pad.op_type != "Pad" or source is None or graph.nodes[source].op_type != "Relu":
            continue
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        pads = _zero_spatial_padding(graph, pad)
        own = list(attributes.get("pads", [0] * len(pads or [])))
        kernel = attributes["kernel_shape"]
        if pads is None or attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
            continue
        total = [a + b for a, b in zip(own, pads, strict=True)]
        if any(size >= kernel[axis % len(kernel)] for axis, size in enumerate(total)):
            continue
        kept = [a for a in node.attribute if a.name not in ("pads", "auto_pad")]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute("pads", total)])
        node.input[0] = pad.input[0]
    _drop_unread(model)


def _zero_spatial_padding(graph: GraphIndex, pad: onnx.NodeProto) -> list[int] | None:
    """The spatial part of a Pad's amounts (begins, then ends) when it pads channels-first images with zeros."""
    mode = next((a.s for a in pad.attribute if a.name == "mode"), b"constant")
    amounts = graph.constant(pad.input[1]) if len(pad.input) > 1 else None
    value = graph.constant(pad.input[2]) if len(pad.input) > 2 and pad.input[2] else None
    if mode != b"constant" or amounts is None or len(pad.input) > 3:
        return None
    if len(pad.input) > 2 and pad.input[2] and (value is None or value.any()):
        return None
    rank = len(amounts) // 2
    begins, ends = amounts[:rank], amounts[rank:]
    if begins[:2].any() or ends[:2].any() or (amounts < 0).any():
        return None
    return [int(size) for size in (*begins[2:], *ends[2:])]


def _drop_unread(model: onnx.ModelProto) -> None:
    """Remove nodes, then constants, that nothing reads."""
    outputs = {o.name for o in model.graph.output}
    nodes = list(model.graph.node)
    kept: list[onnx.NodeProto] = []
    read = set(outputs)
    for node in reversed(nodes):
        if any(output in read for output in node.output):
            read.update(node.input)
            kept.append(node)
    if len(kept) != len(nodes):
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in reversed(kept)]
        del model.graph.node[:]
        model.graph.node.extend(copies)
    unread = [tensor for tensor in model.graph.initializer if tensor.name not in read]
    for tensor in unread:
        model.graph.initializer.remove(tensor)


def _fuse_dense(model: onnx.ModelProto) -> None:
    """MatMul of a (batch, n) tensor with a constant, and the Add of a constant row to it, become one Gemm."""
    graph = index_graph(model)
    fused: dict[int, onnx.NodeProto] = {}
    for number, node in enumerate(graph.nodes):
        if node.op_type != "MatMul" or graph.rank(node.input[0]) != 2 or graph.rank(node.input[1]) != 2:
            continue
        if node.input[1] not in graph.constants or node.input[0] in graph.constants:
            continue
        add = _bias_add(graph, node)
        output = graph.nodes[add[0]].output[0] if add else node.output[0]
        inputs = [*node.input, add[1]] if add else list(node.input)
        fused[number] = helper.make_node("Gemm", inputs, [output], name=node.name)
        if add:
            fused[add[0]] = onnx.NodeProto()
    nodes = [fused.get(number, node) for number, node in enumerate(graph.nodes)]
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes if node.op_type]
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _bias_add(graph: GraphIndex, product: onnx.NodeProto) -> tuple[int, str] | None:
    """The Add that only adds a constant row to the product: its number and the constant's name."""
    reader = graph.sole_reader(product.output[0])
    if reader is None or graph.nodes[reader.node].op_type != "Add":
        return None
    other = graph.nodes[reader.node].input[1 - reader.position]
    columns = graph.constants[product.input[1]].dims[1]
    if other in graph.constants and tuple(graph.constants[other].dims) == (columns,):
        return reader.node, other
    return None


def _rename(model: onnx.ModelProto) -> None:
    """Call each node by its layer and operator (`conv1/Conv`), and its output likewise; constants by what they are."""
    interface = {i.name for i in model.graph.input} | {o.name for o in model.graph.output}
    taken = set(interface)
    tensors: dict[str, str] = {}
    for node in model.graph.node:
        node.name = unique_name(_layer_name(node), taken)
        for position, output in enumerate(node.output):
            if output and output not in interface:
                tensors[output] = node.name if position == 0 else f"{node.name}:{position}"
    for tensor in model.graph.initializer:
        clean = _COUNTER.sub("", tensor.name.split(":")[0])
        clean = re.sub(r"/(merged_input|ReadVariableOp(/resource)?)$", "", clean)
        tensors[tensor.name] = unique_name(f"{clean}/constant", taken)
        tensor.name = tensors[tensor.name]
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = tensors.get(name, name)
        for position, name in enumerate(node.output):
            node.output[position] = tensors.get(name, name)
    del model.graph.value_info[:]


def _layer_name(node: onnx.NodeProto) -> str:
    name = _COUNTER.sub("", node.name.split(":")[0])
    scope = name.rpartition("/")[0]
    scope = re.sub(r"/batchnorm$", "", scope)
    return f"{scope or name}/{node.op_type}"
