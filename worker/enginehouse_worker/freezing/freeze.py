"""Freezes a Keras model: its inference function with variables made constants, and names that its author would know."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from enginehouse_worker.backends.base import Array, Signature, TensorSpec
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.freezing.carving import interface_names
from enginehouse_worker.freezing.dtypes import protocol_name
from enginehouse_worker.freezing.frozen_graph import Frozen
from enginehouse_worker.freezing.operations import check_inference
from enginehouse_worker.freezing.variables import with_constants
from enginehouse_worker.graphs.naming import unique_name


def freeze(model: Any) -> Frozen:
    """Freeze a `keras.Model` (built, with symbolic inputs) as it runs at inference: no dropout, fixed batch statistics.

    Raises:
        WorkerError: INVALID_ARGUMENT when the model has no defined inputs or uses what a graph of constants cannot
        hold.
    """
    if not getattr(model, "inputs", None) or not getattr(model, "outputs", None):
        raise WorkerError(
            "INVALID_ARGUMENT", "the model has no defined inputs: build it with keras.Input before saving"
        )
    input_names = interface_names((_layer_name(tensor) for tensor in model.inputs), "input")
    output_names = interface_names(_output_layer_names(model), "output")
    shapes = [tuple(tensor.shape) for tensor in model.inputs]
    frozen = _frozen_function(model, input_names, _with_free_batch(shapes))
    if any(tensor.shape.rank in (0, None) or tensor.shape[0] is not None for tensor in frozen.outputs):
        # The batch that the model was saved with is in its computation.
        frozen = _frozen_function(model, input_names, shapes)
    outputs = [tensor.name for tensor in frozen.outputs]
    output_specs = tuple(_spec(name, tensor) for name, tensor in zip(output_names, frozen.outputs, strict=True))
    input_specs = tuple(_spec(name, tensor) for name, tensor in zip(input_names, frozen.inputs, strict=True))
    placeholders = [tensor.op.name for tensor in frozen.inputs]
    graph, moved = _with_named_outputs(frozen.graph, outputs, output_names)
    layers = {layer.name for layer in model._flatten_layers()}
    renamed = _rename_readably(graph, dict(zip(placeholders, input_names, strict=True)), output_names, layers)
    check_inference(graph, output_names, variables_allowed=False)
    batched = all(spec.shape and spec.shape[0] == -1 for spec in (*input_specs, *output_specs))
    named = {moved.get(name, name): value for name, value in frozen.weights.items()}
    # What no output needs is gone.
    weights = {renamed[name]: value for name, value in named.items() if name in renamed}
    return Frozen(graph, Signature(input_specs, output_specs, batched), int(model.count_params()), weights=weights)


def _with_free_batch(shapes: Sequence[tuple[int | None, ...]]) -> list[tuple[int | None, ...]]:
    """The shapes with an unknown dimension 0, where it is one fixed number in all of them."""
    if all(shape and shape[0] is not None for shape in shapes) and len({shape[0] for shape in shapes}) == 1:
        return [(None, *shape[1:]) for shape in shapes]
    return list(shapes)


@dataclass(frozen=True)
class _Function:
    """A GraphDef of constants, its symbolic inputs and outputs, and by node the weights that it holds no values of."""

    graph: Any
    inputs: Sequence[Any]
    outputs: Sequence[Any]
    weights: Mapping[str, Array] = field(default_factory=dict)


def _frozen_function(model: Any, names: Sequence[str], shapes: Sequence[tuple[int | None, ...]]) -> _Function:
    """The model's inference function for inputs of these shapes, its variables made constants."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    specs = [
        tf.TensorSpec(shape, tensor.dtype, name=name)
        for tensor, name, shape in zip(model.inputs, names, shapes, strict=True)
    ]

    def forward(*tensors: Any) -> list[Any]:
        outputs = model(_as_model_takes(model, tensors), training=False)
        return list(tf.nest.flatten(outputs))

    try:
        function = tf.function(forward, input_signature=specs, autograph=False).get_concrete_function()
        light = with_constants(function)
        if light is not None:
            return _Function(light[0], function.inputs[: len(specs)], function.outputs, light[1])
        whole = convert_variables_to_constants_v2(function, lower_control_flow=False)
        return _Function(whole.graph.as_graph_def(), whole.inputs, whole.outputs)
    except MemoryError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:1500]
        raise WorkerError("INVALID_ARGUMENT", f"the model cannot be frozen: {text}") from error


