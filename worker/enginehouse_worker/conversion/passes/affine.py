"""Folds batch norms, and products and sums with one constant a channel, into the operator before them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from enginehouse_worker.backends.base import Array
from enginehouse_worker.graphs.editing import EditableGraph, Inferred, attributes, set_attribute
from enginehouse_worker.graphs.naming import unique_name

_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


@dataclass(frozen=True)
class _Affine:
    """y = x * scale + offset, one of each a channel (or one for all)."""

    scale: Array
    offset: Array
    source: str


def fold_affine(graph: EditableGraph) -> None:
    """Fold into Conv, ConvTranspose, Gemm and MatMul with constant weights, in place; sums are exact in FP64.

    What stays of a product and a sum of one constant a channel becomes one BatchNormalization.
    """
    inferred = graph.infer()
    producers = graph.producers()
    readers = graph.readers()
    taken = graph.names()
    gone = []
    for node in graph.nodes:
        source = _data_input(graph, node)
        if source is None:
            continue
        maker = producers.get(source)
        if maker is None or len(readers.get(source, ())) != 1 or not _takes(graph, maker):
            continue
        channels = _channels(graph, maker)
        rank = len(inferred.shapes[source]) if source in inferred.shapes else None
        affine = _affine(graph, node, source, channels, axis=_channel_axis(maker, rank), rank=rank)
        if affine is None or not _absorb(graph, maker, affine, channels, readers, taken):
            continue
        maker.output[0] = node.output[0]
        producers[node.output[0]] = maker
        gone.append(node)
    graph.remove(gone)
    _make_batch_norms(graph, inferred)
    graph.drop_unread()


def _make_batch_norms(graph: EditableGraph, inferred: Inferred) -> None:
    """Mul and then Add of one constant a channel (what a batch norm before its convolution leaves) in one node."""
    producers, readers, taken = graph.producers(), graph.readers(), graph.names()
    gone: list[onnx.NodeProto] = []
    for position, node in enumerate(graph.nodes):
        source = _data_input(graph, node)
        product = producers.get(source or "")
        if node.op_type not in ("Add", "Sub") or source is None or product is None or product.op_type != "Mul":
            continue
        data = _data_input(graph, product)
        shape = inferred.shapes.get(data or "")
        if data is None or shape is None or len(shape) < 3 or len(readers[source]) != 1:
            continue
        channels = shape[1]
        if not isinstance(channels, int) or inferred.types.get(data) != onnx.TensorProto.FLOAT:
            continue
        first = _affine(graph, product, data, channels, axis=1, rank=len(shape))
        second = _affine(graph, node, source, channels, axis=1, rank=len(shape))
        if first is None or second is None:
            continue
        values = (first.scale, second.offset, np.zeros(1), np.ones(1))
        names = []
        for role, value in zip(("scale", "bias", "mean", "variance"), values, strict=True):
            names.append(unique_name(f"{node.output[0]}/{role}", taken))
            graph.constants[names[-1]] = np.broadcast_to(value, (channels,)).astype(np.float32)
        inputs = [data, *names]
        made = helper.make_node("BatchNormalization", inputs, [node.output[0]], name=product.name, epsilon=0.0)
        graph.nodes[position] = made
        producers[node.output[0]] = made
        gone.append(product)
    graph.remove(gone)


def _data_input(graph: EditableGraph, node: onnx.NodeProto) -> str | None:
    """The one input of an affine operator that is not constant."""
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "BatchNormalization":
        constant = all(name in graph.constants for name in node.input[1:])
        return node.input[0] if constant and not any(node.output[1:]) and node.input[0] not in graph.constants else None
    if node.op_type not in ("Add", "Sub", "Mul", "Div") or len(node.input) != 2:
        return None
    left, right = (name in graph.constants for name in node.input)
    if left == right or (left and node.op_type in ("Sub", "Div")):
        return None
    return str(node.input[1] if left else node.input[0])


def _affine(
    graph: EditableGraph, node: onnx.NodeProto, source: str, channels: int, *, axis: int | None, rank: int | None
) -> _Affine | None:
    """What a node does to each channel, in FP64; None when that differs inside a channel."""
    if node.op_type == "BatchNormalization":
        if attributes(node).get("training_mode", 0) or axis != 1:
            return None
        scale, offset, mean, variance = (graph.constants[n].astype(np.float64) for n in node.input[1:5])
        if any(value.shape != (channels,) for value in (scale, offset, mean, variance)):
            return None
        with np.errstate(all="ignore"):
            factor = scale / np.sqrt(variance + np.float64(np.float32(attributes(node).get("epsilon", 1e-5))))
        return _Affine(factor, offset - mean * factor, source)
    value = graph.constants[next(name for name in node.input if name != source)]
    vector = _per_channel(value, channels, axis, rank)
    if vector is None or value.dtype not in _FLOATS:
        return None
    one, zero = np.ones(1), np.zeros(1)
    if node.op_type == "Div":
        with np.errstate(all="ignore"):
            return _Affine(1.0 / vector, zero, source)
    if node.op_type == "Mul":
        return _Affine(vector, zero, source)
    return _Affine(one, vector if node.op_type == "Add" else -vector, source)


def _per_channel(value: Array, channels: int, axis: int | None, rank: int | None) -> Array | None:
    """A constant that broadcasts along the channel axis only, as a vector of one value or one a channel."""
    if value.size == 1 and (rank is None or value.ndim <= rank):
        return value.reshape(1).astype(np.float64)
    if axis is None or rank is None or value.ndim > rank or value.size != channels:
        return None
    aligned = (1,) * (rank - value.ndim) + value.shape
    return value.reshape(-1).astype(np.float64) if aligned[axis] == channels else None


def _takes(graph: EditableGraph, maker: onnx.NodeProto) -> bool:
    """Whether a factor and an offset can go into a node's weights and bias."""
    if maker.domain not in ("", "ai.onnx") or maker.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return False
    if any(name and name not in graph.constants for name in maker.input[1:]) or maker.input[0] in graph.constants:
        return False
    options = attributes(maker)
    weight = graph.constants[maker.input[1]]
    if weight.dtype not in _FLOATS or weight.ndim < 2:
        return False
    if maker.op_type in ("Gemm", "MatMul"):
        return bool(weight.ndim == 2) and all(options.get(name, 1.0) == 1.0 for name in ("alpha", "beta"))
    return bool(maker.op_type == "Conv" or options.get("group", 1) == 1)


