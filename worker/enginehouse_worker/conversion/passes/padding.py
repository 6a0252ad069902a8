"""Folds paddings with zeros into the operator after them."""

from __future__ import annotations

import onnx

from enginehouse_worker.graphs.editing import EditableGraph, attributes, set_attribute


def fold_padding(graph: EditableGraph) -> None:
    """A spatial Pad with zeros before a Conv, or between a ReLU and a MaxPool, becomes that operator's own, in place.

    MaxPool pads with minus infinity, which is the same there: every window has a real value, and none is negative.
    """
    producers = graph.producers()
    for node in graph.nodes:
        if node.domain not in ("", "ai.onnx") or node.op_type not in ("Conv", "MaxPool"):
            continue
        pad = producers.get(node.input[0])
        if pad is None or pad.op_type != "Pad":
            continue
        source = producers.get(pad.input[0])
        if node.op_type == "MaxPool" and (source is None or source.op_type != "Relu"):
            continue
        options = attributes(node)
        pads = _zero_spatial_padding(graph, pad)
        if pads is None or options.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
            continue
        own = list(options.get("pads", [0] * len(pads)))
        total = [a + b for a, b in zip(own, pads, strict=True)]
        if node.op_type == "MaxPool":
            kernel = options["kernel_shape"]
            if any(size >= kernel[axis % len(kernel)] for axis, size in enumerate(total)):
                continue
            if options.get("ceil_mode", 0):
                continue
        set_attribute(node, "pads", total)
        set_attribute(node, "auto_pad", "NOTSET")
        node.input[0] = pad.input[0]
    graph.drop_unread()


def _zero_spatial_padding(graph: EditableGraph, pad: onnx.NodeProto) -> list[int] | None:
    """The spatial part of a Pad's amounts (begins, then ends) when it pads channels-first images with zeros."""
    mode = attributes(pad).get("mode", b"constant")
    amounts = graph.constants.get(pad.input[1]) if len(pad.input) > 1 else None
    if mode != b"constant" or amounts is None or len(pad.input) > 3 or len(amounts) < 6:
        return None
    if len(pad.input) > 2 and pad.input[2]:
        value = graph.constants.get(pad.input[2])
        if value is None or value.any():
            return None
    rank = len(amounts) // 2
    begins, ends = amounts[:rank], amounts[rank:]
    if begins[:2].any() or ends[:2].any() or (amounts < 0).any():
        return None
    return [int(size) for size in (*begins[2:], *ends[2:])]