def _as_model_takes(model: Any, tensors: Sequence[Any]) -> Any:
    """The flat tensors in the structure (list, dictionary, single) that the model was built with."""
    import keras

    structure = getattr(model, "_inputs_struct", None)
    if structure is None:
        return tensors[0] if len(tensors) == 1 else list(tensors)
    return keras.tree.pack_sequence_as(structure, list(tensors))


def _layer_name(tensor: Any) -> str:
    """The name of the layer that a symbolic tensor comes from."""
    history = getattr(tensor, "_keras_history", None)
    return str(history.operation.name if history is not None else tensor.name)


def _output_layer_names(model: Any) -> list[str]:
    names = getattr(model, "output_names", None)
    return [str(name) for name in names] if names else [_layer_name(tensor) for tensor in model.outputs]


def _spec(name: str, tensor: Any) -> TensorSpec:
    if tensor.shape.rank is None:
        raise WorkerError("INVALID_ARGUMENT", f"{name!r} has no fixed number of dimensions")
    return TensorSpec(name, protocol_name(tensor.dtype), tuple(-1 if d is None else int(d) for d in tensor.shape))


def _with_named_outputs(graph: Any, tensors: Sequence[str], names: Sequence[str]) -> tuple[Any, dict[str, str]]:
    """Put an Identity called as the output on each output tensor, in place of those that tf.function made.

    Also returns the new names of nodes that had an output's.
    """
    import tensorflow as tf

    by_name = {node.name: node for node in graph.node}
    taken = set(by_name)
    renamed = {}
    for name in names:
        if name in taken:
            # A node that happens to be called like an output (an Identity, or a layer's operation) makes room.
            renamed[name] = unique_name(f"{name}/op", taken)
    sources = [_through_identities(by_name, tensor) for tensor in tensors]
    result = tf.compat.v1.GraphDef()
    result.CopyFrom(graph)
    for node in result.node:
        node.name = renamed.get(node.name, node.name)
        for position, value in enumerate(node.input):
            node.input[position] = _rename_input(value, renamed)
    for name, source, tensor in zip(names, sources, tensors, strict=True):
        dtype = by_name[tensor.split(":")[0]].attr["T"].type
        node = result.node.add(name=name, op="Identity", input=[_rename_input(source, renamed)])
        node.attr["T"].type = dtype
    if not _functions(graph):
        result = tf.compat.v1.graph_util.extract_sub_graph(result, list(names))
    return result, renamed


def _through_identities(nodes: dict[str, Any], tensor: str) -> str:
    """The tensor that a chain of Identity nodes passes on."""
    name, _, output = tensor.partition(":")
    node = nodes[name]
    while node.op == "Identity" and output in ("", "0"):
        source = next(value for value in node.input if not value.startswith("^"))
        name, _, output = source.partition(":")
        node = nodes[name]
    return name if output in ("", "0") else f"{name}:{output}"


def _functions(graph: Any) -> bool:
    return bool(graph.library.function)


def _rename_readably(graph: Any, inputs: dict[str, str], outputs: Sequence[str], layers: set[str]) -> dict[str, str]:
    """Rename nodes in place: inputs as wanted, and `functional_1/conv_1/...` to the layer's name, `conv/...`.

    Returns the new names by the old ones.
    """
    wanted = set(inputs.values()) | set(outputs)
    taken = set(wanted)
    renamed: dict[str, str] = {}
    for node in graph.node:
        if node.name in inputs:
            renamed[node.name] = inputs[node.name]
        elif node.name not in outputs:
            renamed[node.name] = unique_name(_layer_path(node.name, layers), taken)
    for node in graph.node:
        node.name = renamed.get(node.name, node.name)
        for position, value in enumerate(node.input):
            node.input[position] = _rename_input(value, renamed)
        if "_class" in node.attr:
            # Colocation hints name nodes, and mean nothing in a graph of constants.
            del node.attr["_class"]
    return renamed


def _layer_path(name: str, layers: set[str]) -> str:
    """A node's name from its layer on, the suffix that a repeated scope got (`conv_1` of layer `conv`) dropped."""
    parts = name.split("/")
    for depth, part in enumerate(parts[:-1]):
        bare = re.sub(r"_\d+$", "", part)
        layer = part if part in layers else bare if bare in layers else None
        # `conv_1` may be a layer's own name, or layer `conv` seen for the second time: tracing repeats every scope.
        if f"{bare}" in layers and part not in layers:
            layer = bare
        if layer is not None and depth > 0:
            return "/".join([layer, *parts[depth + 1 :]])
    return name


def _rename_input(value: str, renamed: dict[str, str]) -> str:
    control = "^" if value.startswith("^") else ""
    name, colon, output = value[len(control) :].partition(":")
    return f"{control}{renamed.get(name, name)}{colon}{output}"
