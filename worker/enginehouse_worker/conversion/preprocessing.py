"""Puts an image's preprocessing into the graph, which then takes UINT8 pixels, channels last."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from enginehouse_worker.backends.base import Array, Signature, TensorSpec
from enginehouse_worker.data.preprocessing import Preprocessing
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.graphs.editing import EditableGraph, attributes
from enginehouse_worker.graphs.naming import unique_name

_CHANNELS = (1, 3)
_TO_NCHW = [0, 3, 1, 2]


@dataclass(frozen=True)
class _Image:
    """The image input: `axis` is its channels' (1 or 3)."""

    spec: TensorSpec
    axis: int

    @property
    def channels(self) -> int:
        return self.spec.shape[self.axis]


def fold_preprocessing(graph: EditableGraph, signature: Signature, wanted: Preprocessing) -> Signature:
    """Make the image input UINT8, channels last, of the same name, in place; the signature that this gives.

    Where the image goes straight into convolutions, the order of channels and the deviation go into their weights; else
    they are a Gather and a Mul. The mean is always subtracted: convolutions pad with zeros, which are means.

    Raises:
        WorkerError: INVALID_ARGUMENT when there is no image input or more than one, or `wanted` is for other channels.
    """
    image = _image(signature)
    wanted.check_channels(image.channels)
    name = image.spec.name
    batch, height, width = image.spec.shape[0], *(d for i, d in enumerate(image.spec.shape[1:], 1) if i != image.axis)
    mean = np.broadcast_to(np.array(wanted.mean, np.float64), (image.channels,))
    deviation = np.broadcast_to(np.array(wanted.deviation, np.float64), (image.channels,))
    if _into_convolutions(graph, image, deviation, wanted.bgr):
        # In the order of the image's channels from here on: the weights are.
        mean = mean[::-1] if wanted.bgr else mean
        deviation, bgr = np.ones(image.channels), False
    else:
        bgr = wanted.bgr
    _prepend(graph, image, mean, deviation, bgr)
    spec = TensorSpec(name, "UINT8", (batch, height, width, image.channels))
    info = next(i for i in graph.inputs if i.name == name)
    old = [onnx.TensorShapeProto.Dimension.FromString(d.SerializeToString()) for d in info.type.tensor_type.shape.dim]
    order = (0, 2, 3, 1) if image.axis == 1 else (0, 1, 2, 3)
    info.type.tensor_type.elem_type = onnx.TensorProto.UINT8
    del info.type.tensor_type.shape.dim[:]
    info.type.tensor_type.shape.dim.extend(old[axis] for axis in order)
    inputs = tuple(spec if s.name == name else s for s in signature.inputs)
    return Signature(inputs, signature.outputs, signature.batched)


def _image(signature: Signature) -> _Image:
    found = []
    for spec in signature.inputs:
        if spec.dtype != "FP32" or len(spec.shape) != 4:
            continue
        axes = [axis for axis in (1, 3) if spec.shape[axis] in _CHANNELS]
        if len(axes) == 2:
            raise WorkerError(
                "INVALID_ARGUMENT",
                f"preprocessing: input {spec.name!r} of shape {list(spec.shape)} may have its channels first or last; "
                "expected 1 or 3 channels in one of the two places",
            )
        found += [_Image(spec, axis) for axis in axes]
    if len(found) != 1:
        given = ", ".join(f"{s.name} {s.dtype} {list(s.shape)}" for s in signature.inputs)
        raise WorkerError(
            "INVALID_ARGUMENT",
            f"preprocessing: the model has {len(found)} image inputs; expected exactly one FP32 input of rank 4 with 1 "
            f"or 3 channels; its inputs: {given}",
        )
    return found[0]


def _into_convolutions(graph: EditableGraph, image: _Image, deviation: Array, bgr: bool) -> bool:
    """Fold the order of channels and the deviation into the weights of all that read the image, if those are plain
    convolutions (behind one Transpose when the image is channels last).
    """
    readers = graph.readers()
    uses = readers.get(image.spec.name, [])
    if image.axis == 3:
        if len(uses) != 1 or uses[0][0].op_type != "Transpose" or attributes(uses[0][0]).get("perm") != _TO_NCHW:
            return False
        uses = readers.get(uses[0][0].output[0], [])
    if not uses or not all(_is_plain_convolution(graph, node, at, image.channels) for node, at in uses):
        return False
    taken = graph.names()
    changed: dict[str, str] = {}
    for node, _ in uses:
        old = node.input[1]
        if old not in changed:
            # From the model's channel c, whose values are divided by deviation[c], to the image's.
            weight = graph.constants[old] / deviation.reshape(1, -1, *[1] * (graph.constants[old].ndim - 2))
            changed[old] = unique_name(f"{old}/preprocessed", taken)
            graph.constants[changed[old]] = np.ascontiguousarray(weight[:, ::-1] if bgr else weight, np.float32)
        node.input[1] = changed[old]
    graph.drop_unread()
    return True


def _is_plain_convolution(graph: EditableGraph, node: onnx.NodeProto, position: int, channels: int) -> bool:
    if node.op_type != "Conv" or position != 0 or attributes(node).get("group", 1) != 1:
        return False
    weight = graph.constants.get(node.input[1])
    return weight is not None and weight.dtype == np.float32 and bool(weight.shape[1] == channels)


def _prepend(graph: EditableGraph, image: _Image, mean: Array, deviation: Array, bgr: bool) -> None:
    name = image.spec.name
    taken = graph.names()
    nodes: list[onnx.NodeProto] = []
    current = name

    def step(operator: str, constant: Array | None, role: str, **options: object) -> None:
        nonlocal current
        output = unique_name(f"{name}/{role}", taken)
        inputs = [current]
        if constant is not None:
            inputs.append(unique_name(f"{name}/{role}/constant", taken))
            graph.constants[inputs[1]] = constant
        nodes.append(helper.make_node(operator, inputs, [output], name=output, **options))
        current = output

    step("Cast", None, "float", to=onnx.TensorProto.FLOAT)
    if bgr:
        step("Gather", np.array([2, 1, 0], np.int64), "bgr", axis=3)
    if mean.any():
        step("Sub", mean.astype(np.float32), "centred")
    if (deviation != 1).any():
        step("Mul", (1 / deviation).astype(np.float32), "scaled")
    if image.axis == 1:
        step("Transpose", None, "channels_first", perm=_TO_NCHW)
    used = {node.name for node in graph.nodes}
    for node in nodes:
        node.name = unique_name(node.name, used)
    graph.rename_tensors({name: current})
    graph.nodes[:0] = nodes
