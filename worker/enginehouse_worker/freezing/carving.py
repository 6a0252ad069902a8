"""Cuts the part between given tensors out of a GraphDef, and gives its ends the names that users see."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from enginehouse_worker.freezing.operations import TRAINING_ONLY, functions_of, keeps_control_edges, node_of
from enginehouse_worker.graphs.naming import unique_name

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.\-/]")
# Scopes that a SavedModel's calls of functions add.
_CALL_SCOPE = re.compile(r"^((Stateful)?PartitionedCall(_\d+)?/)+")
_MODEL_SCOPE = re.compile(r"^(functional|sequential|model)(_\d+)?/")
_PASSING = frozenset(
    {"Identity", "StopGradient", "PreventGradient", "Snapshot", "Print", "CheckNumerics", "CheckNumericsV2"}
)


@dataclass(frozen=True)
class End:
    """An input or output: `tensor` is `node:0`, `dtype` a DataType number, `shape` None where the rank is unknown."""

    name: str
    tensor: str
    dtype: int
    shape: tuple[int, ...] | None


def interface_names(wanted: Iterable[str], default: str) -> list[str]:
    """Names that a GraphDef, ONNX and a Python keyword-free interface all take, each once."""
    taken: set[str] = set()
    names = []
    for name in wanted:
        clean = _NOT_IN_NAMES.sub("_", name).replace("/", "_").lstrip("_.-") or default
        names.append(unique_name(clean, taken))
    return names


def carve(graph: Any, inputs: Iterable[End], outputs: Iterable[End]) -> Any:
    """A GraphDef of what `outputs` need, with a Placeholder for each of `inputs` that they need.

    Tensor `name:0` of the result is the end called `name`. What passes a tensor on unchanged (Identity, Print) is left
    out. So are control edges: without side effects they order nothing. Where TensorFlow 1's control flow needs them,
    only those to what checks or prints are.
    """
    import tensorflow as tf

    ends_in, ends_out = list(inputs), list(outputs)
    nodes = {node.name: node for node in graph.node}
    cut = {_tensor(end.tensor): end.name for end in ends_in}
    taken = {end.name for end in (*ends_in, *ends_out)}
    names: dict[str, str] = {}

    def source(value: str) -> tuple[str, int]:
        """The tensor behind what passes it on; a cut one as (name of the input, -1)."""
        tensor = _tensor(value)
        while tensor not in cut and tensor[0] in nodes and nodes[tensor[0]].op in _PASSING and tensor[1] == 0:
            tensor = _tensor(next(v for v in nodes[tensor[0]].input if not v.startswith("^")))
        return (cut[tensor], -1) if tensor in cut else tensor

    def reference(tensor: tuple[str, int]) -> str:
        name, number = tensor
        if number < 0:
            return name
        return renamed(name) if number == 0 else f"{renamed(name)}:{number}"

    def renamed(name: str) -> str:
        if name not in names:
            names[name] = unique_name(_readable(name), taken)
        return names[name]

    control = keeps_control_edges(graph)
    result = tf.compat.v1.GraphDef()
    result.versions.CopyFrom(graph.versions)
    result.library.CopyFrom(graph.library)
    used_inputs: set[str] = set()
    pending: list[str] = []

    def need(tensor: tuple[str, int]) -> None:
        if tensor[1] < 0:
            used_inputs.add(tensor[0])
        else:
            pending.append(tensor[0])

    ends = [(end, source(end.tensor)) for end in ends_out]
    for _, tensor in ends:
        need(tensor)
    kept: dict[str, list[str]] = {}
    while pending:
        name = pending.pop()
        if name in kept or name not in nodes:
            continue
        kept[name] = []
        for value in nodes[name].input:
            if value.startswith("^"):
                if control and (before := _control(nodes, value, cut)) is not None:
                    kept[name].append(before)
                    pending.append(before)
                continue
            need(source(value))
    for end in ends_in:
        if end.name in used_inputs:
            placeholder = result.node.add(name=end.name, op="Placeholder")
            placeholder.attr["dtype"].type = end.dtype
            for size in end.shape or ():
                placeholder.attr["shape"].shape.dim.add(size=size)
            placeholder.attr["shape"].shape.unknown_rank = end.shape is None
    for node in graph.node:
        if node.name in kept:
            copy = result.node.add()
            copy.CopyFrom(node)
            copy.name = renamed(node.name)
            copy.device = ""
            del copy.input[:]
            copy.input.extend(reference(source(value)) for value in node.input if not value.startswith("^"))
            copy.input.extend(f"^{renamed(before)}" for before in kept[node.name])
            # Colocation hints name nodes, and mean nothing in a graph of constants.
            copy.attr.pop("_class", None)
    for end, tensor in ends:
        identity = result.node.add(name=end.name, op="Identity", input=[reference(tensor)])
        identity.attr["T"].type = end.dtype
    drop_unused_functions(result)
    return result


def drop_unused_functions(graph: Any) -> None:
    """Remove the functions that no node can call, in place."""
    functions = {function.signature.name: function for function in graph.library.function}
    used: set[str] = set()
    nodes = list(graph.node)
    while nodes:
        for name in functions_of(nodes.pop()):
            if name in functions and name not in used:
                used.add(name)
                nodes.extend(functions[name].node_def)
    kept = [function for name, function in functions.items() if name in used]
    copies = [type(function).FromString(function.SerializeToString()) for function in kept]
    del graph.library.function[:]
    graph.library.function.extend(copies)
    if not copies:
        graph.ClearField("library")


def _readable(name: str) -> str:
    """A node's name without the scopes of calls and of Keras's automatic model names."""
    bare = _CALL_SCOPE.sub("", name)
    return _MODEL_SCOPE.sub("", bare) or bare or name


def _control(nodes: Mapping[str, Any], value: str, cut: Mapping[tuple[str, int], str]) -> str | None:
    """The node that a control edge waits for, or None where waiting does nothing."""
    name = node_of(value)
    if name not in nodes or nodes[name].op in TRAINING_ONLY or (name, 0) in cut:
        return None
    return name


def _tensor(value: str) -> tuple[str, int]:
    name, _, number = value.partition(":")
    return name, int(number) if number.isdigit() else 0