def _weight_axis(maker: onnx.NodeProto) -> int:
    """The axis of the weight that is the output channel."""
    if maker.op_type == "Gemm":
        return 0 if attributes(maker).get("transB", 0) else 1
    return 0 if maker.op_type == "Conv" else 1


def _channels(graph: EditableGraph, maker: onnx.NodeProto) -> int:
    return int(graph.constants[maker.input[1]].shape[_weight_axis(maker)])


def _channel_axis(maker: onnx.NodeProto, rank: int | None) -> int | None:
    if maker.op_type == "MatMul":
        return None if rank is None else rank - 1
    return 1


def _absorb(
    graph: EditableGraph,
    maker: onnx.NodeProto,
    affine: _Affine,
    channels: int,
    readers: dict[str, list[tuple[onnx.NodeProto, int]]],
    taken: set[str],
) -> bool:
    weight = graph.constants[maker.input[1]]
    old = graph.constants[maker.input[2]] if len(maker.input) > 2 and maker.input[2] else np.zeros(1, weight.dtype)
    if maker.op_type == "MatMul" and affine.offset.any():
        return False
    if old.size not in (1, channels) or (old.ndim > 1 and old.shape[-1] != old.size):
        return False
    axis = _weight_axis(maker)
    along = [1] * weight.ndim
    along[axis] = -1
    bias = np.broadcast_to(old.reshape(-1).astype(np.float64) * affine.scale + affine.offset, (channels,))
    if not (np.isfinite(bias).all() and np.isfinite(affine.scale).all()):
        return False
    if (affine.scale != 1.0).any():
        scaled = (weight * affine.scale.reshape(along)).astype(weight.dtype)
        _set_constant(graph, maker, 1, scaled, f"{maker.output[0]}/weight", readers, taken)
    if maker.op_type != "MatMul" and (bias.any() or len(maker.input) > 2):
        _set_constant(graph, maker, 2, bias.astype(weight.dtype), f"{maker.output[0]}/bias", readers, taken)
        if maker.op_type == "Gemm":
            set_attribute(maker, "beta", 1.0)
    return True


def _set_constant(
    graph: EditableGraph,
    node: onnx.NodeProto,
    position: int,
    value: Array,
    name: str,
    readers: dict[str, list[tuple[onnx.NodeProto, int]]],
    taken: set[str],
) -> None:
    """Give a node another constant; the old one stays for its other readers."""
    while len(node.input) <= position:
        node.input.append("")
    old = node.input[position]
    if old and len(readers.get(old, ())) == 1:
        graph.constants[old] = value
        return
    if old:
        readers[old] = [use for use in readers[old] if use[0] is not node]
    node.input[position] = unique_name(name, taken)
    graph.constants[node.input[position]] = value
    readers[node.input[position]] = [(node, position)]
