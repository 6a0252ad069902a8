"""Removes nodes that pass their input on as it is."""

from __future__ import annotations

import onnx

from enginehouse_worker.graphs.editing import EditableGraph, Inferred, attributes, subgraph_reads


def remove_noops(graph: EditableGraph) -> None:
    """Remove Identity, Dropout, and any Cast, Reshape, Squeeze, Transpose or Pad that changes nothing, in place."""
    inferred = graph.infer()
    outputs = set(graph.output_names)
    fixed = outputs | set(graph.input_names) | set(graph.constants)
    inside = {name for node in graph.nodes for name in subgraph_reads(node)}
    producers = graph.producers()
    replaced: dict[str, str] = {}
    gone = []
    for node in graph.nodes:
        for position, name in enumerate(node.input):
            node.input[position] = replaced.get(name, name)
        if not _is_noop(graph, node, inferred) or node.output[0] in inside:
            continue
        source, output = node.input[0], node.output[0]
        if output in outputs:
            maker = producers.get(source)
            if maker is None or source in fixed or source in inside:
                continue
            # The output keeps its name: whoever makes the source makes it from now on.
            for position, name in enumerate(maker.output):
                if name == source:
                    maker.output[position] = output
            for other in graph.nodes:
                for position, name in enumerate(other.input):
                    if name == source and other is not node:
                        other.input[position] = output
            replaced = {old: output if new == source else new for old, new in replaced.items()}
            replaced[source] = output
            producers[output] = maker
            fixed.add(output)
        else:
            replaced[output] = source
        gone.append(node)
    graph.remove(gone)
    graph.drop_unread()


def _is_noop(graph: EditableGraph, node: onnx.NodeProto, inferred: Inferred) -> bool:
    if node.domain not in ("", "ai.onnx") or not node.input or any(node.output[1:]):
        return False
    options = attributes(node)
    before, after = (inferred.shapes.get(name) for name in (node.input[0], node.output[0]))
    if node.op_type == "Identity":
        return True
    if node.op_type == "Dropout":
        training = graph.constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        return len(node.input) < 3 or not node.input[2] or (training is not None and not training.any())
    if node.op_type == "Cast":
        return bool(inferred.types.get(node.input[0]) == options.get("to"))
    if node.op_type in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
        # Unknown dimensions are equal when at most one has no name: the number of elements is.
        return before is not None and before == after and before.count(None) <= 1
    if node.op_type == "Transpose":
        permutation = options.get("perm")
        return permutation is not None and list(permutation) == sorted(permutation)
    if node.op_type == "Pad":
        amounts = graph.constants.get(node.input[1]) if len(node.input) > 1 else None
        return amounts is not None and not amounts.any()
    return node.op_type in ("Concat", "Sum", "Max", "Min") and len(node.input) == 1
